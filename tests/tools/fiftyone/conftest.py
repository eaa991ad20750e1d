"""FiftyOne's folders in a temporary place, for these tests and for the programs that they start."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

HOME = tempfile.mkdtemp(prefix="fiftyone-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)

# FiftyOne reads them when it is imported, and keeps its database, its models and its plugins below
os.environ["HOME"] = HOME
os.environ["FIFTYONE_DO_NOT_TRACK"] = "true"
os.environ["FIFTYONE_SHOW_PROGRESS_BARS"] = "false"
os.environ["FIFTYONE_MODEL_ZOO_DIR"] = f"{HOME}/models"
os.environ["FIFTYONE_PLUGINS_DIR"] = f"{HOME}/plugins"
