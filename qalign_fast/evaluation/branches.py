"""The pickle that FAST-VQA's and DOVER's test scripts write in, each branch's scores out, in the list's order.

A pickle can name any function, and reading it calls them. Here only those are found that rebuild numpy's arrays and
numbers; a file that names another is refused before anything of it runs.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qalign_fast.errors import RowsError, one_line

if TYPE_CHECKING:
    import numpy.typing as npt

_PARTS = frozenset(
    [
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
    ]
)
_MOST_BYTES = 1 << 28


def read_branches(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """A branch's name -> its scores [N]. Raises RowsError for a pickle of anything but named arrays of numbers."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise RowsError(f"{path}: more than {_MOST_BYTES} bytes, which no list's scores have")
        with path.open("rb") as file:
            found = _NumbersAlone(file).load()
        branches = found if isinstance(found, dict) else {"": found}
        return {str(name): _numbers(values) for name, values in branches.items()}
    except RowsError:
        raise
    except OSError as error:
        raise RowsError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # whatever a damaged pickle makes numpy raise
        expected = "expected arrays of numbers by branch, as FAST-VQA writes them"
        raise RowsError(f"{path}: {one_line(error)}; {expected}; a text of one score a line is read too") from error


class _NumbersAlone(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # numpy 1's name of it
        if (module, name) not in _PARTS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not run")
        return super().find_class(module, name)


def _numbers(values: Any) -> npt.NDArray[np.float64]:
    found = np.asarray(values)
    if found.ndim != 1 or found.dtype.kind not in "fiu":
        raise ValueError(f"{found.dtype} of shape {found.shape}")
    return found.astype(np.float64)
