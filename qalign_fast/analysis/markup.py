"""Text and numbers in, pieces of HTML and SVG out. Whatever a name holds, it stays text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from qalign_fast.levels import LEVELS
from qalign_fast.records import printable

LONGEST = 400  # characters of a name, a message or an option's value


def text(value: object) -> str:
    """Escaped for HTML, in one line: control characters, marks of direction and broken UTF-8 become escapes."""
    return escape(printable(str(value)))


def name(value: str | None) -> str:
    """A name of the user's: its direction does not touch what stands around it. Lines break behind slashes first."""
    if value is None:
        return '<i class="none">(none)</i>'
    return f"<bdi>{text(shorten(value)).replace('/', '/<wbr>')}</bdi>"


def shorten(value: str) -> str:
    """At most LONGEST characters of it: the middle is left out. A source may be a whole file as a data: URI."""
    if len(value) <= LONGEST:
        return value
    half = LONGEST // 2
    return f"{value[:half]} ... {len(value) - 2 * half} more ... {value[-half:]}"


def count(value: int) -> str:
    """12,345"""
    return f"{value:,}"


def score(value: float | None) -> str:
    """To three digits, as the page of the server shows it."""
    return "-" if value is None else f"{value:.3f}"


def percent(part: int, whole: int) -> str:
    """Of a whole; "-" of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def table(head: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]], caption: str) -> str:
    """A table of cells that are HTML. `head`: each column's title and class; the first one names the row."""
    titles = "".join(f'<th scope="col" class="{kind}">{text(title)}</th>' for title, kind in head)
    kinds = [kind for _, kind in head]
    lines = []
    for first, *rest in rows:
        cells = "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds[1:], rest, strict=True))
        lines.append(f'<tr><th scope="row" class="{kinds[0]}">{first}</th>{cells}</tr>\n')
    caption = f'<caption class="unseen">{text(caption)}</caption>'
    return f"<table>{caption}<thead><tr>{titles}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody></table>\n"


def histogram(counts: Sequence[int], label: str, scale: tuple[float, float], *, titled: bool = True) -> str:
    """Bars as wide as their place, from the lowest score on; each has the colour of its level."""
    most, (low, high) = max(counts, default=0) or 1, scale
    step = (high - low) / len(counts)
    bars = []
    for i, found in enumerate(counts):
        if not found:
            continue
        level = len(LEVELS) - 1 - i * len(LEVELS) // len(counts)
        tall = max(100 * found / most, 1)  # one picture among many is seen too
        title = f"<title>{low + i * step:.1f} to {low + (i + 1) * step:.1f}: {count(found)}</title>" if titled else ""
        shape = f'x="{i + 0.06:.2f}" y="{100 - tall:.2f}" width="0.88" height="{tall:.2f}"'
        bars.append(
            f'<rect class="level-{level}" {shape}>{title}</rect>' if title else f'<rect class="level-{level}" {shape}/>'
        )
    box = f'viewBox="0 0 {len(counts)} 100" preserveAspectRatio="none"'
    return f'<svg {box} role="img" aria-label="{text(label)}">{"".join(bars)}</svg>'


def shares(counts: Sequence[int], label: str) -> str:
    """One bar, cut into the levels' shares, the worst level first."""
    total, at, parts = sum(counts) or 1, 0.0, []
    for level in reversed(range(len(counts))):
        wide = 100 * counts[level] / total
        if wide:
            parts.append(f'<rect class="level-{level}" x="{at:.3f}" y="0" width="{wide:.3f}" height="10"/>')
        at += wide
    box = 'viewBox="0 0 100 10" preserveAspectRatio="none"'
    return f'<svg {box} role="img" aria-label="{text(label)}">{"".join(parts)}</svg>'
