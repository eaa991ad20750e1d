"""A Ray on this machine for a test: its processes listen on the loopback alone, and its files are gone afterwards."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TOKEN = secrets.token_hex(32)  # one for all of this process's tests, because Ray keeps the first that it sees


@contextmanager
def local_ray(cores: int, **options: Any) -> Iterator[Any]:
    """The module, after Ray was started with so many cores to count."""
    folder = tempfile.mkdtemp(prefix="qalign-ray-")  # short: Ray puts sockets below it
    ours = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_TOKEN": _TOKEN}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    import ray

    own: dict[str, Any] = {"_node_ip_address": "127.0.0.1", "_temp_dir": folder, "log_to_driver": False}
    try:
        ray.init("local", num_cpus=cores, include_dashboard=False, object_store_memory=100 << 20, **own, **options)
        yield ray
    finally:
        ray.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        for _ in range(50):  # Ray's last processes still write into it
            shutil.rmtree(folder, ignore_errors=True)
            if not Path(folder).exists():
                break
            time.sleep(0.1)
