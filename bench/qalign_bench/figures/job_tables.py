"""The table of the scenario `jobs`, and the lines below it; and the tables of the studies of jobs."""

from __future__ import annotations

from qalign_bench.cli.session import Run
from qalign_bench.figures.report import Column, Results, cells, markdown_table, number, percent, warnings


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
    """What computes; plans, resuming and hashes; warnings."""
    kernels = dict.fromkeys(run["kernels"] for run in found["runs"])
    said = [f"all of them compute with {' and '.join(kernels)}"]
    if "resume_s" in found:
        size = found["plan_bytes"] / 1e6
        said += [
            f"{found['planned_names']:,} made-up names are planned in {found['plan_names_s']:.1f} s ({size:.1f} MB)",
            f"a job with that plan goes on after {found['resume_s']:.2f} s, until the first picture would be scored",
            f"a folder of {found['folder_files']:,} files is planned in {found['plan_folder_s']:.1f} s",
        ]
    if "hash_ms_per_picture" in found:
        said.append(f"a picture's content hash takes {number(found['hash_ms_per_picture'], 2)} ms of its process")
    return [*said, *warnings(found)]


def document(found: Results, file: str) -> str:
    """The scenario in a document."""
    said = "\n".join(f"- {line}." for line in lines(found))
    return f"{markdown_table(*cells(TABLES[0], found['runs']))}\n\n{said}\n\n{_receipt(found['runs'][0], file)}"


def memory(found: Results) -> str:
    """job_memory's cases."""
    header = ["pictures", "pictures/s", "peak memory of the job, MB", "with its processes, MB"]
    rows = [
        [
            f"{case['pictures']:,}",
            number(case["pictures"] / case["seconds"]),
            *(f"{case['peak_bytes'][of] / 1e6:.1f}" for of in ("main", "all")),
        ]
        for case in found["cases"]
    ]
    return f"{markdown_table(header, rows)}\n\n{_receipt(found, 'bench/results/job_memory.json')}"


def scale(found: Results) -> str:
    """job_scale's billion."""
    header = [
        "inputs of a shard",
        "shards",
        "plan GB",
        "plan's footer in memory, GB",
        "journal MB",
        "read in s",
        "rows GB",
    ]
    rows = [
        [
            f"{case['shard_size']:,}",
            f"{case['shards']:,}",
            *(number(case[name], 2) for name in ("plan_gb", "plan_open_memory_gb", "journal_mb", "journal_read_s")),
            number(case["output_gb"], 2),
        ]
        for case in found["a billion"]
    ]
    hours, written = (found["a billion"][0][name] for name in ("plan_hours", "write_hours"))
    most, rate = max(plan["inputs"] for plan in found["plans"]), found["rows"]["rows_per_second"]
    said = (
        f"A billion pictures, by what up to {most:,} took: one process plans them in {hours:.1f} hours and writes "
        f"their rows in {written:.1f} ({rate:,.0f} rows a second)."
    )
    return f"{markdown_table(header, rows)}\n\n{said}\n\n{_receipt(found, 'bench/results/job_scale.json')}"


def _receipt(found: Results, file: str) -> str:
    facts = found["environment"]
    return f"`{file}`: {facts['cpu']}, {facts['cores']} cores; {facts['date'][:10]}."
