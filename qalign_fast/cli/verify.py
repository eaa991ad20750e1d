"""`qalign-fast verify`: checks an artifact's files, and its scores against its source's."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from qalign_fast.cli.console import Base, print_facts, remark, stdin_bytes
from qalign_fast.sources import find_paths


def verify(
    artifact: Annotated[Path, typer.Argument(help="Artifact directory.", show_default=False)],
    pictures: Annotated[
        list[str] | None, typer.Argument(help="Pictures to compare on. Default: bundled ones.", show_default=False)
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="What it was made from: compare scores, and write the report.", show_default=False),
    ] = None,
    base: Base = None,
    count: Annotated[int, typer.Option(min=2, help="How many of the bundled ones.")] = 104,
    max_delta: Annotated[
        float | None, typer.Option(help="Exit 6 if any score moved by more.", show_default=False)
    ] = None,
    min_srcc: Annotated[
        float | None, typer.Option(help="Exit 6 if the rank correlation is lower.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check an artifact: its files' hashes and, with --against, how far its scores are from its source's."""
    from qalign_fast.artifact.manifest import open_artifact

    if against is None:
        if pictures or base is not None or max_delta is not None or min_srcc is not None:
            raise typer.BadParameter(
                "pictures, --base, --max-delta and --min-srcc need --against", param_hint="--against"
            )
        remark(f"{artifact}: {len(open_artifact(artifact).manifest.files)} files match the manifest")
        return
    from qalign_export.fidelity import verify as compare

    chosen = find_paths(pictures or [], stdin_bytes())
    reports = compare(artifact, against, chosen, count=count, base=base)
    by_engine = {engine: asdict(report) for engine, report in reports.items()}
    facts = {key: {e: _shown(report[key]) for e, report in by_engine.items()} for key in next(iter(by_engine.values()))}
    print_facts(by_engine if json else facts, as_json=json)
    too_far = any(max_delta is not None and report.max_delta > max_delta for report in reports.values())
    if too_far or any(min_srcc is not None and report.srcc < min_srcc for report in reports.values()):
        remark("the artifact is further from its source than allowed")
        raise typer.Exit(6)


def _shown(value: Any) -> Any:
    """An interval for people."""
    return f"{value[0]:.4g} to {value[1]:.4g}" if isinstance(value, tuple) else value
