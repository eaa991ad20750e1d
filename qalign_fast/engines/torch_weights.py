"""An artifact in, its folded tensors and its prompts' constants out, on the CPU or as a GPU's kernels read them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import accumulate

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qalign_fast.artifact.manifest import Artifact
from qalign_fast.artifact.mapped_tensors import weights_file
from qalign_fast.artifact.prompt_tensors import load_constants
from qalign_fast.errors import ArtifactError, one_line
from qalign_fast.families.family import Constants
from qalign_fast.families.schema import FoldedTensor, Found, Linear, Plain, check_tensors
from qalign_kernels.contract.quantized_rows import E4M3
from qalign_kernels.contract.weight import Weight


def read_folded(artifact: Artifact) -> tuple[dict[str, Tensor], dict[str, Constants]]:
    """The folded tensors, mapped from their file, and the constants of every prompt by its name, on the CPU.

    Raises ArtifactError for weights that are missing or do not fit the manifest's sizes.
    """
    manifest, path = artifact.manifest, weights_file(artifact)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not readable as safetensors ({one_line(error)})") from error
    constants: dict[str, Constants] = {
        name: tuple(map(torch.from_numpy, arrays)) for name, arrays in load_constants(artifact).items()
    }
    try:
        check_tensors(manifest.family.schema(manifest.config), found_in(tensors))
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}") from error
    return tensors, constants


def found_in(tensors: Mapping[str, Tensor]) -> dict[str, Found]:
    """The shapes and dtypes of tensors, which `check_tensors` compares with a family's schema."""
    return {name: Found(tuple(x.shape), str(x.dtype).removeprefix("torch.")) for name, x in tensors.items()}


def set_threads(threads: int | None) -> None:
    """Sets torch's number of threads, which holds for the whole process. None leaves it as it is.

    A forked child of a process that computed with torch keeps to one: see `one_thread_in_forks`.
    """
    if threads is not None and not _THREADS_LOST:
        torch.set_num_threads(threads)


_THREADS_LOST = False  # whether torch's other threads stayed with the parent


@cache
def one_thread_in_forks() -> None:
    """Has a forked child compute on one thread: it lacks torch's others, and would wait for them for ever."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_keep_to_one_thread)


def _keep_to_one_thread() -> None:
    global _THREADS_LOST  # noqa: PLW0603
    _THREADS_LOST = True
    torch.set_num_threads(1)


def to_device(
    schema: Iterable[FoldedTensor], mapped: dict[str, Tensor], device: torch.device, between: torch.dtype
) -> dict[str, Tensor]:
    """The tensors of a mapped file, on a GPU and as its kernels read them. They leave `mapped` one at a time.

    The host never has its own copy of more than one. `between`: the dtype of what lies between products.
    """
    entries = list(schema)
    linears = [entry for entry in entries if isinstance(entry, Linear)]
    dtypes: dict[str, torch.dtype | None] = {
        entry.name: between for entry in entries if isinstance(entry, Plain) and entry.role == "rows"
    }
    dtypes |= {f"{one.name}.bias": _bias_type(one, mapped[f"{one.name}.weight"].dtype, between) for one in linears}
    padded = {f"{linear.name}.weight" for linear in linears if linear.padded}
    tensors = _stacked(linears, mapped, device)
    for name in list(mapped):
        tensor = mapped.pop(name).to(device, dtypes.get(name))
        tensors[name] = _with_zeros(name, tensor) if name in padded else tensor
    return tensors


def _with_zeros(name: str, weight: Tensor) -> Tensor:
    from qalign_kernels.cuda.linear import align

    aligned: Tensor = align(Weight(name, weight)).weight
    return aligned


def _bias_type(linear: Linear, weight: torch.dtype, between: torch.dtype) -> torch.dtype | None:
    """The dtype that a linear's bias is converted to, None for no change. cuBLAS adds it in the dtype of its result."""
    if weight in (torch.float16, torch.bfloat16):
        return weight
    return between if weight == E4M3 and linear.bias_last else None


def _stacked(linears: Sequence[Linear], mapped: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Stacks the linears that one product reads: returns the whole weight, and each linear as a part of it.

    The linears leave `mapped`. Only those that are all int8, or all int4, are stacked.
    """
    groups: dict[str, list[str]] = {}
    for linear in linears:
        if linear.stacked:
            groups.setdefault(linear.stacked, []).append(linear.name)
    tensors: dict[str, Tensor] = {}
    for stacked, members in groups.items():
        types = {mapped[f"{name}.weight"].dtype for name in members}
        biases = sum(f"{name}.bias" in mapped for name in members)
        if types not in ({torch.int8}, {torch.uint8}) or biases not in (0, len(members)):
            continue
        for part in ["weight", "scale"] + ["groups"] * (torch.uint8 in types) + ["bias"] * (biases > 0):
            names = [f"{name}.{part}" for name in members]
            ends = list(accumulate(len(mapped[name]) for name in names))
            whole = tensors[f"{stacked}.{part}"] = torch.cat([mapped.pop(name).to(device) for name in names])
            tensors |= {name: whole[first:end] for name, first, end in zip(names, [0, *ends], ends)}
    return tensors
