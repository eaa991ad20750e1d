"""Libraries that stand in for CUDA's where there is no GPU: they allocate and copy in host memory, and compute nothing.

    python tests/support/stand_in_cuda/build.py OUT        where torch for CUDA is, and onnxruntime-gpu if wanted
    eval "$(cat OUT/environment)"                  then anything, with --device cuda

Results are garbage, for no kernel is run. But all that leads there is, on the real torch, Triton and onnxruntime: a
device is found, kernels are compiled and loaded, buffers bound, graphs captured, and onnxruntime says which operators
its CUDA provider takes. A wait, or a copy from or to the host, inside a capture is said on stderr. torch's attention
has to be kept off cuDNN: torch.backends.cuda.enable_cudnn_sdp(False). `bench/gpu.sh` runs, but for its tests, whose
numbers are wrong, and its profiles, which see nothing on the device. Needs gcc and nm; tried with torch 2.11.0 and
2.14.1 and onnxruntime-gpu 1.31.1, all for CUDA 13.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

SITE = Path(sysconfig.get_path("purelib"))
SOURCE = Path(__file__).with_name("cuda.c")
LINKED = re.compile(r" U (\w+)@(lib(?:cudart|cublas|cublasLt|cudnn))\.so\.(\d+)$", re.MULTILINE)
# looked up by name when they run: what looks like a function's in these files
BY_NAME = re.compile(r"\b(?:cu(?:Ctx|Device|Driver|Func|Get|Launch|Mem|Module|Occupancy|Pointer|Tensor)|cudnn)[A-Z]\w+")
CALLERS = ("libc10_cuda.so", "libtorch_cuda.so", "libonnxruntime_providers_cuda.so", "driver.c", "driver.py")
DEFINED = re.compile(r"^\w[\w ]*[ *](\w+)\([^;]*\{", re.MULTILINE)


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    found = wanted()
    for library, names in found.items():
        build(out / library, names)
    preload = ":".join(str(out.absolute() / library) for library in found)
    paths = f"LD_LIBRARY_PATH={out.absolute()} TRITON_LIBCUDA_PATH={out.absolute()}"
    (out / "environment").write_text(f"export LD_PRELOAD={preload} {paths}\n")


def wanted() -> dict[str, set[str]]:
    """By library, the functions that installed packages take from it."""
    names: dict[str, set[str]] = {"libcuda.so.1": set(), "libcudnn.so.9": set()}
    for path in SITE.rglob("*"):
        if ".so" in path.suffixes and path.is_file():
            listed = subprocess.run(["nm", "-D", "--undefined-only", path], capture_output=True, text=True, check=False)
            for name, library, version in LINKED.findall(listed.stdout):
                names.setdefault(f"{library}.so.{version}", set()).add(name)
        if path.name in CALLERS and path.is_file():
            for name in BY_NAME.findall(path.read_text("latin-1")):
                names["libcudnn.so.9" if name.startswith("cudnn") else "libcuda.so.1"].add(name)
    return names


def build(library: Path, names: set[str]) -> None:
    """Exports these alone, each under the version that a library of that name has."""
    written = SOURCE.read_text()
    rest = sorted(names - set(DEFINED.findall(written)))
    source, versions = library.with_name(f"{library.name}.c"), library.with_name(f"{library.name}.map")
    source.write_text(written + "".join(f"int {name}(void) {{ return 0; }}\n" for name in rest))
    listed = "".join(f"{name}; " for name in sorted(names))
    versions.write_text(f"{library.name} {{ global: {listed}local: *; }};\n")
    # of torch's own CUDA first: a device's properties lie otherwise in another's
    folders = [SITE / folder for folder in ("nvidia/cu13/include", "triton/backends/nvidia/include")]
    includes = [f"-I{folder}" for folder in folders]
    command = ["gcc", "-shared", "-fPIC", "-w", *includes, source, "-o", library, f"-Wl,-soname,{library.name}"]
    subprocess.run([*command, f"-Wl,--version-script={versions}"], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
