"""Ways to write an 8-bit linear in ONNX in, a table of milliseconds, GOPS and errors on onnxruntime's CPU provider out.

    python bench/studies/onnx_linear.py [--json bench/results/onnx_linear.json] [--quick]

Weights are int8, symmetric, with one scale for each output. Activations are 8-bit, symmetric, with one scale for each
row that is found at run time: s = max|row| / 127. The 4-bit and blocked forms are for comparison. Every form is checked
against numpy.
"""

import argparse
import json
import math
import os
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx

from qalign_bench.figures.environment import study_environment

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

Shape = tuple[int, int, int]  # T rows, K inputs, N outputs
VISION = ((1025, 1024, 3072), (1025, 1024, 1024), (1025, 1024, 4096), (1025, 4096, 1024))  # 32 x 32 patches + class
DECODER = ((77, 4096, 4096), (65, 4096, 8192), (12, 4096, 8192), (77, 4096, 22016), (77, 11008, 4096))
LAST_ROW = ((1, 4096, 22016), (1, 11008, 4096))
QUICK = ((1025, 1024, 1024), (12, 1024, 1024), (1, 1024, 1024))
CHECKED = 128  # outputs compared with numpy: enough to see a wrong form, and cheap in float64
BUDGET_MS = 2000  # for each form and shape; slow forms run fewer times

SCALE = (
    "high=ReduceMax<keepdims=1>(x,last) low=ReduceMin<keepdims=1>(x,last) neg=Neg(low) "
    "most=Max(high,neg,tiny) s=Div(most,c127) "
)
# one block as long as the row: this quantizer of rows runs on all threads and takes x of any rank
ROW_U8 = SCALE + "like=Shape(s) zp=Expand(z128,like) q=QuantizeLinear<axis=-1,block_size={K}>(x,s,zp) "
ROW_S8 = SCALE + "q=QuantizeLinear<axis=-1,block_size={K},output_dtype=3>(x,s) "
ROW_AXIS = ROW_U8.replace("keepdims=1", "keepdims=0").replace("axis=-1,block_size={K}", "axis=0")
CAST_SCALE = "f=Cast<to=1>(i) fs=Mul(f,s) "
NBITS = "r=com.microsoft.MatMulNBits<K={K},N={N},bits=%d,block_size=%d,accuracy_level=%d>(x,%s,%s) "


@dataclass(frozen=True)
class Form:
    """A graph body that ends in r (before the bias) or q. It must match numpy's result by `rule` and `weights`."""

    name: str
    body: str
    rule: str = "row"  # activations: float, row, tensor, the length of a block, or "" where nothing is compared
    weights: str = "w8"

    @property
    def quantizes_only(self) -> bool:
        """Whether the form only rounds rows and has no product."""
        return "r=" not in self.body


FORMS = (
    Form("fp32 MatMul", "r=MatMul(x,wf)", "float"),
    Form("u8s8 MatMulInteger, Cast, Mul, Mul", ROW_U8 + "i=MatMulInteger(q,w,z128) " + CAST_SCALE + "r=Mul(fs,ws)"),
    # onnxruntime itself fuses this one into MatMulIntegerToFloat, with its bias, which is then scaled by s
    Form(
        "u8s8 MatMulInteger, Cast, Mul(s x ws)",
        ROW_U8 + "i=MatMulInteger(q,w,z128) f=Cast<to=1>(i) sw=Mul(s,ws) r=Mul(f,sw)",
    ),
    Form(
        "u8s8 IntegerToFloat(scale 1), Mul", ROW_U8 + "f=com.microsoft.MatMulIntegerToFloat(q,w,one,ws,z128) r=Mul(f,s)"
    ),
    Form("u8s8 IntegerToFloat(scale s)", ROW_U8 + "r=com.microsoft.MatMulIntegerToFloat(q,w,s,ws,z128)"),
    # session.x64quantprecision=1 turns the form above into this one
    Form("u8u8 IntegerToFloat(scale s)", ROW_U8 + "r=com.microsoft.MatMulIntegerToFloat(q,wu,s,ws,z128,z128)"),
    Form("s8s8 MatMulInteger, Cast, Mul, Mul", ROW_S8 + "i=MatMulInteger(q,w) " + CAST_SCALE + "r=Mul(fs,ws)"),
    Form("DynamicQuantizeMatMul (per tensor)", "r=com.microsoft.DynamicQuantizeMatMul(x,w,ws)", "tensor"),
    Form("NBits 8, block 128, level 4", NBITS % (8, 128, 4, "n8", "s128"), "128"),
    Form("NBits 4, block 128, level 4", NBITS % (4, 128, 4, "n4", "s128"), "128", "w4"),
    Form("NBits 4, block 32, level 4", NBITS % (4, 32, 4, "n4b", "s32"), "32", "w4"),
    Form("NBits 4, block 128, level 1", NBITS % (4, 128, 1, "n4", "s128"), "float", "w4"),
    Form("NBits 4, block 128, level 0", NBITS % (4, 128, 0, "n4", "s128"), "float", "w4"),
    Form("only: row quantize, one block", ROW_U8),
    Form("only: row quantize, axis 0", ROW_AXIS),
    Form("only: row quantize, Div, QuantizeLinear", SCALE + "d=Div(x,s) q=QuantizeLinear(d,one,z128)"),
    Form("only: row quantize, Div, Round, Add, Cast", SCALE + "d=Div(x,s) n=Round(d) p=Add(n,c128) q=Cast<to=2>(p)"),
    Form("only: Cast, Mul, Mul", "f=Cast<to=1>(acc) fs=Mul(f,rows) r=Mul(fs,ws)", ""),
    Form("only: Mul", "r=Mul(facc,rows)", ""),
)


