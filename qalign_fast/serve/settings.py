"""Everything that an operator of the server can set, as one value. A worker process is given it whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from qalign_fast.errors import OptionError
from qalign_fast.pixels.limits import PictureLimits

EMBEDDED_NAME = "mini"
MIB = 1 << 20
LIMITS = PictureLimits(max_pixels=50_000_000)


@dataclass(frozen=True)
class Settings:
    """The server's options. Raises OptionError for a value that no server can have.

    models: name and reference of each, as `Scorer.load` takes a reference. The first answers where none is named.
    base: of the models that are LoRA adapters, as `Scorer.load` takes it.
    max_batch: pictures that are computed at a time.
    max_wait_ms: how long a batch waits for pictures that are being read already. A picture alone never waits.
    queue: pictures that may wait or be worked at, for each model; one more is refused.
    timeout: seconds after which a picture that still waits is given up.
    max_body: bytes of a request, as sent and as unpacked.
    limits: how pictures are read; `max_pixels` and the rest.
    api_keys: of which a client must send one; empty: none is asked for.
    workers: processes, each with a queue and models of its own.
    cache: how many pictures' scores are kept. 0: none.
    url_hosts: hosts from which pictures may be fetched; see `urls.py`. Empty: no URL is ever fetched.
    grace: seconds for what is under way when the server is told to stop.
    """

    models: tuple[tuple[str, str | None], ...] = ((EMBEDDED_NAME, None),)
    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    engine: str = "auto"
    precision: str | None = None
    base: str | None = None
    threads: int | None = None
    verify: bool = True
    max_batch: int = 16
    max_wait_ms: float = 0.0
    queue: int = 256
    timeout: float = 30.0
    max_body: int = 64 * MIB
    limits: PictureLimits = LIMITS
    api_keys: tuple[str, ...] = ()
    workers: int = 1
    cache: int = 0
    url_hosts: tuple[str, ...] = ()
    grace: float = 30.0
    log_level: str = "info"
    certificate: str | None = None  # PEM files: with both, HTTPS
    private_key: str | None = None

    def __post_init__(self) -> None:
        least = {"max_batch": 1, "queue": 1, "max_body": 1, "workers": 1, "cache": 0, "max_wait_ms": 0, "grace": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise OptionError(f"{name} is {getattr(self, name)}; expected {bound} or more")
        if not self.timeout > 0:
            raise OptionError(f"timeout is {self.timeout}; expected seconds, more than 0")
        if not all(key.isascii() and key.isprintable() and key.split() == [key] for key in self.api_keys):
            raise OptionError(
                "an API key is empty or has what no header takes; expected letters, digits and signs of ASCII"
            )
        if (self.certificate is None) != (self.private_key is None):
            raise OptionError("HTTPS needs both a certificate and its private key")
        names = [name for name, _ in self.models]
        if odd := [name for name in names if "/" in name or not name.isprintable()]:
            raise OptionError(f"a model is named {odd[0]!r}; a name is part of a path, so it has no / in it")
        if not names or len(set(names)) < len(names):
            raise OptionError(f"models are named {', '.join(names) or '(none)'}; expected names that differ")


def named_models(models: Sequence[str], named: Sequence[str]) -> tuple[tuple[str, str | None], ...]:
    """Name and reference of each model: of `models` the last part of the path or Hub id, of `named` NAME=MODEL.

    The embedded model where there are none. Raises OptionError for what is not NAME=MODEL.
    """
    found: list[tuple[str, str | None]] = [(PurePath(model).name or model, model) for model in models]
    for each in named:
        name, equals, model = each.partition("=")
        if not (name and equals and model):
            raise OptionError(f"--name {each}: expected NAME=MODEL")
        found.append((name, None if model == EMBEDDED_NAME else model))
    return tuple(found) or ((EMBEDDED_NAME, None),)
