"""data-juicer's caches lie in a folder that is gone after the tests: it looks where they are when it is imported."""

from __future__ import annotations

import os
import tempfile

_CACHES = tempfile.TemporaryDirectory(prefix="qalign-data-juicer-")  # deleted when the process ends
os.environ |= {"HF_HOME": _CACHES.name, "DATA_JUICER_CACHE_HOME": _CACHES.name}
