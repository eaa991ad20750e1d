"""What jobs need beside the base, imported in one place: what is missing is told in one line. The extra is `jobs`."""

from __future__ import annotations

from qalign_fast.errors import MissingExtraError

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from filelock import FileLock, Timeout
    from pebble import ProcessExpired, ProcessPool
except ModuleNotFoundError as missing:
    raise MissingExtraError(f"jobs need more packages: pip install 'qalign-fast[jobs]' ({missing})") from missing

__all__ = ["FileLock", "ProcessExpired", "ProcessPool", "Timeout", "pa", "pq"]
