"""The server as a Ray Serve deployment: settings in, an application for `serve.run` out, with the same routes.

    serve run qalign_fast.serve.ray_serve:app model=one-align-int8 device=cuda num_replicas=2

Each replica loads the models once and has a queue of its own. Two things hold requests back, in this order. A replica's
queue answers 429 when it is full, with the seconds after which to come again. Where the replicas have all the requests
that Ray gives them, Ray keeps some more waiting, and answers 503 to the rest.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qalign_fast.errors import MissingExtraError, OptionError
from qalign_fast.serve.settings import LIMITS, Settings, named_models

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_NAME = "qalign-fast"
_MORE = 64  # requests that a replica takes beyond its queue: those that it refuses, and those that ask for no score
_API_KEY = "QALIGN_API_KEY"


def app(args: dict[str, Any]) -> Application:
    """For `serve run` and Ray's config files: options as `deployment` takes them, as values or as texts.

    `num_cpus` and `num_gpus` stand for the `ray_actor_options` of the same name.
    """
    given = {name: _of_text(name, value) for name, value in args.items()}
    machine = {name: given.pop(name) for name in ("num_cpus", "num_gpus") if name in given}
    if machine:
        given["ray_actor_options"] = {**given.get("ray_actor_options", {}), **machine}
    return deployment(**given)


def deployment(
    settings: Settings | None = None,
    *,
    num_replicas: int | str | None = None,
    ray_actor_options: Mapping[str, Any] | None = None,
    max_ongoing_requests: int | None = None,
    max_queued_requests: int | None = None,
    **options: Any,
) -> Application:
    """The application. Options are those of `qalign-fast serve`, with underscores, and of `ray.serve.deployment`.

    settings: in place of the options of `qalign-fast serve`. Address, workers and TLS are Ray's to choose.
    ray_actor_options: what a replica takes of its machine. Default: a GPU where `device` is cuda. A replica on a CPU
        has as many threads as its `num_cpus` says, or every core where it says nothing.
    max_ongoing_requests: that Ray gives to a replica at a time. Default: some more than the queue has room for.
    max_queued_requests: that wait at a proxy of Ray until a replica takes them, as each does for a moment. Default: as
        many as a replica is given.

    A model that cannot be loaded fails the deployment. Without `api_key`, keys are those of QALIGN_API_KEY in the
    replica's environment. Raises OptionError, and MissingExtraError where Ray is missing.
    """
    try:
        from ray import serve
    except ImportError as missing:
        raise MissingExtraError(f"this needs Ray Serve: pip install 'qalign-fast[ray]' ({missing})") from missing
    rays = set(inspect.signature(serve.deployment).parameters) - set(_KINDS)
    more = {name: options.pop(name) for name in list(options) if name in rays}
    settings = _settings(settings, options)
    actor = dict(ray_actor_options or {})
    if settings.device.startswith("cuda"):
        actor.setdefault("num_gpus", 1)
    elif settings.threads is None and actor.get("num_cpus"):
        settings = replace(settings, threads=max(1, int(actor["num_cpus"])))
    described = {
        "name": _NAME,
        "num_replicas": num_replicas,
        "ray_actor_options": actor,
        "max_ongoing_requests": max_ongoing_requests or settings.queue + _MORE,
        "max_queued_requests": max_queued_requests or settings.queue + _MORE,
        "graceful_shutdown_timeout_s": settings.grace,
        **more,
    }

    def make() -> FastAPI:
        return make_replica(settings)

    # `make` is sent to the replicas and called there: neither a model nor an application is ever pickled.
    application: Application = serve.deployment(**described)(serve.ingress(make)(Replica)).bind()
    return application


class Replica:
    """What Ray asks of a replica beside requests."""

    app: FastAPI  # set by Ray

    async def check_health(self) -> None:
        """Raises where the replica does not answer requests; Ray then starts another one."""
        if not self.app.state.service.ready:
            raise RuntimeError("the replica's models are not ready")


def make_replica(settings: Settings) -> FastAPI:
    """A replica's application, its models loaded and warm. Called in the replica, on its loop."""
    from qalign_fast.serve.app import make_app
    from qalign_fast.serve.served import load_scorer
    from qalign_fast.serve.server import prepare_process
    from qalign_fast.serve.service import Service

    prepare_process(settings)
    keys = settings.api_keys or tuple(os.environ.get(_API_KEY, "").split())
    service = Service(replace(settings, api_keys=keys))
    for name, reference in settings.models:
        service.add(name, reference, load_scorer(reference, settings))
    made = make_app(service.settings, service=service)
    made.add_middleware(_WithoutRequestId)
    return made


