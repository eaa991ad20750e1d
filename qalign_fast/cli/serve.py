"""`qalign-fast serve`: models in, an HTTP server out."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from qalign_fast.cli.console import NoVerify, print_facts
from qalign_fast.cli.info import describe
from qalign_fast.errors import MissingExtraError, OptionError
from qalign_fast.pixels.limits import PictureLimits
from qalign_fast.serve.served import base_of
from qalign_fast.serve.settings import Settings, named_models

Level = StrEnum("Level", ["debug", "info", "warning", "error"])
_MIB = 1 << 20


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Artifact directories, checkpoint directories or Hub ids. Default: the embedded model.",
            show_default=False,
            envvar="QALIGN_MODELS",
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(help="NAME=MODEL: a model under a name of its own.", show_default=False, envvar="QALIGN_NAME"),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen at.", envvar="QALIGN_HOST")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, envvar="QALIGN_PORT")] = 8000,
    device: Annotated[str, typer.Option(help="As score's.", envvar="QALIGN_DEVICE")] = "auto",
    engine: Annotated[str, typer.Option(help="As score's.", envvar="QALIGN_ENGINE")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="As score's.", show_default=False, envvar="QALIGN_PRECISION")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="As score's, of every adapter that is served.", show_default=False, envvar="QALIGN_BASE"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="As score's.", show_default=False, envvar="QALIGN_THREADS")
    ] = None,
    max_batch: Annotated[
        int, typer.Option(min=1, max=1024, help="Pictures that are computed at a time.", envvar="QALIGN_MAX_BATCH")
    ] = 16,
    max_wait_ms: Annotated[
        float,
        typer.Option(
            min=0,
            help="How long a batch waits for pictures that are being read. A picture alone never waits.",
            envvar="QALIGN_MAX_WAIT_MS",
        ),
    ] = 0.0,
    queue: Annotated[
        int,
        typer.Option(min=1, help="Pictures that may wait; one more is refused with 429.", envvar="QALIGN_QUEUE"),
    ] = 256,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds that a picture may wait.", envvar="QALIGN_TIMEOUT")
    ] = 30.0,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.", envvar="QALIGN_MAX_BODY")] = 64 * _MIB,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Of a picture, or of a frame.", envvar="QALIGN_MAX_PIXELS")
    ] = 50_000_000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="A key that clients must send. Repeat it for several. The environment variable keeps it off the "
            "list of processes.",
            show_default=False,
            envvar="QALIGN_API_KEY",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; each loads the models.", envvar="QALIGN_WORKERS")] = 1,
    cache: Annotated[
        int, typer.Option(min=0, help="Pictures whose scores are kept in memory.", envvar="QALIGN_CACHE")
    ] = 0,
    allow_url_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A host from which pictures may be fetched; *.example.org is all below it. Default: none, no URL is "
            "ever fetched.",
            show_default=False,
            envvar="QALIGN_ALLOW_URL_HOST",
        ),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(min=0, help="Seconds for what is under way when the server stops.", envvar="QALIGN_GRACE"),
    ] = 30.0,
    tls_certificate: Annotated[
        str | None,
        typer.Option(help="A PEM file; with --tls-key: HTTPS.", show_default=False, envvar="QALIGN_TLS_CERTIFICATE"),
    ] = None,
    tls_key: Annotated[
        str | None, typer.Option(help="A PEM file.", show_default=False, envvar="QALIGN_TLS_KEY")
    ] = None,
    exif_rotate: Annotated[
        bool, typer.Option("--exif-rotate", help="As score's.", envvar="QALIGN_EXIF_ROTATE")
    ] = False,
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="As score's.", envvar="QALIGN_ALLOW_TRUNCATED")
    ] = False,
    tone_map: Annotated[bool, typer.Option("--tone-map", help="As score's.", envvar="QALIGN_TONE_MAP")] = False,
    formats: Annotated[str, typer.Option(help="As score's.", show_default=False, envvar="QALIGN_FORMATS")] = "",
    log_level: Annotated[Level, typer.Option(envvar="QALIGN_LOG_LEVEL")] = Level.info,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be served, and end.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the dry run as JSON.")] = False,
    no_verify: NoVerify = False,
) -> None:
    """Serve scores over HTTP, with a page at /. Each option is an environment variable too: QALIGN_PORT and so on.

    \b
    qalign-fast serve one-align-int8 --port 8000
    curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/v1/score
    """
    try:
        settings = Settings(
            models=named_models(models or (), name or ()),
            host=host,
            port=port,
            device=device,
            engine=engine,
            precision=precision,
            base=base,
            threads=threads,
            verify=not no_verify,
            max_batch=max_batch,
            max_wait_ms=max_wait_ms,
            queue=queue,
            timeout=timeout,
            max_body=max_body,
            limits=PictureLimits(
                max_bytes=max_body,
                max_pixels=max_pixels,
                exif_rotate=exif_rotate,
                allow_truncated=allow_truncated,
                tone_map=tone_map,
                formats=tuple(each.strip().lower() for each in formats.split(",") if each.strip()),
            ),
            api_keys=tuple(api_key or ()),
            workers=workers,
            cache=cache,
            url_hosts=tuple(allow_url_host or ()),
            grace=grace,
            log_level=log_level.value,
            certificate=tls_certificate,
            private_key=tls_key,
        )
    except OptionError as error:
        raise typer.BadParameter(str(error)) from error
    plans = {
        called: describe(model, base=base_of(model, settings), device=device, verify=not no_verify)
        for called, model in settings.models
    }
    if dry_run:
        print_facts(_plan(settings, plans), as_json=json)
        return
    try:
        from qalign_fast.serve.server import serve as run
    except ModuleNotFoundError as missing:
        how = f"pip install 'qalign-fast[serve]' ({missing})"
        raise MissingExtraError(f"the server needs granian, FastAPI and more: {how}") from missing
    run(settings)


def _plan(settings: Settings, plans: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What would be served, as facts."""
    facts: dict[str, Any] = {
        "address": f"{'https' if settings.certificate else 'http'}://{settings.host}:{settings.port}"
    }
    for name, about in plans.items():
        wanted = ("kind", "path", "engine", "precision", "tasks", "video tasks", "files", "license", "kernels")
        facts[f"model {name}"] = {key: about[key] for key in wanted if key in about}
    held = max(1 << 30, 8 * settings.max_body)
    return facts | {
        "workers": settings.workers,
        "batch": f"{settings.max_batch} pictures, waits {settings.max_wait_ms:g} ms for those that are being read",
        "queue": f"{settings.queue} pictures for each model and worker, {settings.timeout:g} s at most",
        "limits": f"{settings.max_body / _MIB:g} MiB a request, "
        f"{settings.limits.max_pixels / 1e6:g} megapixels a picture",
        "memory": f"each worker: the models' files, {held / _MIB:g} MiB for bodies at most, "
        f"{4 * settings.limits.max_pixels / _MIB:.0f} MiB for each picture that is being read",
        "cache": f"{settings.cache} pictures" if settings.cache else "off",
        "keys": len(settings.api_keys) or "none: anybody who reaches the address is answered",
        "URLs": ", ".join(settings.url_hosts) or "never fetched",
        "grace": f"{settings.grace:g} s",
    }
