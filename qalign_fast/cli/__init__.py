"""`qalign-fast`: the command line."""

from qalign_fast.cli.app import main

__all__ = ["main"]