@dataclass(frozen=True)
class Row:
    """One form at one shape. `quartiles_ms` is the spread, `error` the largest difference over the result's RMS."""

    shape: Shape
    form: str
    median_ms: float
    quartiles_ms: tuple[float, float]
    best_ms: float
    runs: int
    gops: float
    error: float | None

    def __str__(self) -> str:
        error = "" if self.error is None else f"{self.error:.0e}"
        gops = "" if self.form.startswith("only") else f"{self.gops:.0f}"
        low, high = self.quartiles_ms
        shape = " x ".join(map(str, self.shape))
        times = f"{self.median_ms:.2f} | {low:.2f}..{high:.2f} | {self.best_ms:.2f}"
        return f"| {shape} | {self.form} | {times} | {gops} | {error} |"


def measure(shape: Shape, rounds: int) -> Iterator[Row]:
    """All forms at one shape, interleaved, so that other work on the machine slows all of them."""
    const, fed, bias = constants(*shape[1:]), inputs(*shape), shape in VISION
    values = {name: ort.OrtValue.ortvalue_from_numpy(v) for name, v in fed.items()}
    sessions = [session(form, *shape[1:], const, bias) for form in FORMS]
    errors = [error(form, s.run(None, feed(s, fed))[0], fed["x"], const, bias) for form, s in zip(FORMS, sessions)]
    times: list[list[float]] = [[] for _ in FORMS]
    for order in np.random.default_rng(2).permuted([range(len(FORMS))] * rounds, axis=1):
        for i in order:  # another order each time, for the form before decides what the caches hold
            if len(times[i]) < 5 or sum(times[i]) < BUDGET_MS:
                times[i].append(milliseconds(sessions[i], feed(sessions[i], values)))
    for form, taken, err in zip(FORMS, times, errors):
        low, median, high = statistics.quantiles(taken, n=4)
        yield Row(shape, form.name, median, (low, high), min(taken), len(taken), 2e-6 * math.prod(shape) / median, err)


def milliseconds(s: ort.InferenceSession, values: dict) -> float:
    """The time of one run. Its output stays in onnxruntime, so no copy to numpy is timed."""
    began = time.perf_counter()
    s.run_with_ort_values(None, values)
    return 1000 * (time.perf_counter() - began)


def feed(s: ort.InferenceSession, values: dict) -> dict:
    """Those of the values that this session takes."""
    return {i.name: values[i.name] for i in s.get_inputs()}


