"""`qalign-fast card`: an artifact's folder in, its page for the Hub out, and all of it on the Hub if asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qalign_fast.cli.console import remark
from qalign_fast.errors import OptionError


def card(
    artifact: Annotated[Path, typer.Argument(help="Artifact directory.", show_default=False)],
    push: Annotated[
        str | None, typer.Option(help="Upload it as the repository OWNER/NAME of the Hub.", show_default=False)
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: only its owners see it.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write also over files that were changed.")] = False,
) -> None:
    """Write an artifact's model card and the files that transformers loads it by; with --push, upload all to the Hub.

    They are README.md, config.json and modeling_qalign_fast.py. HF_TOKEN or `hf auth login` says who you are.
    """
    from qalign_fast.adapters import hub_repository

    if private and push is None:
        raise OptionError("--private is for --push OWNER/NAME")
    for name, is_ours in hub_repository.write_files(artifact, push, force=force).items():
        remark(f"{artifact / name}" if is_ours else f"{artifact / name}: kept as it is; --force writes it anew")
    if push is not None:
        print(hub_repository.push(artifact, push, private=private))
