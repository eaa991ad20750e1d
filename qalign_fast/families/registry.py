"""A family's name, or a checkpoint's config.json, in; its `Family` out."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

from qalign_fast.families.family import Family

# A family's name -> the module that has it as FAMILY. A new family is a line here.
FAMILIES = {
    "mplug_owl2": "qalign_fast.families.mplug_owl2.family",
}
DEFAULT = "mplug_owl2"


def find_family(name: str) -> Family:
    """The family of that name. Raises KeyError for a name that no family has."""
    family: Family = import_module(FAMILIES[name]).FAMILY
    return family


def family_of_checkpoint(directory: Path, base: Path | None = None) -> Family:
    """The family that recognizes the directory's config.json, or that of its base if it is an adapter's without one.

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
            if (family := find_family(name)).recognizes(raw):
                return family
    return find_family(DEFAULT)
