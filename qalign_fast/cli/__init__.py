"""The command line: `app` starts it, and each command has a file."""


def main() -> None:
    """The console script."""
    from qalign_fast.cli.app import main

    main()
