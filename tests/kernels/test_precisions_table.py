"""The table of precisions agrees with the formulas, and with itself."""

from __future__ import annotations

import torch

from qalign_kernels.contract.precisions import PRECISIONS
from qalign_kernels.contract.quantized_rows import LARGEST


def test_what_stands_in_for_a_precision_is_one() -> None:
    for name, precision in PRECISIONS.items():
        assert precision.name == name
        assert {precision.nearest, precision.higher, precision.arithmetic or name} - {None} <= PRECISIONS.keys()


def test_dtypes_are_torchs_and_rows_are_rounded_to_what_the_contract_has() -> None:
    for precision in PRECISIONS.values():
        assert isinstance(getattr(torch, precision.weight), torch.dtype)
        assert isinstance(getattr(torch, precision.between), torch.dtype)
        assert precision.rounded == (getattr(torch, precision.rows or precision.weight) in LARGEST)


def test_a_linear_that_rounds_badly_ends_up_in_a_precision_that_does_not() -> None:
    for precision in PRECISIONS.values():
        steps = [precision]
        while steps[-1].higher:
            assert steps[-1].worst
            steps.append(PRECISIONS[steps[-1].higher])
        assert len(steps) < len(PRECISIONS)
        assert steps[-1].worst is None
