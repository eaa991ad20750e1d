"""A data set that the datasets library saved to disk: its folder in, its Arrow files out, in order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from qalign_fast.errors import OptionError


def is_saved_dataset(folder: str) -> bool:
    """Whether `save_to_disk` wrote it: one data set, or several splits."""
    if Path(folder, "dataset_dict.json").is_file():
        return True
    return Path(folder, "state.json").is_file() and Path(folder, "dataset_info.json").is_file()


def arrow_files(folder: str) -> Iterator[str]:
    """The files of every split, in order. Raises OptionError for a folder that is not as `save_to_disk` leaves it."""
    try:
        if (splits := Path(folder, "dataset_dict.json")).is_file():
            for split in json.loads(splits.read_text("utf-8"))["splits"]:
                yield from arrow_files(str(Path(folder, split)))
            return
        state = json.loads(Path(folder, "state.json").read_text("utf-8"))
        files = [str(Path(folder, file["filename"])) for file in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{folder}: not a data set as save_to_disk leaves it ({error!r})") from error
    if state.get("_indices_data_files"):
        raise OptionError(f"{folder}: rows are chosen by an index; save it again after ds.flatten_indices()")
    yield from files