class _WithoutRequestId:
    """Takes x-request-id off our answers: Ray's proxy has given the request its id, and adds it too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [header for header in message["headers"] if header[0] != b"x-request-id"]
            await send(message)

        await self._app(scope, receive, send_on)


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "1", "false", "0"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "1")


# Options of `qalign-fast serve`, and of Ray, and what makes their values of texts.
_PICTURES: Mapping[str, Callable[[str], Any]] = {
    "max_pixels": int,
    "exif_rotate": _flag,
    "allow_truncated": _flag,
    "tone_map": _flag,
    "formats": str,
}
_KINDS: Mapping[str, Callable[[str], Any]] = {
    **dict.fromkeys(
        ("model", "name", "device", "engine", "precision", "base", "log_level", "api_key", "allow_url_host"), str
    ),
    **dict.fromkeys(("threads", "max_batch", "queue", "max_body", "cache"), int),
    **dict.fromkeys(("max_wait_ms", "timeout", "grace"), float),
    "no_verify": _flag,
    **_PICTURES,
}
_RAYS: Mapping[str, Callable[[str], Any]] = {
    "num_replicas": lambda text: text if text == "auto" else int(text),
    **dict.fromkeys(("max_ongoing_requests", "max_queued_requests"), int),
    **dict.fromkeys(("num_cpus", "num_gpus"), float),
}


def _of_text(name: str, value: Any) -> Any:
    """What an option's text says. Raises OptionError for one that it cannot have."""
    kind = _KINDS.get(name) or _RAYS.get(name)
    if not isinstance(value, str) or kind is None:
        return value
    try:
        return kind(value)
    except ValueError as error:
        raise OptionError(f"option {name}: {error}") from error


def _settings(settings: Settings | None, options: Mapping[str, Any]) -> Settings:
    """The settings of a replica. Raises OptionError for an option that is not known, and for one that is Ray's."""
    for name in options:
        if settings or name not in _KINDS:
            known = "none beside settings" if settings else ", ".join(_KINDS)
            raise OptionError(f"option {name!r} is not known; there are: {known}; and those of ray.serve.deployment")
    if settings is None:
        settings = _of_options(dict(options))
    if settings.workers > 1 or settings.certificate:
        raise OptionError("workers and TLS are Ray's to choose: give num_replicas, and TLS to Ray's HTTP proxy")
    return settings


def _of_options(options: dict[str, Any]) -> Settings:
    models = named_models(_words(options.pop("model", ())), _words(options.pop("name", ())))
    limits = {name: options.pop(name) for name in _PICTURES if name in options}
    if "formats" in limits:
        limits["formats"] = tuple(_words(limits["formats"], ","))
    for name, field in (("api_key", "api_keys"), ("allow_url_host", "url_hosts")):
        options[field] = tuple(_words(options.pop(name, ())))
    verify = not options.pop("no_verify", False)
    size = options.get("max_body", Settings.max_body)
    return Settings(models=models, verify=verify, limits=replace(LIMITS, max_bytes=size, **limits), **options)


def _words(value: str | Sequence[str], between: str = " ") -> Sequence[str]:
    """Several values: a list, or a text with something between them, as in the environment."""
    return value.replace(between, " ").split() if isinstance(value, str) else value
