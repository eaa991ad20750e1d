"""`python -m qalign_fast.cli`: the same as the console script."""

from qalign_fast.cli import main

main()
