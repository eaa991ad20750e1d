"""What the server counts, in Prometheus' form. No label grows with users, pictures or paths.

With several workers, prometheus_client adds up their counts in files of the folder PROMETHEUS_MULTIPROC_DIR, which is
read when it is imported: see server.py.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from qalign_fast.version import __version__

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_SCORES = tuple(1 + 0.25 * i for i in range(17))
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = CONTENT_TYPE_LATEST


@dataclass(frozen=True)
class ModelMetrics:
    """The metrics of one model, which its batcher fills."""

    queue: Any  # seconds
    decode: Any
    inference: Any
    batch_size: Any
    queue_size: Any
    cached: Any
    shared: Any


class Metrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by route and status.", "endpoint", "code")
        self.duration = self._histogram("request_duration_seconds", "Seconds of a request.", _SECONDS, "endpoint")
        self.inflight = self._gauge("inflight", "Requests that are being answered.")
        self.images = self._counter("images", "Pictures and clips by what came of them: ok, bad, failed.", "status")
        self.rejected = self._counter("rejected", "Requests that were refused, by status.", "reason")
        self.score = self._histogram("score", "Scores, to see drift.", _SCORES, "model", "task")
        self._queue = self._histogram("queue_duration_seconds", "Seconds that a picture waited.", _SECONDS, "model")
        self._decode = self._histogram("decode_duration_seconds", "Seconds of reading a picture.", _SECONDS, "model")
        self._inference = self._histogram("inference_duration_seconds", "Seconds of a batch.", _SECONDS, "model")
        self._batch_size = self._histogram("batch_size", "Pictures and clips in a batch.", _SIZES, "model")
        self._queue_size = self._gauge("queue_size", "Pictures and clips that wait or are worked at.", "model")
        self._cached = self._counter("cache_hits", "Pictures whose scores were kept.", "model")
        self._shared = self._counter("shared", "Pictures that were computed with an equal one in flight.", "model")
        self._info = self._gauge("model_info", "1 for each model.", "model", "family", "precision", "engine", "version")

    def of_model(self, name: str, facts: dict[str, Any]) -> ModelMetrics:
        """The metrics of a model that was loaded; `facts` as /v1/models has them."""
        self._info.labels(name, facts["family"], facts["precision"], facts["engine"], __version__).set(1)
        families = (
            self._queue,
            self._decode,
            self._inference,
            self._batch_size,
            self._queue_size,
            self._cached,
            self._shared,
        )
        return ModelMetrics(*(family.labels(name) for family in families))

    def text(self) -> bytes:
        """What a scrape gets: of all workers, where there are several."""
        registry = self._registry
        if os.environ.get(_FOLDER):
            from prometheus_client.multiprocess import MultiProcessCollector

            _forget_dead(Path(os.environ[_FOLDER]))
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"qalign_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"qalign_{name}", text, labels, buckets=buckets, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        mode: Any = "mostrecent" if name == "model_info" else "livesum"
        return Gauge(f"qalign_{name}", text, labels, registry=self._registry, multiprocess_mode=mode)


def _forget_dead(folder: Path) -> None:
    """Drops what workers that have died were doing, which would count as under way for ever."""
    if sys.platform == "win32":  # there is one worker alone
        return
    for file in folder.glob("gauge_live*_*.db"):
        try:
            os.kill(int(file.stem.rpartition("_")[2]), 0)
        except ProcessLookupError:
            with suppress(FileNotFoundError):  # another worker was quicker
                file.unlink()
