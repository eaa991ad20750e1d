"""A family's name, or a checkpoint's directory, in; its `Family` out."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

from qalign_fast.families.family import Family

# A family's name -> the module that has it as FAMILY. A new family is a line here. The first that recognizes a
# checkpoint has it, so mPLUG-Owl2 stands after those that share its trunk.
FAMILIES = {
    "compare2score": "qalign_fast.families.compare2score.family",
    "q_scorer": "qalign_fast.families.q_scorer.family",
    "mplug_owl2": "qalign_fast.families.mplug_owl2.family",
}
DEFAULT = "mplug_owl2"


def find_family(name: str) -> Family:
    """The family of that name. Raises KeyError for a name that no family has."""
    family: Family = import_module(FAMILIES[name]).FAMILY
    return family


def family_of_checkpoint(directory: Path, base: Path | None = None) -> Family:
    """The family that recognizes the directory by its config.json and its files.

    An adapter's config.json is its base's if it has none of its own.

    If none does, it is OneAlign's, whose reader then says what is missing.
    """
    if base is not None and not (directory / "config.json").is_file():
        directory = base
    try:
        raw = json.loads((directory / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        raw = None
    if isinstance(raw, dict):
        for name in FAMILIES:
            if (family := find_family(name)).recognizes(raw, directory):
                return family
    return find_family(DEFAULT)
