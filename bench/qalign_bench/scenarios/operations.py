"""`operations`: every operation of the model at its true shapes, ours beside its contract and a library; interleaved.

The largest difference from the contract stands beside the time, for a fast result must also be right.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from qalign_bench.cli.session import Run, Session
from qalign_bench.contestants.matrix_products import onnxruntime_product
from qalign_bench.figures.runs import new_run, of_times
from qalign_bench.figures.spread import median
from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_kernels.contract.operations import Operations
from qalign_kernels.contract.ops import PLAIN
from qalign_kernels.contract.weight import Weight
from qalign_kernels.cpu.ops import load_native

Form: TypeAlias = Callable[[], object]  # a library's bare product gives no tensor to compare
_ROUNDS = 7
_LONG = 0.5  # seconds: what takes longer is run fewer times, but three times at least
_REST = 0.02  # seconds: the threads of the form before still look for work for a while


@dataclass(frozen=True)
class Case:
    """One operation at one shape: what computes it, by name, the contract first, and its arithmetic."""

    name: str
    forms: Mapping[str, Form]
    flop: int


def measure(session: Session) -> None:
    """Leaves a run for every operation and form."""
    config = session.models()[0].config
    native = load_native(session.options.instruction_set, threads=session.options.threads)
    forms: dict[str, Operations] = {PLAIN.name: PLAIN, **({native.name: native} if native else {})}
    cases = list(_cases(config, forms))
    rounds = session.options.repeat or _ROUNDS
    session.facts |= {"model": f"operations of {session.facts['model']}", "rounds": 0, "of_rounds": rounds}
    session.facts["together"] = True
    for i, case in enumerate(cases):
        session.progress(i, len(cases), case.name)
        session.runs += _runs(session, case, rounds)
        session.noise.sample()
    session.facts["rounds"] = rounds


def _runs(session: Session, case: Case, rounds: int) -> Iterator[Run]:
    times: dict[str, list[float]] = defaultdict(list)
    results = {name: form() for name, form in case.forms.items()}  # warms up, too
    for turn in range(rounds):
        for name, form in case.forms.items():
            if turn >= 3 and median(times[name]) > 1e3 * _LONG:
                continue
            time.sleep(_REST)
            started = time.perf_counter()
            form()
            times[name].append(1e3 * (time.perf_counter() - started))
    contract = next(iter(results.values()))
    for name, result in results.items():
        ready = {"name": name, "device": "cpu", "precision": None, "engine": None, "kernels": None}
        gflop = 1e-9 * case.flop
        yield new_run(session, name, ready | {"weights_bytes": None, "load_s": None, "versions": {}}, is_peer=False) | {
            "operation": case.name,
            "ms_of": "a call",
            **of_times(times[name], times[name], 1),
            "images_per_second": None,
            "images_per_second_range": None,
            "gflop_per_second": 1e3 * gflop / median(times[name]) if gflop else None,
            "largest_difference": _difference(result, contract),
        }


def _difference(result: object, contract: object) -> float | None:
    """The largest difference as a share of the contract's largest number; None where there is no tensor to compare."""
    if not isinstance(result, Tensor) or not isinstance(contract, Tensor):
        return None
    return float((result - contract).abs().max() / contract.abs().max())


