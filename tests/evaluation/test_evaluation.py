"""Counts, directions, what was published and when it is reproduced, and paired comparisons of two runs."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from qalign_fast.analysis.resampling import Bootstrap
from qalign_fast.errors import OptionError, RowsError
from qalign_fast.evaluation.evaluation import Evaluation, Resampling, against, evaluate
from qalign_fast.evaluation.lists.entries import KnownList, LabelList, Published
from qalign_fast.evaluation.lists.read import read_list
from qalign_fast.evaluation.outputs import result_json, to_pyiqa, write_evaluation
from qalign_fast.evaluation.page import make_page
from qalign_fast.evaluation.plots import draw_plots
from qalign_fast.evaluation.predictions import Predictions, ensemble
from qalign_fast.evaluation.protocols import PROTOCOLS
from qalign_fast.evaluation.scoring import folder_names

QUICK = Resampling(draws=200)
COUNT = 120


@pytest.fixture
def labels(tmp_path: Path) -> LabelList:
    dice = np.random.default_rng(0)
    mos = np.round(dice.uniform(1, 5, COUNT), 4)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"image": f"{i}.jpg", "gt_score": value} for i, value in enumerate(mos.tolist())]))
    return read_list(path)


def scores_near(labels: LabelList, spread: float, seed: int = 1) -> np.ndarray:
    mos = np.array([entry.label for entry in labels.entries])
    return np.clip(mos + spread * np.random.default_rng(seed).standard_normal(len(mos)), 1, 5)


def run_of(scores: np.ndarray, task: str = "quality-paper", name: str = "rows") -> Predictions:
    has = np.isfinite(scores)
    errors = tuple(None if one else "no such file" for one in has.tolist())
    levels = np.where(has, np.clip(5 - np.ceil(np.nan_to_num(scores)), 0, 4), -1).astype(int)
    return Predictions(name, {"name": "one-align", "precision": "int8"}, task, (1.0, 5.0), scores, levels, errors)


def known(labels: LabelList, srcc: float, plcc: float, **changed: object) -> LabelList:
    """The list as if it had been published with these figures."""
    its = (Published("OneAlign", "qalign", srcc, plcc, "a card"), Published("Other", "deqa", 0.5, 0.5, "a paper"))
    facts = {"count": COUNT, "medium": "image", "task": "quality", "lower_better": False, "low": 1.0, "high": 5.0}
    about = KnownList("mine", "Mine", sha256=(labels.sha256,), published=its, note="", forms=(), names="", **facts)
    about = replace(about, **changed)
    return replace(labels, known=about, name="mine", task="quality")


def figures(scores: np.ndarray, labels: LabelList) -> tuple[float, float]:
    mos = [entry.label for entry in labels.entries]
    return round(stats.spearmanr(scores, mos).statistic, 3), round(stats.pearsonr(scores, mos).statistic, 3)


def test_figures_are_scipys_and_have_intervals(labels: LabelList) -> None:
    scores = scores_near(labels, 0.5)
    found = evaluate(labels, run_of(scores), PROTOCOLS["qalign"], QUICK)
    srcc, plcc = figures(scores, labels)
    assert (round(found.srcc.value, 3), round(found.plcc.value, 3)) == (srcc, plcc)
    assert found.srcc.value == pytest.approx(found.agreement.srcc, abs=1e-12)
    assert found.srcc.low < srcc < found.srcc.high
    assert (found.expected, found.failed, found.srcc.units) == (COUNT, 0, COUNT)
    assert found.published == ()
    assert not found.reproduced


def test_what_failed_is_counted_and_left_out(labels: LabelList) -> None:
    scores = scores_near(labels, 0.5)
    some = scores.copy()
    some[::3] = np.nan
    found = evaluate(labels, run_of(some), PROTOCOLS["qalign"], QUICK)
    assert (found.expected, found.failed) == (COUNT, COUNT // 3)
    mos = np.array([entry.label for entry in labels.entries])
    kept = np.isfinite(some)
    assert found.agreement.srcc == pytest.approx(stats.spearmanr(scores[kept], mos[kept]).statistic, abs=1e-12)
    with pytest.raises(RowsError, match=r"no entry .* the first: no such file"):
        evaluate(labels, run_of(np.full(COUNT, np.nan)), PROTOCOLS["qalign"], QUICK)


def test_reproduced_needs_everything_to_match(labels: LabelList) -> None:
    scores = scores_near(labels, 0.4)
    published = known(labels, *figures(scores, labels))
    assert evaluate(published, run_of(scores), PROTOCOLS["qalign"], QUICK).reproduced

    def why(differs: LabelList = published, run: Predictions | None = None, protocol: str = "qalign") -> str:
        found = evaluate(differs, run or run_of(scores), PROTOCOLS[protocol], QUICK, "OneAlign")
        assert not found.reproduced
        assert found.published[0].model == "OneAlign"  # it is still shown beside ours
        return "; ".join(found.differences)

    like = replace(published, known=None, looks_like=published.known)
    assert why(like) == "Mine has other bytes, or other labels were chosen"
    nowhere = replace(like, looks_like=replace(like.looks_like, sha256=(), count=0))
    assert why(nowhere) == "Mine is known by no hash"
    srcc, plcc = figures(scores, labels)
    assert "120 entries have a score, not 121" in why(known(labels, srcc, plcc, count=COUNT + 1))
    missing = scores.copy()
    missing[0] = np.nan
    assert "119 entries have a score, not 120" in why(run=run_of(missing))
    assert "the prompt is that of quality, not of quality-paper" in why(run=run_of(scores, "quality"))
    other, unknown = replace(run_of(scores), model={"name": "deqa-score-mix3"}), replace(run_of(scores), model={})
    assert why(run=other) == "the model is deqa-score-mix3, not one-align"
    assert why(run=unknown) == "whether the model is one-align is not known"
    assert "by the protocol qalign" in why(protocol="pyiqa")
    assert "by the protocol qalign" in why(protocol="deqa")
    assert "SRCC is" in why(known(labels, srcc - 0.004, plcc))
    assert "PLCC is" in why(known(labels, srcc, plcc + 0.004))


def test_the_protocols_own_figure_is_compared_first(labels: LabelList) -> None:
    published = known(labels, 0.9, 0.9)
    found = evaluate(published, run_of(scores_near(labels, 0.4)), PROTOCOLS["deqa"], QUICK)
    assert [each.model for each in found.published] == ["Other", "OneAlign"]
    assert not any("by the protocol" in text for text in found.differences)
    one, two = (found.predictions, ensemble([found.predictions] * 2))
    told = [evaluate(published, run, PROTOCOLS["deqa"], QUICK).differences for run in (one, two)]
    assert ["the published figure is of an ensemble" in differences for differences in told] == [True, False]


def test_what_a_model_was_trained_on_is_told(labels: LabelList) -> None:
    scores = scores_near(labels, 0.4)
    for name, expected in (("koniq-test", True), ("livec", False), ("mine", None)):
        found = evaluate(known(labels, 0.9, 0.9, name=name), run_of(scores), PROTOCOLS["qalign"], QUICK)
        assert found.in_domain is expected is result_json(found)["in_domain"]
    assert evaluate(labels, run_of(scores), PROTOCOLS["qalign"], QUICK).in_domain is None


def test_labels_that_fall_with_quality_are_turned(labels: LabelList, tmp_path: Path) -> None:
    path = tmp_path / "dmos.json"
    path.write_text(json.dumps([{"image": each.name, "gt_score": 100 - each.label} for each in labels.entries]))
    scores = scores_near(labels, 0.4)
    falling = read_list(path, lower_better=True)
    found = evaluate(falling, run_of(scores), PROTOCOLS["qalign"], QUICK)
    expected = evaluate(labels, run_of(scores), PROTOCOLS["qalign"], QUICK)
    assert found.agreement.srcc == pytest.approx(expected.agreement.srcc, abs=1e-12)
    assert found.srcc.low == pytest.approx(expected.srcc.low, abs=1e-9)
    wrong = evaluate(read_list(path, lower_better=False), run_of(scores), PROTOCOLS["qalign"], QUICK)
    assert wrong.agreement.srcc == pytest.approx(-expected.agreement.srcc, abs=1e-12)
    assert any("direction" in note for note in wrong.notes)
    absolute = evaluate(read_list(path, lower_better=False), run_of(scores), PROTOCOLS["pyiqa"], QUICK)
    assert absolute.srcc.low < absolute.agreement.srcc < absolute.srcc.high
    assert absolute.agreement.srcc == pytest.approx(expected.agreement.srcc, abs=1e-12)


def test_source_units_widen_the_interval(labels: LabelList) -> None:
    """Entries of one reference err alike, as a bootstrap over entries would not know."""
    shift = np.repeat(np.random.default_rng(3).standard_normal(COUNT // 10), 10)
    scores = np.clip(scores_near(labels, 0.2) + 0.5 * shift, 1, 5)
    entries = tuple(replace(each, unit=f"ref{i // 10}") for i, each in enumerate(labels.entries))
    alone = evaluate(labels, run_of(scores), PROTOCOLS["qalign"], QUICK)
    together = evaluate(replace(labels, entries=entries), run_of(scores), PROTOCOLS["qalign"], QUICK)
    assert (alone.srcc.units, together.srcc.units) == (COUNT, COUNT // 10)
    assert together.srcc.high - together.srcc.low > 1.3 * (alone.srcc.high - alone.srcc.low)


def paired(labels: LabelList, spread: float) -> tuple[Evaluation, Predictions]:
    old = scores_near(labels, 0.4)
    new = np.clip(old + spread * np.random.default_rng(5).standard_normal(COUNT), 1, 5)
    return evaluate(labels, run_of(new, name="new"), PROTOCOLS["qalign"], QUICK), run_of(old, name="old")


def test_a_paired_comparison_is_picture_by_picture(labels: LabelList) -> None:
    found, other = paired(labels, 0.3)
    new, old = found.predictions.scores, other.scores
    change = against(found, other)
    mos = found.targets
    assert change.change.pairs == COUNT
    assert change.change.mean.value == pytest.approx((new - old).mean(), abs=1e-12)
    assert change.change.largest == pytest.approx(np.abs(new - old).max())
    flips = sum((old[i] - old[j]) * (new[i] - new[j]) < 0 for i in range(COUNT) for j in range(i)) / (
        COUNT * (COUNT - 1) / 2
    )
    assert change.change.rank_flips == pytest.approx(flips)
    before, after = (stats.spearmanr(scores, mos).statistic for scores in (old, new))
    assert change.srcc.value == pytest.approx(after - before, abs=1e-12)
    assert change.srcc.low < change.srcc.value < change.srcc.high < 0
    # paired: narrower than either one's own
    own = Bootstrap([str(i) for i in range(COUNT)], 200).srcc(new, mos)
    assert change.srcc.high - change.srcc.low < own.high - own.low
    written = result_json(found, change)["against"]
    assert written["srcc_change"] == change.srcc.value
    assert written["level_flips"] == change.change.level_flips


def test_the_same_scores_have_changed_nothing(labels: LabelList) -> None:
    found, _ = paired(labels, 0.0)
    change = against(found, found.predictions)
    assert (change.change.largest, change.change.rank_flips, change.change.level_flips) == (0, 0, 0)
    assert (change.srcc.value, change.srcc.low, change.srcc.high) == (0, 0, 0)


def test_levels_that_are_not_known_have_not_stayed_the_same(labels: LabelList) -> None:
    """Other projects' scores have no levels; "no level flipped" was said of them."""
    found, other = paired(labels, 0.1)
    unknown = np.full(COUNT, -1)
    assert against(found, replace(other, levels=unknown)).change.level_flips is None
    flipped = np.where(found.predictions.levels > 0, found.predictions.levels - 1, 1)
    flipped[COUNT // 2 :] = -1
    assert against(found, replace(other, levels=flipped)).change.level_flips == 1


def test_what_an_interval_is_worth_is_told(labels: LabelList) -> None:
    """Of few units, or of scores that are all equal, there is none, and the reader asks why."""
    scores = scores_near(labels, 0.4)

    def notes(labels: LabelList, scores: np.ndarray) -> str:
        return "; ".join(evaluate(labels, run_of(scores), PROTOCOLS["qalign"], QUICK).notes)

    def in_units(count: int) -> LabelList:
        entries = tuple(replace(each, unit=str(i % count)) for i, each in enumerate(labels.entries))
        return replace(labels, entries=entries)

    assert notes(labels, scores) == ""
    assert notes(in_units(2), scores) == "2 source units have a score; an interval needs 3"
    assert notes(in_units(5), scores) == "5 source units are few: the intervals are rough"
    assert "all 120 scores are equal" in notes(labels, np.full(COUNT, 3.0))


def test_a_model_of_which_nothing_was_published_is_told(labels: LabelList) -> None:
    """Its name was taken, and no published figure shown."""
    with pytest.raises(OptionError, match="no figures are known of 'onealign'; there are those of: OneAlign, "):
        evaluate(labels, run_of(scores_near(labels, 0.4)), PROTOCOLS["qalign"], QUICK, "onealign")


def test_pyiqas_table_has_a_column_for_each_of_two_lists_of_one_name(labels: LabelList) -> None:
    other = replace(labels, sha256="0" * 64)
    both = [
        evaluate(each, run_of(scores_near(labels, spread)), PROTOCOLS["qalign"], QUICK)
        for each, spread in ((labels, 0.2), (other, 0.9))
    ]
    head, row = (line.split(",") for line in to_pyiqa(both).splitlines())
    assert head[1:] == ["mine(PLCC/SRCC/KRCC)", "mine-2(PLCC/SRCC/KRCC)"]
    assert [float(cell.split("/")[1]) for cell in row[1:]] == [round(each.agreement.srcc, 4) for each in both]


def test_two_lists_never_share_a_folder() -> None:
    assert folder_names(["a", "a", "a-2", "a", "b/c", "b_c"]) == ["a", "a-2", "a-2-2", "a-3", "b_c", "b_c-2"]


@pytest.mark.parametrize("name", [b"n\xff", rb"a$\frac$", b"<b>&|`"])
def test_a_list_of_any_name_gives_results(tmp_path: Path, labels: LabelList, name: bytes) -> None:
    """Of bytes that are no UTF-8, or of what matplotlib takes for a formula; both ended in a traceback."""
    path = tmp_path / f"{os.fsdecode(name)}.json"
    rows = [
        {"image": each.name, "gt_score": each.label, "unit": f"$\\x{i % 12}$"} for i, each in enumerate(labels.entries)
    ]
    path.write_text(json.dumps(rows))
    found = evaluate(read_list(path), run_of(scores_near(labels, 0.4)), PROTOCOLS["qalign"], QUICK)
    plots = draw_plots(found)
    write_evaluation(found, plots, tmp_path / "out")
    assert json.loads((tmp_path / "out/result.json").read_text())["n_scored"] == COUNT
    assert "<b>" not in "".join(make_page([(found, None, plots)], "Evaluation")).replace("<bdi>", "")
    table = (tmp_path / "out/result.md").read_text("utf-8")
    assert table.count("\n") == 3
    assert "<b>" not in table


def test_runs_that_cannot_be_paired_are_told(labels: LabelList) -> None:
    found, other = paired(labels, 0.1)
    with pytest.raises(RowsError, match="other scales"):
        against(found, replace(other, scale=(0.0, 100.0)))
    with pytest.raises(RowsError, match="0 entries have a score in both"):
        against(found, replace(other, scores=np.full(COUNT, np.nan)))


def test_an_ensemble_can_be_better_than_its_members(labels: LabelList) -> None:
    runs = [run_of(scores_near(labels, 0.8, seed)) for seed in range(4)]
    both = evaluate(labels, ensemble(runs), PROTOCOLS["fastvqa"], QUICK)
    alone = [evaluate(labels, run, PROTOCOLS["fastvqa"], QUICK).agreement.srcc for run in runs]
    assert both.agreement.srcc > max(alone)
    assert both.predictions.scale is None
    assert result_json(both)["task"] == "quality-paper"
