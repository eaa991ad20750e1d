"""Compiles the kernels that the full model launches on a GPU, and tells what they need of it. None is run.

    python triton_ahead.py CAPABILITY ... -> a JSON line for each kernel compiled for each of them

A driver that compiles for that GPU and launches nothing (`qalign_kernels.cuda.ahead`'s) stands in for CUDA's, and the
operations run on tensors of the model's true shapes that hold no data: what is compiled is what such a GPU would
run, its own tiles included, those too that torch's own product is taken before.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from qalign_kernels.contract.operations import Activation
from qalign_kernels.contract.precisions import BLOCK
from qalign_kernels.contract.quantized_rows import LARGEST, QuantizedRows
from qalign_kernels.contract.weight import Modal, Weight
from qalign_kernels.cuda.ahead import Idle
from qalign_kernels.cuda.launch import Device, Epilogue
from qalign_kernels.cuda.linear import align, inputs_of, linear, weight_type
from qalign_kernels.cuda.ops import TritonOps
from qalign_kernels.cuda.runtime import set_driver
from qalign_kernels.cuda.tiles import Shares, Tile, tile_by_rule

DEVICES = {
    80: Device(80, 108, 163 * 1024),  # A100
    86: Device(86, 82, 99 * 1024),  # RTX 3090
    89: Device(89, 128, 99 * 1024),  # RTX 4090
    90: Device(90, 132, 227 * 1024),  # H100
}
VISION, DECODER = 1025, 77  # rows of a picture
BATCH = 64
FP8_SINCE = 89


def main(capability: int) -> None:
    set_driver(Idle(DEVICES[capability]))
    for label, call in calls(TritonOps(DEVICES[capability], torch.float16)):

        def report(module: None, function: None, name: str, files: dict[str, str], _: str, label: str = label) -> None:
            print(json.dumps({"capability": capability, "call": label, "kernel": name, **resources(files)}))

        triton.knobs.runtime.kernel_load_end_hook = report
        call()


def resources(files: dict[str, str]) -> dict[str, Any]:
    """A thread's registers and bytes of stack (spilled registers), bytes of shared memory, and notable instructions."""
    metadata, cubin, ptx, tiles = (
        Path(next(path for name, path in files.items() if name.endswith(kind)))
        for kind in (".json", ".cubin", ".ptx", ".ttgir")
    )
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    compiled, text = json.loads(metadata.read_text()), ptx.read_text()
    return {
        "registers": used["REG"],
        "stack": used["STACK"],
        "shared": compiled["shared"],
        "warps": compiled["num_warps"],
        "products": sorted(set(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync)\S*\w", text))),
        "divisions": sorted(set(re.findall(r"\bdiv\.[\w.]*\w", text))),
        "loads_ahead": "cp.async" in text,
        "put_back": "ttg.local_alloc %" in tiles.read_text(),  # a tile that was computed, into shared memory
        "overlaps": compiled["launch_pdl"] and "griddepcontrol.wait" in text,
        "outstanding": sorted(set(re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x\d)", disassembled(cubin)))),
        "additions": len(re.findall(r"\badd\.(?:rn\.)?f32", text)),
    }


def disassembled(cubin: Path) -> str:
    command = [triton.knobs.nvidia.nvdisasm.path, "-c", str(cubin)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def empty(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def floats(*shape: int) -> Tensor:
    return empty(*shape, dtype=torch.float32)


def weight(form: str, k: int, n: int, bias: bool = False) -> Weight:
    b = floats(n) if bias else None
    if form == "int4":
        blocks = -(-k // BLOCK)
        codes, groups = empty(n, blocks, BLOCK // 2, dtype=torch.uint8), empty(n, 4 * blocks, dtype=torch.uint8)
        return Weight(form, codes, floats(n), groups, b)
    dtype = getattr(torch, form)
    return align(Weight(form, empty(n, k, dtype=dtype), floats(n) if dtype in LARGEST else None, None, b))


def tiled(
    device: Device, x: Tensor, w: Weight, activation: Activation = None, residual: Tensor | None = None
) -> Tensor:
    """By our tiles, whatever torch has."""
    tile = tile_by_rule(device, weight_type(w), len(x), inputs_of(w), len(w.weight))
    shares = Shares.of(device, torch.device("meta"))
    return linear(x, w, tile, Epilogue(torch.float16, activation, residual), shares)


def ints(m: int, k: int) -> QuantizedRows:
    return QuantizedRows(empty(m, k, dtype=torch.int8), floats(m, 1))


def other(device: Device, tile: Tile, form: str = "int8", k: int = 4096) -> Tensor:
    shares = Shares.of(device, torch.device("meta"))
    return linear(ints(tile.rows, k), weight(form, k, 4096), tile, Epilogue(torch.float16), shares)


def calls(ops: TritonOps) -> Iterator[tuple[str, Callable[[], object]]]:
    """The launches of a batch: each kind of kernel once, and the products of one picture if their tiles differ."""
    many, rows = BATCH * VISION, BATCH * DECODER
    eight, gain, narrow = [weight("int8", 16, 16)], floats(4096), floats(1024)
    yield "layer_norm", lambda: ops.layer_norm(empty(many, 1024), narrow, narrow, 1e-6)
    yield "layer_norm 8", lambda: ops.layer_norm_for(eight, empty(many, 1024), narrow, narrow, 1e-6)
    yield "rms_norm", lambda: ops.rms_norm(empty(rows, 4096), gain, gain, 65 * BATCH, 1e-6)
    yield "rms_norm 8", lambda: ops.rms_norm_for(eight, empty(rows, 4096), gain, gain, 65 * BATCH, 1e-6)
    yield "swiglu", lambda: ops.swiglu(empty(rows, 22016))
    yield "swiglu 8", lambda: ops.swiglu_for(eight, empty(rows, 22016))
    device, forms = ops.device, ["int8", "int4", "float16"]
    if device.capability >= FP8_SINCE:
        fp8 = [weight("float8_e4m3fn", 16, 16)]
        yield "layer_norm fp8", lambda: ops.layer_norm_for(fp8, empty(many, 1024), narrow, narrow, 1e-6)
        yield "rms_norm fp8", lambda: ops.rms_norm_for(fp8, empty(rows, 4096), gain, gain, 65 * BATCH, 1e-6)
        yield "swiglu fp8", lambda: ops.swiglu_for(fp8, empty(rows, 22016))
        forms.append("float8_e4m3fn")
    for form in forms:
        fc1, fc2 = weight(form, 1024, 4096, bias=True), weight(form, 4096, 1024, bias=True)
        yield f"fc1 {form}", lambda w=fc1: tiled(device, empty(many, 1024), w, "quick_gelu")
        yield f"fc2 {form}", lambda w=fc2: tiled(device, empty(many, 4096), w, None, empty(many, 1024))
        down = weight(form, 11008, 4096)
        for m in (rows,) if form == "float16" else (rows, DECODER, 1):
            yield f"down {form}, {m} rows", lambda w=down, m=m: tiled(device, empty(m, 11008), w, None, empty(m, 4096))
    for form in (form for form in forms if form != "int4"):
        fc1, fc2 = weight(form, 1024, 4096, bias=True), weight(form, 4096, 1024, bias=True)
        activated, added = Epilogue(torch.float16, "quick_gelu"), Epilogue(torch.float16, None, empty(many, 1024))
        yield f"fc1 {form} of torch", lambda w=fc1, e=activated: linear(empty(many, 1024), w, None, e)
        yield f"fc2 {form} of torch", lambda w=fc2, e=added: linear(empty(many, 4096), w, None, e)
    for form in (form for form in forms if form in ("int8", "float8_e4m3fn")):  # steps that are not all whole
        patch = weight(form, 588, 1024, bias=True)
        yield f"patch {form}", lambda w=patch: tiled(device, floats(many, 588), w)
    for form, batch in ((form, batch) for form in ("int8", "int4") for batch in (1, BATCH)):
        qkv, modal = weight(form, 4096, 20480), Modal(65 * batch, 4096)
        yield f"qkv {form} of {batch}", lambda b=batch, w=qkv, m=modal: ops.modal_linear(ints(77 * b, 4096), w, m)
    yield "int4 whose last block is not whole", lambda: other(device, Tile(80, 128, 128, 3, 4), "int4", 592)
    if device.capability == 90:  # the product that is used if Hopper's own refuses
        for tile in (Tile(128, 128, 128, 3, 4), Tile(128, 128, 128, 4, 8), Tile(16, 128, 128, 4, 4, 4)):
            yield f"int8 of Triton, {tile.warps} warps, {tile.rows} rows", lambda tile=tile: other(device, tile)
    pixels = empty(BATCH, 448, 448, 3, dtype=torch.uint8)
    for patch in (weight(form, 588, 1024) for form in ("int8", "int4")):
        yield f"patches {patch.name}", lambda w=patch: ops.patches_for(w, pixels, 14)
    yield "head", lambda: tiled(device, empty(BATCH, 4096), weight("float32", 4096, 5))
    kv, prefix, turns = (empty(65 * BATCH, 8192), empty(12 * BATCH, 8192)), floats(2, 15, 32, 128), floats(2, 77, 128)
    yield "attention_by_modality", lambda: ops.attention_by_modality(empty(rows, 4096), *kv, prefix, turns, BATCH)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(int(argument))
