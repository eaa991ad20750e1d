"""A checkpoint in, its reference model with frozen weights out, for gradients that go through it to the pixels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from qalign_fast.artifact.manifest import is_artifact
from qalign_fast.engines.bitsandbytes_linears import Rounded, find_linears, replace
from qalign_fast.engines.devices import Needs, choose_device
from qalign_fast.errors import CheckpointError, DeviceError, OptionError, TaskError, one_line
from qalign_fast.families.adapters import base_remark, find_base, is_adapter
from qalign_fast.families.family import Constants, Family, Reference
from qalign_fast.families.prompt import Prompt
from qalign_fast.families.published import inverted_remark, tell
from qalign_fast.families.registry import family_of_checkpoint
from qalign_fast.references import find_model, from_anywhere, name_of

# The dtypes of the linears, and of all that lies between them.
PRECISIONS = {
    "fp32": (torch.float32, torch.float32),
    "bf16": (torch.bfloat16, torch.float32),
    "fp64": (torch.float64, torch.float64),
}
_NEEDS = Needs("torch's own kernels", (7, 5), mps=True)


class FrozenModel:
    """A reference model whose weights never change. Copies share it, and pickle loads it anew.

    It is no nn.Module, so that the module that holds it has no parameters of it: no optimizer sees them, and no
    trainer's checkpoint has them.
    """

    def __init__(
        self,
        model: Reference,
        family: Family,
        device: str,
        between: torch.dtype,
        load: Callable[[str], FrozenModel],
    ) -> None:
        """`between`: the dtype of what lies between linears. `load` takes a device and reads the same model anew."""
        self.family, self.config, self.device, self.between = family, model.config, device, between
        self._model, self._load = model, load
        self._constants: Callable[[Prompt], Constants] = cache(model.constants)

    def prompt(self, task: str) -> Prompt:
        """The prompt of a task for pictures. Raises TaskError, which lists what there is."""
        prompts = {prompt.task: prompt for prompt in self.family.prompts if prompt.medium == "image"}
        if task not in prompts:
            raise TaskError(f"task {task!r} is not in this model; for images it has: {', '.join(prompts)}")
        return prompts[task]

    def logits(self, pixels: Tensor, prompt: Prompt) -> Tensor:
        """Floats [B, S, S, 3] on 0..255, on its device -> the levels' logits [B, 5], with a gradient to the pixels."""
        with torch.inference_mode(False), torch.no_grad():  # what is kept must serve a later call that has a gradient
            constants = self._constants(prompt)
        return self._model.decode(self._model.encode(pixels), *constants)

    def to(self, device: torch.device) -> FrozenModel:
        """This model on a device; itself where it is there. Others that share it stay where they are.

        Raises DeviceError where the device has no room.
        """
        if device == torch.device(self.device):
            return self
        model = cast(nn.Module, self._model)
        try:
            moved: dict[int, Any] = {id(p): nn.Parameter(p.to(device), requires_grad=False) for p in model.parameters()}
            moved |= {id(buffer): buffer.to(device) for buffer in model.buffers()}
        except RuntimeError as error:
            raise _no_room(str(device), error) from error
        twin = cast(Reference, copy.deepcopy(model, moved))
        return FrozenModel(twin, self.family, str(device), self.between, self._load)

    def __copy__(self) -> FrozenModel:
        return self

    def __deepcopy__(self, _: dict[int, Any]) -> FrozenModel:
        return self

    def __reduce__(self) -> tuple[Callable[[str], FrozenModel], tuple[str]]:
        return self._load, (self.device,)


def load_frozen(
    model: str | Path | None, device: str = "cpu", precision: str = "fp32", base: str | Path | None = None
) -> FrozenModel:
    """The model of a checkpoint's or an adapter's directory, or of a Hub id. `base` is as `Scorer.load` takes it.

    `precision`: of PRECISIONS. Raises OptionError for an artifact, for another precision, and for a family whose scores
    are no weighted sum of levels; DeviceError for a device that is not there or has no room; CheckpointError and
    ArtifactError for what cannot be found or read.
    """
    if precision not in PRECISIONS:
        raise OptionError(f"precision is {precision!r}; with a gradient there are: {', '.join(PRECISIONS)}")
    directory = find_model(model)
    if is_artifact(directory):
        raise OptionError(
            f"{directory}: an artifact, whose rounded weights have no gradient; give the checkpoint that it was made of"
        )
    if not is_adapter(directory) and not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory}: no checkpoint (no config.json)")
    found = find_base(directory, base)
    family = family_of_checkpoint(directory, found)
    if family.answer is not None:
        raise OptionError(f"{directory}: models of the family {family.name} have no gradient here; OneAlign's have one")
    if found is not None:
        tell(inverted_remark(name_of(directory)), base_remark(directory, base))
    place = choose_device(device, _NEEDS)
    reference = _read(family, directory, found, place, precision)
    again = partial(_load_on, from_anywhere(model), precision, from_anywhere(base))
    return FrozenModel(reference, family, place, PRECISIONS[precision][1], again)


def _load_on(model: str | Path | None, precision: str, base: str | Path | None, device: str) -> FrozenModel:
    return load_frozen(model, device, precision, base)


def _read(family: Family, directory: Path, base: Path | None, device: str, precision: str) -> Reference:
    """The reference on the device, one tensor after another: the host holds no copy of all of them for a GPU."""
    checkpoint = family.models().Checkpoint(directory, base)
    with torch.device("meta"):
        model = family.models().Model(checkpoint.config, checkpoint.anchors)
    linears, between = PRECISIONS[precision]
    weights = {f"{name}.weight" for name in find_linears(model)}
    try:
        filled = {
            name: tensor.to(device, linears if name in weights else between)
            for name, tensor in checkpoint.stream(checkpoint.origins)
        }
    except RuntimeError as error:
        raise _no_room(device, error) from error
    model.load_state_dict(filled, assign=True)
    for name, linear in find_linears(model).items() if linears != between else ():
        replace(model, name, Rounded(linear.to(linears), linear.out_features, linears))
    return cast(Reference, model.requires_grad_(False).eval())


def _no_room(device: str, error: RuntimeError) -> DeviceError:
    return DeviceError(f"device {device!r}: has no room for the weights ({one_line(error)}); bf16 takes half of fp32")
