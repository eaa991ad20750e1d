"""The C++ kernels against their contracts, and the model on them.

Every instruction set is tested that this CPU runs, and ARM's under an emulator where one is installed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from qalign_export.rounding.quantizer import quantize
from qalign_fast.artifact.manifest import read_manifest
from qalign_fast.engines.load import load_engine
from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from qalign_kernels.contract.linear import pack_int4
from qalign_kernels.contract.ops import PLAIN
from qalign_kernels.contract.precisions import BLOCK, GROUP
from qalign_kernels.contract.weight import Weight
from qalign_kernels.cpu import native
from qalign_kernels.cpu.ops import NativeOps, load_native
from qalign_kernels.cpu.sources import this_machine
from support.emulated import ARM, X64, EmulatedTable, Program, build_program, build_stand_in, instructions
from support.goldens import FOLDERS, GOLDEN, Rounded, assert_goldens

# rows x inputs x outputs
LINEARS = [
    (1, 4096, 96),  # the last layer's one row
    (77, 1024, 40),  # one picture's decoder rows; columns that fill no panel
    (1025, 64, 70),  # one picture's vision rows
    (13, 11008, 32),  # the longest sum
    (35, 11008, 40),  # the same by pieces where few rows alone go another way, in several tiles
    (5, 588, 33),  # a patch: not a whole line of units
    (26, 592, 47),  # the same as float32's lines have it; columns of a second panel that lacks one
    (33, 31, 5),  # less than a line, an odd number of inputs
    (40, 160, 64),  # a block of 4-bit weights that is not full
    (3, 129, 17),  # a block that has one input, a panel that has one column
    (1, 1, 1),
    (77, 192, 64),  # what AMX multiplies across: five tiles of rows,
    (100, 128, 32),  # four and three,
    (20, 64, 32),  # two
]
# whole numbers, then floats
MULTIPLIES = {
    ARM: {
        "portable": {"fmla"},
        "neon_dotprod": {"sdot", "fmla"},
        "neon_i8mm": {"smmla", "fmla"},
        "neon_bf16": {"smmla", "bfmmla", "fmla"},
    },
    X64: {
        "portable": {"pmaddwd", "mulps"},
        "avx2": {"vpmaddwd", "vfmadd231ps"},
        "avxvnni": {"{vex}", "vfmadd231ps"},  # objdump's prefix of vpdpbusd
        "avx512vnni": {"vpdpbusd", "vfmadd231ps"},
        "avx512bf16": {"vpdpbusd", "vdpbf16ps", "vfmadd231ps"},
        "amx": {"tdpbsud", "tdpbssd", "tdpbf16ps", "vfmadd231ps"},
    },
}
ARM_SETS = list(native.instruction_sets(ARM))
STOOD_IN = [f"{name}, stood in for" for name in ("avxvnni", "avx512bf16", "amx")]
HERE = [*native.instruction_sets(), *(STOOD_IN if this_machine() == X64 else [])]
WEIGHTS = ["fp32", "fp16", "bf16", "fp8", "int8", "int4"]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, compiled: Callable[[str], Path]) -> Callable[[str], Program]:
    """The program of a machine's kernels, for its emulator."""
    return cache(lambda machine: build_program(tmp_path_factory.mktemp(machine), machine, compiled(machine)))


@pytest.fixture(scope="module")
def emulated(
    tmp_path_factory: pytest.TempPathFactory, programs: Callable[[str], Program]
) -> Iterator[Callable[[str], NativeOps]]:
    """ARM's operations, by the name of the instruction set."""
    program, folder = programs(ARM), tmp_path_factory.mktemp("shared")
    with ExitStack() as stack:
        yield cache(lambda name: NativeOps(stack.enter_context(EmulatedTable(program, name, folder))))


