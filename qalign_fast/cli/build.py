"""`qalign-fast build`: compiles the C++ kernels, once for a machine."""

from __future__ import annotations

from qalign_fast.cli.console import remark
from qalign_fast.errors import MissingExtraError


def build() -> None:
    """Compile the C++ kernels for this machine's CPU, once: artifacts with torch weights then run on them."""
    from qalign_kernels.cpu import native

    try:
        path = native.build()
    except native.BuildError as error:
        raise MissingExtraError(str(error)) from error
    remark(f"built for: {', '.join(native.instruction_sets())}")
    remark(f"kernels: {native.describe(path)}")
    print(path)
