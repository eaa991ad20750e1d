"""How much is tested: less of what takes long, unless QALIGN_FULL=1 asks for all."""

from __future__ import annotations

import os

FULL = bool(os.environ.get("QALIGN_FULL"))
