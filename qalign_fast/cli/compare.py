"""`qalign-fast compare`: two pictures in; both scores, and how likely the first is better, out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qalign_fast.cli.console import NoVerify, print_facts
from qalign_fast.records import printable

if TYPE_CHECKING:
    from qalign_fast.feed.items import Scored
    from qalign_fast.levels import Score


def compare(
    a: Annotated[str, typer.Argument(help="A picture or a clip.", show_default=False)],
    b: Annotated[str, typer.Argument(help="Another one.", show_default=False)],
    task: Annotated[str, typer.Option(help="As score's: quality, aesthetics, all.")] = "quality",
    model: Annotated[str | None, typer.Option(help="As score's.", show_default=False)] = None,
    api_key: Annotated[
        str | None,
        typer.Option(help="Of a server that asks for one.", show_default=False, envvar="QALIGN_API_KEY"),
    ] = None,
    device: Annotated[str, typer.Option(help="As score's: auto, cpu, cuda, mps.")] = "auto",
    engine: Annotated[str, typer.Option(help="As score's.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="Of a checkpoint, as score's.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
    no_verify: NoVerify = False,
) -> None:
    """Score two pictures, and give the probability that the first one's level is above the second one's.

    The two levels are taken to be independent, and a tie counts as half. The same picture twice gives 0.5.

    \b
    qalign-fast compare before.jpg after.jpg
    qalign-fast compare a.png b.png --model path/to/artifact --task all --json
    """
    from qalign_fast.feed.items import ClipOptions
    from qalign_fast.feed.remote.address import is_address
    from qalign_fast.scorer import Scorer
    from qalign_fast.sources import to_items

    key = (api_key or None) if is_address(model) else None
    with Scorer.load(
        model, device=device, precision=precision, engine=engine, verify=not no_verify, api_key=key
    ) as scorer:
        tasks = scorer.usual_tasks() if task == "all" else (task,)
        scorer.require(tasks)
        first, second = scorer.feed.run(to_items([a, b], ClipOptions()), tasks)
    found = {task: _of_task(first, second, task) for task in tasks}
    if json:
        print_facts({"a": a, "b": b, "tasks": found}, as_json=True)
    else:
        lines = {task: _line(facts) for task, facts in found.items()}
        print_facts({"A": printable(a), "B": printable(b)} | lines, as_json=False)


def _of_task(a: Scored[str], b: Scored[str], task: str) -> dict[str, Any]:
    """Raises the error that a picture has."""
    from qalign_fast.levels import probability_better

    x, y = a.get()[task], b.get()[task]
    return {"a": _facts(x), "b": _facts(y), "probability_a_better": round(probability_better(x, y), 6)}


def _facts(score: Score) -> dict[str, Any]:
    return {"score": round(score.value, 4), "level": score.level}


def _line(facts: dict[str, Any]) -> str:
    a, b = (f"{name} {facts[key]['score']:.4f} ({facts[key]['level']})" for name, key in (("A", "a"), ("B", "b")))
    return f"{a}, {b}; A is better with probability {facts['probability_a_better']:.3f}"
