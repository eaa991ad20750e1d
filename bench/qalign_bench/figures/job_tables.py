"""The table of the scenario `jobs`, and the lines below it."""

from __future__ import annotations

from qalign_bench.cli.session import Run
from qalign_bench.figures.report import Column, Results, names, number, percent, warnings


def _of_feed(run: Run) -> str:
    share = run["of_feed"]
    low, high = share["range"]
    return f"{percent(share['share'])} ({percent(low)}..{percent(high)})"


TABLES: list[list[Column]] = [
    [
        ("contestant", lambda run: str(run["contestant"])),
        ("pictures/s", lambda run: number(run["images_per_second"])),
        ("ms a picture", lambda run: number(run["ms_p50"])),
        ("of the feed", _of_feed),
        ("of it, ms", lambda run: ", ".join(f"{name} {number(ms, 2)}" for name, ms in run["stations_ms"].items())),
    ]
]


def lines(found: Results) -> list[str]:
    """Plans, resuming and hashes; who the contestants are; warnings."""
    said = names(found["runs"])
    if "resume_s" in found:
        size = found["plan_bytes"] / 1e6
        said += [
            f"{found['planned_names']:,} made-up names are planned in {found['plan_names_s']:.1f} s ({size:.1f} MB)",
            f"a job with that plan goes on after {found['resume_s']:.2f} s, until the first picture would be scored",
            f"a folder of {found['folder_files']:,} files is planned in {found['plan_folder_s']:.1f} s",
        ]
    if "hash_ms_per_picture" in found:
        said.append(f"a picture's content hash takes {number(found['hash_ms_per_picture'], 2)} ms of its process")
    return [*dict.fromkeys(said), *warnings(found)]
