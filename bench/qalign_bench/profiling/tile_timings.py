"""Times of tiles in, the fastest of each product out: as lines of triton_tiles.json, and as a table to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qalign_bench.figures.report import markdown_table
from qalign_bench.profiling.model_products import Shape
from qalign_kernels.cuda import tiles
from qalign_kernels.cuda.launch import Device
from qalign_kernels.cuda.tiles import Tile, table_key

TABLE = Path(tiles.__file__).with_name("triton_tiles.json")


@dataclass(frozen=True)
class Timing:
    """The time of one tile, or of torch's own product, which has none. Seconds are null where it does not run."""

    form: str
    m: int
    k: int
    n: int
    by: str
    tile: list[int] | None
    seconds: float | None
    tops: float | None
    error: str | None = None


def fastest(timings: Sequence[Timing]) -> dict[tuple[str, Shape], Timing]:
    """The fastest timing of each form and shape, of our tiles and torch's own product."""
    found: dict[tuple[str, Shape], Timing] = {}
    for t in timings:
        key = t.form, Shape(t.m, t.k, t.n)
        if t.seconds is not None:
            known = found.get(key)
            if known is None or known.seconds is None or t.seconds < known.seconds:
                found[key] = t
    return found


def with_fastest(table: dict[str, Any], facts: Device, timings: Sequence[Timing]) -> dict[str, Any]:
    """The table with these timings instead of its lines for the same form and shape on that device, by this Triton."""
    of_device = dict(table.get(table_key(facts), {}))
    for (form, shape), t in fastest(timings).items():
        others = [line for line in of_device.get(form, []) if line[:3] != list(shape)]
        of_device[form] = sorted([*others, [*shape, *(t.tile or [])]], key=lambda line: (line[1:3], line[0]))
    return table | {table_key(facts): of_device}


def write_table(facts: dict[str, int], timings: Sequence[Timing]) -> None:
    """Writes the fastest tiles into the table that the kernels read."""
    TABLE.write_text(table_text(with_fastest(json.loads(TABLE.read_text()), Device(**facts), timings)))


def table_text(table: dict[str, Any]) -> str:
    """The table as JSON, with one line for each product."""
    devices = []
    for key, forms in sorted(table.items()):
        parts = [
            f'  "{form}": [\n' + ",\n".join(f"   {json.dumps(line)}" for line in lines) + "\n  ]"
            for form, lines in forms.items()
        ]
        devices.append(f' "{key}": {{\n' + ",\n".join(parts) + "\n }")
    return "{\n" + ",\n".join(devices) + "\n}\n" if devices else "{}\n"


def summary(timings: Sequence[Timing]) -> str:
    """A markdown table: the fastest tile of each product beside the rule's and torch's own."""
    rows = []
    for (form, shape), best in fastest(timings).items():
        same = [t for t in timings if (t.form, t.m, t.k, t.n) == (form, *shape)]
        rule = next(t for t in same if t.by == "rule")
        own = next((t for t in same if t.tile is None), None)
        tile = tile_text(best.tile)
        product_name = " x ".join(map(str, shape))
        rows.append([form, product_name, tile, _micro(best), _tops(best), _micro(rule), _micro(own) if own else "-"])
    header = ["form", "M x K x N", "tile", "us", "TOPS", "us by rule", "us of torch"]
    return markdown_table(header, rows)


def tile_text(tile: Sequence[Any] | None) -> str:
    """A tile's rows, columns, inputs, stages and warps, and its parts and kind where these are unusual."""
    if tile is None:
        return "torch"
    *sizes, splits, hopper = Tile(*tile)
    return " ".join(map(str, sizes)) + f", {splits} parts" * (splits > 1) + ", Hopper's" * hopper


def _micro(t: Timing) -> str:
    return "-" if t.seconds is None else f"{1e6 * t.seconds:.1f}"


def _tops(t: Timing) -> str:
    return "-" if t.tops is None else f"{t.tops:.0f}"
