"""One bench from its options to its runs, which all scenarios share while they measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Protocol, TypeAlias

from qalign_bench.cli.options import Options
from qalign_bench.contestants.models import Model, prepare, require_tasks
from qalign_bench.figures.environment import environment
from qalign_bench.figures.machine_noise import Noise
from qalign_fast.families.mplug_owl2.sizes import ModelConfig

_FROM_FILES = ("startup",)  # scenarios that read a model's files, so that random numbers must be in files
Run: TypeAlias = dict[str, Any]  # one contestant in one case, as the JSON has it; see figures/runs.py


class Progress(Protocol):
    """Hears how many steps of how many are done, and what comes next."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


@dataclass
class Session:
    """What a scenario is given, and where it leaves its runs."""

    options: Options
    remark: Callable[[str], None]  # prints one line for people, on stderr
    progress: Progress
    noise: Noise = field(default_factory=Noise)
    environment: dict[str, Any] = field(default_factory=environment)
    runs: list[Run] = field(default_factory=list)  # a scenario leaves here what it has, also when it is interrupted
    facts: dict[str, Any] = field(default_factory=dict)  # of the whole bench: rounds done, how contestants took turns
    _config: ModelConfig | None = None

    def models(self) -> list[Model]:
        """The artifact for every precision and engine that was asked for. Raises as `prepare` does, and TaskError."""
        options = self.options
        pairs = dict.fromkeys(product(options.precisions, options.engines))
        rest = options.work, self.remark, self._exporting, options.device, options.scenario in _FROM_FILES
        models = [prepare(options.model, precision, engine, *rest) for precision, engine in pairs]
        for model in models:
            require_tasks(model, options.tasks)
        self.facts["model"] = models[0].reference
        self.facts["chosen"] = {m.manifest.precision: m.choice for m in models if m.choice}
        self._config = models[0].config
        return models

    @property
    def config(self) -> ModelConfig:
        """The sizes that all models have, after `models` was called."""
        assert self._config is not None
        return self._config

    def _exporting(self, done: int, total: int) -> None:
        self.progress(done, total, "exporting")
