"""The tiny family, as one value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qalign_fast.families.family import Family
from qalign_fast.families.prompt import MEDIA, Prompt
from qalign_fast.families.schema import FoldedTensor, Interface, Linear, Plain
from qalign_fast.levels import Scale
from support.tiny_family.sizes import TinySizes, from_json, read_config, to_json

PROMPTS = tuple(Prompt("sharpness", medium, (1, 2, i), (3,)) for i, medium in enumerate(MEDIA))


def schema(sizes: TinySizes) -> Iterator[FoldedTensor]:
    yield Linear("embed", sizes.width, 3 * sizes.patch**2)
    yield Plain("gain", (sizes.width,), "norm")
    yield Linear("head", 3, sizes.width)


def no_graphs(sizes: TinySizes) -> Interface:
    raise NotImplementedError  # no engine of the family asks


def constants(sizes: TinySizes, prompt: Prompt) -> tuple[tuple[int, ...], ...]:
    return (len(prompt.prefix), sizes.width), (len(prompt.suffix), sizes.width)


def describe(sizes: Any) -> dict[str, str]:
    return {"pixels": f"{sizes.longest} on the longer side, patches of {sizes.patch}"}


FAMILY = Family(
    name="tiny",
    scale=Scale(("sharp", "soft", "blurred"), (10.0, 5.0, 0.0)),
    level_ids=(7, 8, 9),
    prompts=PROMPTS,
    clip_frames=8,
    engines=("torch",),
    recognizes=lambda config, _: config.get("model_type") == "tiny",
    read_config=read_config,
    sizes_to_json=to_json,
    sizes_from_json=from_json,
    describe=describe,
    constants=constants,
    schema=schema,
    interface=no_graphs,
    model="support.tiny_family.models",
)
