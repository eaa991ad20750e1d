"""`qalign-fast levels`: labels in, a list that Q-Align's training reads out, and what levels cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qalign_fast.cli.console import print_facts, remark
from qalign_fast.cli.output import Format, check_apart, choose_mode, write_output
from qalign_fast.evaluation.training_data.conversations import Medium, Task, Wording

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qalign_fast.evaluation.training_data.conversations import Entry
    from qalign_fast.evaluation.training_data.conversion import Conversion
    from qalign_fast.evaluation.training_data.labels import Labels


def levels(
    labels: Annotated[
        list[Path],
        typer.Argument(help="Labels as CSV, each file with a scale of its own; .json is taken as it is."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The list, a JSON file.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there.")] = False,
    name: Annotated[
        str | None, typer.Option(help="The column of names. Default: the first.", show_default=False)
    ] = None,
    label: Annotated[str | None, typer.Option(help="The column of labels. Default: mos.", show_default=False)] = None,
    low: Annotated[
        float | None, typer.Option(help="The scale's lowest label. Default: the file's own.", show_default=False)
    ] = None,
    high: Annotated[
        float | None, typer.Option(help="The scale's highest label. Default: the file's own.", show_default=False)
    ] = None,
    clip: Annotated[
        bool, typer.Option("--clip", help="Labels beyond --low or --high have the level of that end.")
    ] = False,
    lower_better: Annotated[
        bool | None,
        typer.Option(
            "--lower-better/--higher-better",
            help="Which labels are the best. A column of DMOS needs one of the two; else higher is better.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[Task, typer.Option(help="What people rated.")] = Task.quality,
    medium: Annotated[Medium, typer.Option(help="What they rated it of.")] = Medium.image,
    prefix: Annotated[str, typer.Option(help="The folder of the names, from that of the training data.")] = "",
    weight: Annotated[
        list[int] | None,
        typer.Option(min=1, help="How often a file's entries are in the list; once for each file.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Write the list that Q-Align's training reads from labels, and say what is lost by levels.

    \b
    qalign-fast levels koniq.csv --prefix koniq -o koniq.json
    qalign-fast levels live.csv --label dmos --lower-better --prefix live -o live.json
    qalign-fast levels mine.csv koniq.json live.json --weight 3 --weight 1 --weight 1 -o mix.json
    """
    from qalign_fast.evaluation.training_data.conversations import list_text

    weights = _weights(labels, weight)
    _check_scale(low, high, clip)
    choose_mode(output, Format.table, overwrite=overwrite, append=False)
    check_apart(output, labels)
    wording = Wording(task, medium, prefix)
    _check_given(labels, (name, label, low, high, lower_better))
    entries: list[Entry] = []
    facts: list[dict[str, Any]] = []
    for path, times in zip(labels, weights, strict=True):
        if _is_list(path):
            found, told = _take(path)
        else:
            found, told = _convert(path, name, label, low, high, clip, lower_better, wording)
        entries += found * times
        facts.append({"labels": str(path), "entries": len(found), "weight": times} | told)
    write_output(output, list_text(entries))
    _print({"output": str(output), "entries": len(entries), "lists": facts}, as_json=json)


def _weights(labels: Sequence[Path], weight: Sequence[int] | None) -> Sequence[int]:
    if weight and len(weight) != len(labels):
        found = f"{len(weight)} for {len(labels)} files"
        raise typer.BadParameter(f"{found}; expected one for each file, in their order", param_hint="--weight")
    return weight or [1] * len(labels)


def _check_scale(low: float | None, high: float | None, clip: bool) -> None:
    if clip and low is None and high is None:
        raise typer.BadParameter("labels go beyond --low or --high; give one of them", param_hint="--clip")
    for hint, end in (("--low", low), ("--high", high)):
        if end is not None and not abs(end) < float("inf"):
            raise typer.BadParameter(f"{end} is no label", param_hint=hint)
    if low is not None and high is not None and low >= high:
        raise typer.BadParameter(f"{low:g} is not below --high {high:g}", param_hint="--low")


def _check_given(labels: Sequence[Path], given: Sequence[Any]) -> None:
    if all(map(_is_list, labels)) and any(value is not None for value in given):
        hint = "--name, --label, --low, --high or --lower-better"
        raise typer.BadParameter("it is of labels in CSV, and there are none", param_hint=hint)


def _is_list(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _take(path: Path) -> tuple[list[Entry], dict[str, Any]]:
    """The entries of a list that is made already, and what to say of them."""
    from qalign_fast.evaluation.training_data.conversations import count_levels, read_entries
    from qalign_fast.levels import LEVELS

    entries = read_entries(path)
    counts = count_levels(entries)
    if others := [word for word in counts if word not in LEVELS]:
        remark(f"{path}: {sum(counts[word] for word in others)} answers are no level: {', '.join(others)}")
    return entries, {"levels": counts}


def _convert(
    path: Path,
    name: str | None,
    label: str | None,
    low: float | None,
    high: float | None,
    clip: bool,
    lower_better: bool | None,
    wording: Wording,
) -> tuple[list[Entry], dict[str, Any]]:
    """The entries of a file of labels, and what to say of them."""
    from qalign_fast.evaluation.training_data.conversations import make_entries
    from qalign_fast.evaluation.training_data.conversion import convert
    from qalign_fast.evaluation.training_data.labels import read_labels

    found = read_labels(path, name, label)
    if lower_better is None and found.may_fall:
        what = f"{path}: column {found.column!r} may rise or fall with quality"
        raise typer.BadParameter(f"{what}; give --lower-better or --higher-better", param_hint="--label")
    made = convert(found, low, high, lower_better=bool(lower_better), clip=clip)
    _tell(path, found, made, low is None or high is None, wording)
    scale = {"low": made.low, "high": made.high, "lower_better": made.lower_better}
    return make_entries(found, made, wording), {
        "scale": scale,
        "levels": made.counts,
        "plcc": made.plcc,
        "srcc": made.srcc,
    }


def _tell(path: Path, labels: Labels, made: Conversion, own: bool, wording: Wording) -> None:
    """What a user should know of a file before he trains on it."""
    if own:
        remark(f"{path}: the scale goes from {made.low:g} to {made.high:g}, by its own labels; --low and --high set it")
    if missing := [word for word, count in made.counts.items() if not count]:
        remark(f"{path}: no label is {' or '.join(missing)}")
    clips = sum(name.endswith("mp4") for name in labels.names)
    if wording.medium is Medium.image and clips:
        remark(f"{path}: {clips} names end in mp4, which upstream's training reads as clips; --medium video asks so")
    if wording.medium is Medium.video and (others := len(labels.names) - clips):
        remark(f"{path}: {others} names do not end in mp4: upstream's training takes another entry in place of each")


def _print(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_facts(facts, as_json=True)
        return
    for each in facts["lists"]:
        shown: dict[str, Any] = {
            key: "none: all levels are the same" if value is None else value for key, value in each.items()
        }
        if shown.pop("weight") > 1:
            shown["entries"] = f"{each['entries']}, {each['weight']} times"
        if scale := shown.get("scale"):
            best = "lower is better" if scale["lower_better"] else "higher is better"
            shown["scale"] = f"{scale['low']:g} to {scale['high']:g}, {best}"
        print_facts(shown, as_json=False)
        print()
    print_facts({"output": facts["output"], "entries": facts["entries"]}, as_json=False)
