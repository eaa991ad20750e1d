"""The backend's folder and the stand-in for label-studio-ml, where Python looks for modules; no network, no caches."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
HOME = tempfile.mkdtemp(prefix="label-studio-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)

sys.path[:0] = [str(HERE / "stand_in"), str(HERE.parents[2] / "integrations/label_studio")]
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])  # of the page's programs
os.environ["HOME"] = os.environ["XDG_CACHE_HOME"] = HOME  # where the SDK keeps what it has fetched
os.environ["LOCAL_FILES_DOCUMENT_ROOT"] = str(HERE.parents[2] / "samples")  # the SDK reads it when it is imported
