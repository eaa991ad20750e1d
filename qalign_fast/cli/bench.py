"""`qalign-fast bench`: hands its arguments to qalign_bench."""

from __future__ import annotations

import typer

from qalign_fast.errors import MissingExtraError

# qalign_bench reads the options, --help among them
OPTIONS = {
    "add_help_option": False,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}


def bench(context: typer.Context) -> None:
    """Measure speed on this machine: latency, throughput, pipeline, operations, startup, pixels, server."""
    try:
        from qalign_bench.cli.arguments import app as measure
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"bench needs torch and onnx: pip install 'qalign-fast[bench]' ({error})") from error
    measure(context.args, prog_name="qalign-fast bench")