@pytest.fixture(scope="module")
def stood_in(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Callable[[str], Path]:
    """Libraries for instruction sets that this CPU need not have."""
    if load_native("avx512vnni", library_path=library) is None:
        pytest.skip("this CPU has no avx512vnni to stand in for them")
    return cache(lambda name: build_stand_in(tmp_path_factory.mktemp(name), name))


def of_this_cpu(request: pytest.FixtureRequest, library: Path) -> NativeOps:
    name, _, how = request.param.partition(", ")
    found = load_native(name, library_path=request.getfixturevalue("stood_in")(name) if how else library)
    return found or pytest.skip(f"this CPU has no {name}")


@pytest.fixture(params=HERE)
def ops_here(request: pytest.FixtureRequest, library: Path) -> NativeOps:
    """Operations on this CPU alone, for tests that an emulator takes too long for."""
    return of_this_cpu(request, library)


@pytest.fixture(params=[*HERE, *(f"{ARM} {name}" for name in ARM_SETS)])
def ops(request: pytest.FixtureRequest, library: Path) -> NativeOps:
    if request.param.startswith(ARM):
        return request.getfixturevalue("emulated")(request.param.split()[1])
    return of_this_cpu(request, library)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def weight_of(w: torch.Tensor, kind: str, bias: torch.Tensor | None) -> Weight:
    floats = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if kind in floats:
        return Weight(kind, w.to(floats[kind]), bias=bias)
    if kind == "fp8":  # which has no C++ kernel
        return Weight(kind, **quantize(w, "fp8"), bias=bias)
    if kind == "int8":
        return Weight(kind, **quantize(w, "int8"), bias=bias)
    return random_int4(*w.shape, bias)


def random_int4(n: int, k: int, bias: torch.Tensor | None) -> Weight:
    """Random codes, zero points and multipliers whose weights fit 8 bits, with zeros after the last input."""
    generator = torch.Generator().manual_seed(n + k)
    blocks = -(-k // BLOCK)
    codes = torch.randint(0, 16, (n, blocks * BLOCK), generator=generator)
    zero = torch.randint(0, 16, (n, blocks * BLOCK // GROUP), generator=generator)
    farthest = (codes.view(n, -1, GROUP) - zero.unsqueeze(-1)).abs().amax(-1).clamp_min(1)
    multiplier = torch.randint(1, 17, zero.shape, generator=generator).minimum(127 // farthest)
    codes[:, k:] = 0
    scale = torch.rand(n, generator=generator) / (30 * k**0.5)
    return int4_of(codes, multiplier, zero, scale, bias)


def int4_of(
    codes: torch.Tensor, multiplier: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> Weight:
    weight, groups = pack_int4(codes.to(torch.uint8), multiplier, zero)
    return Weight("int4", weight, scale, groups, bias)


def off_by(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest magnitude."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("shape", LINEARS, ids=str)
def test_linears_are_the_contracts(ops: NativeOps, shape: tuple[int, int, int], kind: str) -> None:
    m, k, n = shape
    x, residual = random(m, k), random(m, n, seed=1)
    weight = weight_of(random(n, k) / k**0.5, kind, random(n))
    if kind in ("fp16", "bf16"):  # plain torch rounds the sum as well: the contract's sums are float32
        weight_32 = Weight(kind, weight.weight.float(), bias=weight.bias)
        found, expected = ops.linear(x, weight), PLAIN.linear(x.to(weight.weight.dtype).float(), weight_32)
    else:
        fused = {"activation": "quick_gelu", "residual": residual}
        found, expected = (o.linear(x, weight, **fused) for o in (ops, PLAIN))
    assert off_by(found, expected) < (1e-6 if kind in ("int8", "int4") else 1e-5)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("shape", LINEARS, ids=str)
def test_whole_numbers_are_the_contract_to_the_bit(ops: NativeOps, shape: tuple[int, int, int], kind: str) -> None:
    """Their sums are exact in any order, and the steps after them are rounded alike on every instruction set."""
    m, k, n = shape
    x, residual, weight = random(m, k), random(m, n, seed=1), weight_of(random(n, k) / k**0.5, kind, random(n))
    torch.testing.assert_close(
        ops.linear(x, weight, residual=residual), PLAIN.linear(x, weight, residual=residual), rtol=0, atol=0
    )


@pytest.mark.parametrize("inputs", [BLOCK, BLOCK - 33])  # the second: its last group has no input
def test_every_weight_that_4_bits_can_be_is_the_contracts(ops: NativeOps, inputs: int) -> None:
    """All codes in all four groups of a block, with every multiplier and zero point, one input at a time."""
    multiplier, zero = torch.meshgrid(torch.arange(1, 17), torch.arange(16), indexing="ij")
    multiplier, zero = (x.reshape(-1, 1) for x in (multiplier, zero))  # [256, 1]
    reach = 127 // multiplier
    codes = torch.arange(BLOCK) % 16
    codes = codes.expand(256, -1).maximum(zero - reach).minimum(zero + reach)
    groups = (x.expand(-1, BLOCK // GROUP) for x in (multiplier, zero))
    weight = int4_of(codes, *groups, torch.ones(256), None)
    found = ops.linear(torch.eye(inputs), weight)
    torch.testing.assert_close(found, ((codes - zero) * multiplier)[:, :inputs].T.float(), rtol=0, atol=0)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_of_4_bit_weights_are_the_contracts(ops: NativeOps, sign: int) -> None:
    n, k = 33, 11008
    code, zero = (14, 0) if sign > 0 else (0, 14)
    multiplier = torch.full((n, k // GROUP), 9)  # 9 · 14 = 126
    weight = int4_of(torch.full((n, k), code), multiplier, torch.full_like(multiplier, zero), torch.ones(n), None)
    x = torch.ones(2, k)
    x[1] = -1
    torch.testing.assert_close(ops.linear(x, weight), PLAIN.linear(x, weight), rtol=0, atol=0)
    assert abs(float(ops.linear(x, weight)[0, 0]) - sign * 126 * k) < 1


@pytest.mark.parametrize("kind", ["fp32", "int8", "int4"])
def test_a_result_larger_than_the_cache_is_the_contracts(ops_here: NativeOps, kind: str) -> None:
    x, residual, weight = random(1025, 64), random(1025, 1040), weight_of(random(1040, 64) / 8, kind, random(1040))
    found, expected = (o.linear(x, weight, residual=residual) for o in (ops_here, PLAIN))
    assert off_by(found, expected) < 1e-6


def test_float16_is_every_number_and_rounded_as_torch_does(ops: NativeOps) -> None:
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16)
    halves = bits.view(torch.float16)
    found = ops.linear(torch.ones(1, 1), Weight("fp16", halves[:, None]))[0]
    torch.testing.assert_close(found, halves.float(), rtol=0, atol=0, equal_nan=True)
    finite = halves[halves.isfinite()].float().sort().values[::7]
    between = (finite[1:] + finite[:-1]) / 2  # not one half: 7 apart
    ties = finite + 2.0 ** (torch.frexp(finite).exponent.clamp(min=-13) - 12)  # half a step up
    near = [ties.nextafter(torch.full((), to)) for to in (-torch.inf, torch.inf)]
    wide = torch.tensor([65519.9, 65520.0, 1e9, torch.inf, 1e-9, 1e-40, torch.nan])
    x = torch.cat((finite, between, ties, *near, wide, -wide))[:, None]
    found = ops.linear(x, Weight("fp16", torch.ones(1, 1, dtype=torch.float16)))
    torch.testing.assert_close(found, x.half().float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 4096), (1025, 1024), (7, 33), (2, 3, 2816)], ids=str)
def test_norms_and_swiglu_are_the_contracts(ops: NativeOps, shape: tuple[int, ...]) -> None:
    x, gain, bias = random(*shape) * 3 + 1, random(shape[-1]), random(shape[-1], seed=1)
    assert off_by(ops.layer_norm(x, gain, bias, 1e-5), PLAIN.layer_norm(x, gain, bias, 1e-5)) < 2e-6
    rows = x.flatten(0, -2)
    for split in (0, len(rows) // 2, len(rows)):
        arguments = rows, gain, bias, split, 1e-6
        assert off_by(ops.rms_norm(*arguments), PLAIN.rms_norm(*arguments)) < 2e-6
    both = torch.cat((x, -20 * x), dim=-1)
    assert off_by(ops.swiglu(both), PLAIN.swiglu(both)) < 2e-6


@pytest.mark.parametrize(
    ("batch", "queries", "keys", "heads", "width"),
    [
        (1, 141, 141, 2, 64),  # the vision tower's form
        (2, 64, 1089, 3, 64),  # the abstractor: queries, then features
        (3, 5, 5, 4, 8),  # a narrow model
        (1, 1, 33, 1, 24),
    ],
)
def test_attention_is_the_contract(ops: NativeOps, batch: int, queries: int, keys: int, heads: int, width: int) -> None:
    check_attention(ops, batch, queries, keys, heads, width)


def test_attention_of_a_picture_is_the_contract(ops_here: NativeOps) -> None:
    check_attention(ops_here, 1, 1025, 1025, 2, 64)


# whose attention, where it need not be exact, is in bfloat16 or in whole numbers of 16 bits
SHORT = ("native amx",)
WHOLE = ("native avxvnni", "native avx512vnni", "native avx512bf16")


def check_attention(ops: NativeOps, batch: int, queries: int, keys: int, heads: int, width: int) -> None:
    q, _, _ = (random(batch, queries, 3 * heads * width) / 3).chunk(3, dim=-1)  # a slice, as the model's are
    k, v = random(batch, keys, 2 * heads * width).chunk(2, dim=-1)
    limit = 1e-4 if ops.name == "native amx" else 1e-5
    expected = PLAIN.attention(q, k, v, heads)
    assert off_by(ops.attention(q, k, v, heads), expected) < limit
    rough = NativeOps(ops._table, exact=False).attention(q, k, v, heads)
    if ops.name not in SHORT:
        assert off_by(rough, expected) < (1e-3 if ops.name in WHOLE else 1e-5)
    else:  # at few queries AMX takes them as they are
        rounded = PLAIN.attention(*(x.bfloat16().float() for x in (q, k, v)), heads)
        assert min(off_by(rough, rounded), off_by(rough, expected)) < 4e-3


def test_attention_takes_16_bits_where_it_need_not_be_exact(ops_here: NativeOps) -> None:
    if ops_here.name not in SHORT + WHOLE:
        pytest.skip("its attention is in float32")
    q, k, v = (random(1, 1025, 3 * 128) / 3).chunk(3, dim=-1)
    found, exact = NativeOps(ops_here._table, exact=False).attention(q, k, v, 2), ops_here.attention(q, k, v, 2)
    assert not torch.equal(found, exact)
    rounded = PLAIN.attention(*(x.bfloat16().float() for x in (q, k, v)), 2)
    if ops_here.name in SHORT:  # weights of values are rounded, by half a step of 8 bits each
        assert off_by(found, rounded) < 2e-3
    else:  # several times nearer than bfloat16
        assert off_by(found, exact) < off_by(rounded, exact) / 4


@pytest.mark.parametrize("far", [1e-20, 1.0, 30.0, 1e4])
def test_attention_follows_scores_of_any_size(ops_here: NativeOps, far: float) -> None:
    """Keys fill several chunks. The largest score comes early for some queries and late for others."""
    q, k, v = random(1, 40, 64), random(1, 700, 64), random(1, 700, 64)
    k[:, ::97] *= far
    expected = PLAIN.attention(q.double(), k.double(), v.double(), 1).float()
    assert off_by(ops_here.attention(q, k, v, 1), expected) < (1e-3 if ops_here.name in SHORT else 1e-4)
    rough = NativeOps(ops_here._table, exact=False).attention(q, k, v, 1)
    assert off_by(rough, expected) < 0.05 if far <= 30 else rough.isfinite().all()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("batch", "visual", "text", "prefix", "heads", "width"),
    [
        (1, 65, 12, 15, 2, 128),  # a picture
        (2, 195, 12, 18, 2, 64),  # clips of three frames
        (3, 9, 5, 6, 4, 8),  # a narrow model
        (1, 0, 7, 0, 2, 16),  # a prefix on its own, while exporting
    ],
)
def test_attention_by_modality_is_the_contract(
    ops: NativeOps, batch: int, visual: int, text: int, prefix: int, heads: int, width: int, last: bool
) -> None:
    rows, wide = batch * (visual + text), heads * width
    arguments = (
        random(batch if last else rows, wide) / 3,
        random(batch * visual, 2 * wide),
        random(batch * text, 2 * wide, seed=1),
        random(2, prefix, heads, width),
        random(2, visual + text, width),
        batch,
    )
    assert off_by(ops.attention_by_modality(*arguments), PLAIN.attention_by_modality(*arguments)) < 1e-5


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_model_gives_the_goldens(ops_here: NativeOps, folder: str) -> None:
    assert_goldens(folder, ops_here)


@pytest.mark.parametrize("folder", ["narrow-112", "outlier-112"])  # narrow-448 takes half a minute
@pytest.mark.parametrize("name", ARM_SETS)
def test_the_model_gives_the_goldens_on_arm(emulated: Callable[[str], NativeOps], name: str, folder: str) -> None:
    assert_goldens(folder, emulated(name))


@pytest.mark.parametrize(
    ("machine", "cpu", "best"),
    [
        (ARM, "cortex-a72", "portable"),
        (ARM, "cortex-a76", "neon_dotprod"),
        (ARM, "max", "neon_bf16"),
        (X64, "Nehalem", "portable"),
        (X64, "Haswell", "avx2"),
    ],
)
def test_the_best_copy_that_a_cpu_runs_is_chosen(
    programs: Callable[[str], Program], machine: str, cpu: str, best: str
) -> None:
    assert programs(machine).best(cpu) == best


@pytest.mark.parametrize("machine", [ARM, X64])
def test_a_copy_multiplies_by_the_instructions_it_is_named_for(compiled: Callable[[str], Path], machine: str) -> None:
    """Compilers name features in different ways. A copy that misses one computes correctly, but slowly."""
    found = instructions(compiled(machine), machine)
    for name, wanted in MULTIPLIES[machine].items():
        assert not wanted - found[name], name


def test_the_model_runs_on_a_cpu_without_avx(programs: Callable[[str], Program], tmp_path: Path) -> None:
    """Code that the copies share uses no newer instructions: an emulator ends a program at an unknown instruction."""
    with EmulatedTable(programs(X64), "portable", tmp_path, cpu="Nehalem") as table:
        assert_goldens("narrow-112", NativeOps(table))


@pytest.mark.parametrize("name", ["the best", "amx, stood in for"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_batch_and_threads_change_no_bit(
    request: pytest.FixtureRequest, library: Path, rounded: Rounded, precision: str, name: str
) -> None:
    if name in STOOD_IN:
        library = request.getfixturevalue("stood_in")("amx")
    artifact = rounded("narrow-112", precision)
    tensors = load_file(artifact / read_manifest(artifact / "qalign.json").engines["torch"]["weights"])
    pixels = torch.from_numpy(np.load(GOLDEN / "narrow-112" / "expected.npz")["resized_uint8"])
    config, found = load_engine(artifact).config, []
    for threads in (1, 3):
        ops = load_native(threads=threads, library_path=library)
        assert ops is not None
        model = FoldedModel(config, tensors, ops)
        found += [model.encode(pixels), torch.cat([model.encode(one) for one in pixels.split(1)])]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


FORK = """
import os, sys, torch
from pathlib import Path
from qalign_kernels.cpu.ops import load_native
torch.set_num_threads(1)  # its own threads do not outlive a fork either
ops = load_native(threads=2, library_path=Path(sys.argv[1]))
x = torch.ones(64, 2048)
assert float(ops.swiglu(x).sum()) > 0
child = os.fork()
if child == 0:
    os._exit(0 if float(ops.swiglu(x).sum()) > 0 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_child_has_threads_of_its_own(library: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, str(library)], timeout=30, check=False)
    assert done.returncode == 0


def test_a_user_without_a_home_folder_has_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    assert not native.is_built()
    with pytest.raises(native.BuildError, match="XDG_CACHE_HOME"):
        native.build()


def test_a_compiler_that_is_missing_or_fails_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for compiler, said in (("no-such-compiler", "cannot be run"), ("false", "failed")):
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(native.BuildError, match=said) as caught:
            native.build(tmp_path / "kernels.so")
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
