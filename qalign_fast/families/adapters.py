"""The folder of a LoRA adapter (PEFT's form) in; what its adapter_config.json says, and the checkpoint it is for, out.

A setting of PEFT that would change the result and that is not implemented is an error. peft itself is not needed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qalign_fast.errors import ArtifactError, CheckpointError, OptionError
from qalign_fast.references import find_model, name_of

ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter_config.json says. Modules have the names that they have in the base checkpoint.

    base: the checkpoint that the adapter was trained on: a path, a Hub id or, where it is not told, "".
    targets: modules' full names or their ends, or a regular expression of full names.
    """

    base: str
    rank: int
    alpha: float
    targets: tuple[str, ...] | re.Pattern[str]
    rank_stabilized: bool = False  # rsLoRA (Kalajdzievski, 2023): alpha / sqrt(r) in place of alpha / r
    ranks: Mapping[str, int] = field(default_factory=dict)  # of modules by their names' ends, which are patterns
    alphas: Mapping[str, float] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """r: the rows of A and the columns of B."""
        return self.ranks.get(_match(self.ranks, module), self.rank)

    def scaling(self, module: str) -> float:
        """What B @ A is multiplied by."""
        alpha, rank = self.alphas.get(_match(self.alphas, module), self.alpha), self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def is_ambiguous(self, module: str) -> bool:
        """Whether rank_pattern and alpha_pattern have the module under two keys, of which old PEFT takes the first."""
        rank, alpha = _match(self.ranks, module), _match(self.alphas, module)
        return rank != alpha and rank in self.ranks and alpha in self.alphas

    def targets_module(self, module: str) -> bool:
        """Whether PEFT would put an adapter on the module."""
        if isinstance(self.targets, re.Pattern):
            return self.targets.fullmatch(module) is not None
        return any(module == target or module.endswith(f".{target}") for target in self.targets)

    def unmet(self, modules: Iterable[str]) -> list[str]:
        """The targets that none of these modules has; a regular expression has none."""
        if isinstance(self.targets, re.Pattern):
            return []
        ends = {".".join(parts[i:]) for module in modules for parts in [module.split(".")] for i in range(len(parts))}
        return [target for target in self.targets if target not in ends]


def _match(patterns: Iterable[str], module: str) -> str:
    return next((key for key in patterns if re.fullmatch(rf"(.*\.)?({key})", module)), module)


def is_adapter(directory: Path) -> bool:
    """Whether a folder holds an adapter instead of a whole model."""
    return (directory / ADAPTER).is_file()


def find_base(directory: Path, base: str | Path | None = None) -> Path | None:
    """The directory of the checkpoint that an adapter's folder is for; None for a folder that is no adapter.

    It is `base`, as `find_model` takes a model; else the one that adapter_config.json names, whose path may be relative
    to the adapter's folder. Raises OptionError if `base` is given for no adapter, CheckpointError if no base is named
    or found or if it is no checkpoint, and what `find_model` raises.
    """
    if not is_adapter(directory):
        if base is not None:
            raise OptionError(f"base {base}: {directory} is not a LoRA adapter (no {ADAPTER}), so it has no base")
        return None
    found = find_model(base) if base is not None else _recorded_base(directory)
    if is_adapter(found) or not (found / "config.json").is_file():
        what = f"an adapter itself ({ADAPTER})" if is_adapter(found) else "no checkpoint (no config.json)"
        raise CheckpointError(f"{found}: {what}; the base of {directory} has to be a whole checkpoint")
    return found


def _recorded_base(directory: Path) -> Path:
    recorded = read_adapter_config(directory).base
    if not recorded:
        raise CheckpointError(f"{directory / ADAPTER}: names no base_model_name_or_path; give the base (--base)")
    try:
        beside = (directory / recorded).resolve()
        return beside if beside.is_dir() else find_model(recorded)
    except (ArtifactError, OSError) as error:
        raise CheckpointError(
            f"{directory / ADAPTER}: its base {recorded!r} was not found ({error}); give its directory (--base)"
        ) from error