def constants(k: int, n: int) -> dict[str, np.ndarray]:
    """The initializers that a form may use, by their names."""
    rng = np.random.default_rng(0)
    w = rng.integers(-127, 128, (k, n), dtype=np.int8)
    ws = rng.uniform(0.5e-3, 1.5e-3, n).astype(np.float32)
    wu = (w.astype(np.int16) + 128).astype(np.uint8)
    nibbles = rng.integers(0, 256, (n, k // 2), dtype=np.uint8)
    scalars = {"one": 1.0, "c127": 127.0, "c128": 128.0, "tiny": 1e-30}
    bias = rng.standard_normal(n, dtype=np.float32)
    n8 = np.ascontiguousarray(wu.T).reshape(n, k // 128, 128)
    values = {"w": w, "wu": wu, "wf": w * ws, "ws": ws, "bias": bias, "last": np.array([-1]), "z128": np.uint8(128)}
    blocks = {"n8": n8, "n4": nibbles.reshape(n, k // 128, 64), "n4b": nibbles.reshape(n, k // 32, 16)}
    scales = {f"s{block}": np.repeat(ws, k // block).reshape(n, -1) for block in (32, 128)}
    floats = {name: np.float32(v) for name, v in scalars.items()}
    return {name: np.asarray(v) for name, v in (values | blocks | scales | floats).items()}


def inputs(t: int, k: int, n: int) -> dict[str, np.ndarray]:
    """x [T, K] with outlying channels, as a decoder has them, and the inputs of epilogues that are measured alone."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((t, k), dtype=np.float32)
    x[:, ::97] *= 20
    acc = rng.integers(-(2**20), 2**20, (t, n), dtype=np.int32)
    return {"x": x, "acc": acc, "facc": acc.astype(np.float32), "rows": rng.random((t, 1), dtype=np.float32)}


def session(form: Form, k: int, n: int, const: dict[str, np.ndarray], bias: bool) -> ort.InferenceSession:
    """A session of the form. Its constants are inside the model, for onnxruntime packs only constant weights."""
    end = "" if form.quantizes_only else " y=Add(r,bias)" if bias else " y=Identity(r)"
    body = form.body.replace("{K}", str(k)).replace("{N}", str(n)) + end
    words = set(re.findall(r"\w+", body))
    types = {"x": f"float[T,{k}]", "acc": f"int32[T,{n}]", "facc": f"float[T,{n}]", "rows": "float[T,1]"}
    ins = ",".join(f"{kind} {name}" for name, kind in types.items() if name in words)
    out = f"uint8[T,{k}] q" if form.quantizes_only else f"float[T,{n}] y"
    opsets = '<ir_version:10,opset_import:["":21,"com.microsoft":1]>'
    model = onnx.parser.parse_model(f"{opsets} g({ins})=>({out}){{ {body} }}")
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, name) for name, v in const.items() if name in words)
    options = ort.SessionOptions()
    options.use_per_session_threads = False  # else threads of idle sessions spin and slow the timed one
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def error(form: Form, y: np.ndarray, x: np.ndarray, const: dict[str, np.ndarray], bias: bool) -> float | None:
    """The largest difference from numpy over the first outputs, relative to their RMS."""
    if not form.rule:
        return None
    w = const["w"][:, :CHECKED].astype(np.float64)
    if form.weights == "w4":
        packed = const["n4"][:CHECKED].reshape(CHECKED, -1, 1)
        w = (np.concatenate([packed & 15, packed >> 4], -1).reshape(CHECKED, -1) - 8.0).T  # low nibble first
    expected = activations(x, form.rule)
    if form.quantizes_only:
        y = (y - 128.0) * (np.abs(x).max(-1, keepdims=True) / np.float32(127))
    else:
        expected = expected @ (w * const["ws"][:CHECKED]) + const["bias"][:CHECKED] * bias
    return float(np.abs(y[:, : expected.shape[1]] - expected).max() / np.sqrt((expected**2).mean()))


def activations(x: np.ndarray, rule: str) -> np.ndarray:
    """x rounded by the rule, in float64."""
    if rule == "float":
        return x.astype(np.float64)
    if rule == "tensor":  # DynamicQuantizeLinear
        scale = (x.max() - x.min()) / np.float32(255)
        zero = np.rint(-x.min() / scale)
        return np.asarray((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * np.float64(scale))
    groups = x.reshape(len(x), -1, x.shape[1] if rule == "row" else int(rule))
    most = np.abs(groups).max(-1, keepdims=True)
    # QuantizeLinear divides by the scale and MatMulNBits multiplies by its inverse, which differs near a tie
    levels = groups / (most / np.float32(127)) if rule == "row" else groups * (np.float32(127) / most)
    return np.asarray(np.rint(levels) * np.float64(most / np.float32(127))).reshape(x.shape)


def main() -> None:
    """Measures, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description="Which ONNX form of an 8-bit linear is fastest on this CPU.")
    parser.add_argument("--json", type=Path, help="also write the rows and the machine's facts into this file")
    parser.add_argument("--quick", action="store_true", help="three small shapes and few rounds")
    args = parser.parse_args()
    ort.set_global_thread_pool_sizes(os.cpu_count() or 1, 1)
    shapes, rounds = (QUICK, 7) if args.quick else (VISION + DECODER + LAST_ROW, 40)
    rows = [row for shape in shapes for row in measure(shape, rounds)]
    print("| T x K x N | form | ms | quartiles | best | GOPS | error |", "|---|---|" + "---:|" * 5, *rows, sep="\n")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        found = {"machine": study_environment(), "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
