"""`python -m qalign_fast.cli`: the same as the console script."""

from qalign_fast.cli.app import main

main()