def base_remark(directory: Path, base: str | Path | None) -> str | None:
    """What a user should know who gave another base than the adapter's. Names are compared, without regard to case."""
    if base is None or not is_adapter(directory):
        return None
    recorded = read_adapter_config(directory).base
    name = Path(recorded).name
    if not name or name.lower() in {Path(base).name.lower(), name_of(Path(base)).lower()}:
        return None
    return (
        f"{directory}: was trained on {recorded}, and {base} is used; if these are not the same weights, "
        "scores are wrong and nothing else shows it"
    )


# What PEFT writes that does not change the result of a trained adapter.
_HARMLESS = frozenset(
    "auto_mapping revision task_type inference_mode lora_dropout exclude_modules layers_to_transform layers_pattern "
    "loftq_config megatron_core runtime_config eva_config corda_config peft_version ensure_weight_tying".split()
)
_READ = frozenset(
    "peft_type base_model_name_or_path r lora_alpha target_modules use_rslora rank_pattern alpha_pattern bias "
    "init_lora_weights".split()
)


def read_adapter_config(directory: Path) -> AdapterConfig:
    """What the folder's adapter_config.json says. Raises CheckpointError, which names a setting that is not right."""
    file = directory / ADAPTER
    try:
        raw = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file}: expected an object, found {type(raw).__name__}")
    _refuse(file, raw)
    base = raw.get("base_model_name_or_path")
    return AdapterConfig(
        base=base if isinstance(base, str) else "",
        rank=_rank(file, "r", raw.get("r")),
        alpha=_number(file, "lora_alpha", raw.get("lora_alpha")),
        targets=_targets(file, raw.get("target_modules")),
        rank_stabilized=bool(raw.get("use_rslora")),
        ranks=_pattern(file, "rank_pattern", raw, _rank),
        alphas=_pattern(file, "alpha_pattern", raw, _number),
    )


def _refuse(file: Path, raw: Mapping[str, Any]) -> None:
    for key, value, expected in (
        ("peft_type", raw.get("peft_type"), ("LORA",)),
        ("bias", raw.get("bias"), ("none", None)),
        # others change the base's weights when training starts, or mean that it did
        ("init_lora_weights", raw.get("init_lora_weights"), (True, False, None, "gaussian")),
    ):
        if value not in expected:
            raise CheckpointError(f"{file}: '{key}' is {value!r}; only {expected[0]!r} is implemented")
    for key, value in raw.items():
        if value and key not in _HARMLESS | _READ:
            raise CheckpointError(f"{file}: '{key}' ({value!r}) is not implemented; merge the adapter with peft")


def _targets(file: Path, value: Any) -> tuple[str, ...] | re.Pattern[str]:
    if isinstance(value, str) and value:
        try:
            return re.compile(".*" if value == "all-linear" else value)
        except re.error as error:
            raise CheckpointError(f"{file}: 'target_modules' is {value!r}, no regular expression ({error})") from error
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        raise CheckpointError(f"{file}: 'target_modules' is {value!r}; expected names of modules")
    return tuple(value)


def _pattern(file: Path, key: str, raw: Mapping[str, Any], check: Any) -> dict[str, Any]:
    found = raw.get(key) or {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: '{key}' is {found!r}; expected an object")
    for name in found:
        try:
            re.compile(name)
        except re.error as error:
            raise CheckpointError(f"{file}: '{key}' has {name!r}, no regular expression ({error})") from error
    return {name: check(file, f"{key}.{name}", value) for name, value in found.items()}


def _rank(file: Path, key: str, value: Any) -> int:
    if type(value) is not int or not 0 < value < 1 << 16:
        raise CheckpointError(f"{file}: '{key}' is {value!r}; expected a positive whole number")
    return value


def _number(file: Path, key: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise CheckpointError(f"{file}: '{key}' is {value!r}; expected a number")
    return float(value)