def _cases(config: ModelConfig, forms: Mapping[str, Operations]) -> Iterator[Case]:
    """The operations of one picture, with the rows of a batch of one."""
    torch.manual_seed(0)
    vision, decoder = config.vision, config.decoder
    rows = config.abstractor.tokens + 12  # the suffix of the quality prompt
    for name, m, k, n in (
        ("vision qkv", vision.tokens, vision.width, 3 * vision.width),
        ("vision fc1", vision.tokens, vision.width, vision.mlp),
        ("vision fc2", vision.tokens, vision.mlp, vision.width),
        ("decoder q", rows, decoder.width, decoder.width),
        ("decoder gate_up", rows, decoder.width, 2 * decoder.mlp),
        ("decoder down", rows, decoder.mlp, decoder.width),
        ("decoder down, last row", 1, decoder.mlp, decoder.width),
    ):
        yield _int8_linear(f"{name}, int8 {m} x {k} x {n}", m, k, n, forms)
    for name, m, k, n in (
        ("vision fc1", vision.tokens, vision.width, vision.mlp),
        ("vision fc2", vision.tokens, vision.mlp, vision.width),
        ("decoder gate_up", rows, decoder.width, 2 * decoder.mlp),
        ("decoder down", rows, decoder.mlp, decoder.width),
    ):
        yield _fp32_linear(f"{name}, fp32 {m} x {k} x {n}", m, k, n, forms)
    yield _attention(vision.tokens, vision.heads, vision.width, forms)
    x, gain, bias = torch.randn(vision.tokens, vision.width), torch.randn(vision.width), torch.randn(vision.width)
    yield _each("vision layer norm", forms, lambda ops: ops.layer_norm(x, gain, bias, vision.eps), 0)
    y, visual, text = (torch.randn(*shape, decoder.width) for shape in ((rows,), (), ()))
    split = config.abstractor.tokens
    yield _each("decoder RMS norm", forms, lambda ops: ops.rms_norm(y, visual, text, split, decoder.eps), 0)
    both = torch.randn(rows, 2 * decoder.mlp)
    yield _each("decoder swiglu", forms, lambda ops: ops.swiglu(both), 0)


def _each(name: str, forms: Mapping[str, Operations], call: Callable[[Operations], Tensor], flop: int) -> Case:
    return Case(name, {form: lambda ops=ops: call(ops) for form, ops in forms.items()}, flop)  # type: ignore[misc]


def _int8_linear(name: str, m: int, k: int, n: int, forms: Mapping[str, Operations]) -> Case:
    x, scale = torch.randn(m, k), torch.rand(n) / k
    weight = Weight(name, torch.randint(-127, 128, (n, k), dtype=torch.int8), scale)
    case = _each(name, forms, lambda ops: ops.linear(x, weight), 2 * m * k * n)
    wide, dense = x.bfloat16(), (weight.weight * scale.unsqueeze(1)).bfloat16()
    peers = {"torch bf16": lambda: F.linear(wide, dense).float(), **_onnxruntime("int8", m, k, n)}
    return Case(name, {**case.forms, **peers}, case.flop)


def _fp32_linear(name: str, m: int, k: int, n: int, forms: Mapping[str, Operations]) -> Case:
    x, weight = torch.randn(m, k), Weight(name, torch.randn(n, k) / k)
    case = _each(name, forms, lambda ops: ops.linear(x, weight), 2 * m * k * n)
    return Case(name, {**case.forms, **_onnxruntime("fp32", m, k, n)}, case.flop)


def _onnxruntime(precision: str, *shape: int) -> dict[str, Form]:
    """onnxruntime's bare product. In int8 it is u8 x s8 into whole numbers, of rows that are already rounded."""
    if not find_spec("onnxruntime"):
        return {}
    return {f"onnxruntime {precision}": onnxruntime_product(precision, (shape[0], shape[1], shape[2]))}


def _attention(tokens: int, heads: int, width: int, forms: Mapping[str, Operations]) -> Case:
    q, k, v = (torch.randn(1, tokens, 3 * width) / 3).chunk(3, dim=-1)
    name, flop = f"vision attention, {heads} x {tokens} x {tokens}", 4 * tokens * tokens * width
    case = _each(name, forms, lambda ops: ops.attention(q, k, v, heads), flop)
    q16, k16, v16 = q.bfloat16(), k.bfloat16(), v.bfloat16()
    return Case(name, {**case.forms, "torch bf16": lambda: PLAIN.attention(q16, k16, v16, heads).float()}, flop)
