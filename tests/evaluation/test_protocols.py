"""Each protocol's figures against those of its project's own code, which `protocol_figures.json` holds.

They were made by running, on predictions and labels that were drawn at random: of Q-Align `wa5` (iaa_eval.py) with
scipy's spearmanr and pearsonr; of DeQA-Score cal_plcc_srcc.py; of pyiqa correlation_coefficient.py, with the rounding
of benchmark_results.py; of FAST-VQA `rescale` (new_test.py) with scipy's functions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from qalign_fast.errors import OptionError
from qalign_fast.evaluation.ensembles import combine
from qalign_fast.evaluation.mapping import fit, match_spread
from qalign_fast.evaluation.protocols import PROTOCOLS, agree, correlated_values, find_protocol
from qalign_fast.families.mplug_owl2.prompts import TASKS
from qalign_fast.levels import score_of

CASES: dict[str, Any] = json.loads(Path(__file__).with_name("protocol_figures.json").read_text())["cases"]
EXACT = {"rel": 0, "abs": 1e-9}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CASES[request.param]


def labels_of(case: dict[str, Any]) -> np.ndarray:
    return np.array(case["labels"])


def test_q_aligns(case: dict[str, Any]) -> None:
    found = agree(PROTOCOLS["qalign"], np.array(case["unit"]), labels_of(case))
    assert found.srcc == pytest.approx(case["qalign"]["srcc"], **EXACT)
    assert found.plcc == pytest.approx(case["qalign"]["plcc"], **EXACT)
    assert found.correlated == "raw"


def test_a_score_on_1_to_5_has_the_same_correlations(case: dict[str, Any]) -> None:
    found = agree(PROTOCOLS["qalign"], np.array(case["five"]), labels_of(case))
    assert found.srcc == pytest.approx(case["qalign"]["srcc"], **EXACT)
    assert found.plcc == pytest.approx(case["qalign"]["plcc"], **EXACT)


def test_float32_scores_are_theirs_to_rounding(case: dict[str, Any]) -> None:
    ours = [score_of(np.array(row, np.float32), "quality").value for row in case["logits"]]
    np.testing.assert_allclose(ours, case["five"], atol=2e-6)


def test_deqas(case: dict[str, Any]) -> None:
    found = agree(PROTOCOLS["deqa"], np.array(case["five"]), labels_of(case))
    assert found.srcc == pytest.approx(case["deqa"]["srcc"], **EXACT)
    assert found.plcc == pytest.approx(case["deqa"]["plcc"], **EXACT)
    assert found.rmse_logistic4 == pytest.approx(case["deqa"]["rmse"], **EXACT)
    assert found.correlated == "logistic4(test-fit)"


def test_pyiqas(case: dict[str, Any]) -> None:
    found = agree(PROTOCOLS["pyiqa"], np.array(case["five"]), labels_of(case))
    for name in ("srcc", "plcc", "krcc"):
        assert abs(getattr(found, name)) == pytest.approx(abs(case["pyiqa_full"][name]), **EXACT)
        assert round(getattr(found, name), 4) == case["pyiqa"][name]
    assert found.rmse_raw == pytest.approx(case["pyiqa_full"]["rmse"], **EXACT)


def test_fast_vqas(case: dict[str, Any]) -> None:
    both = combine([np.array(case["five"]), np.array(case["second"])])
    found = agree(PROTOCOLS["fastvqa"], both, labels_of(case))
    for name in ("srcc", "plcc", "krcc"):
        assert getattr(found, name) == pytest.approx(case["fastvqa"][name], **EXACT)
    assert found.rmse_linear == pytest.approx(case["fastvqa"]["rmse"], **EXACT)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_labels_that_fall_with_quality_give_the_same_correlations(name: str) -> None:
    """With DMOS for MOS, and told so, every figure but the raw RMSE is the same."""
    case, protocol = CASES["curved"], PROTOCOLS[name]
    x, y = np.array(case["five"]), labels_of(case)
    rising, falling = agree(protocol, x, y), agree(protocol, x, 100 - y, lower_better=True)
    for figure in ("srcc", "plcc", "krcc", "rmse_linear", "rmse_logistic4"):
        assert getattr(falling, figure) == pytest.approx(getattr(rising, figure), abs=1e-6)
    assert falling.rmse_raw != pytest.approx(rising.rmse_raw, rel=1e-3)


def test_a_wrong_direction_is_told_even_where_a_sign_is_dropped_or_a_curve_turns_scores_around() -> None:
    case = CASES["plain"]
    x, y = np.array(case["five"]), labels_of(case)
    wrong = {name: agree(protocol, x, -y) for name, protocol in PROTOCOLS.items()}
    assert wrong["qalign"].srcc == pytest.approx(-case["qalign"]["srcc"], **EXACT)
    assert wrong["pyiqa"].srcc == pytest.approx(case["qalign"]["srcc"], **EXACT)
    assert wrong["deqa"].srcc == pytest.approx(agree(PROTOCOLS["deqa"], x, y).srcc, abs=1e-6)  # its curve falls
    assert any("hide it" in note for note in wrong["deqa"].notes)
    for name in PROTOCOLS:
        assert any("direction" in note for note in wrong[name].notes)
        assert not any("direction" in note for note in agree(PROTOCOLS[name], x, y).notes)


def test_the_curve_is_fitted_better_than_a_line(case: dict[str, Any]) -> None:
    x, y = np.array(case["five"]), labels_of(case)
    line = np.polyval(np.polyfit(x, y, 1), x)
    assert fit(x, y).name == "logistic4"
    assert np.mean((fit(x, y)(x) - y) ** 2) <= np.mean((line - y) ** 2) * 1.001


def test_a_fit_that_fails_falls_back_and_says_so() -> None:
    three = np.array([1.0, 2.0, 3.0])  # fewer than four parameters
    found = agree(PROTOCOLS["deqa"], three, np.array([1.0, 2.0, 2.5]))
    assert found.correlated == "logistic3(test-fit)"
    assert found.notes == ("the fit of logistic4 failed; logistic3 took its place",)
    two = agree(PROTOCOLS["deqa"], three[:2], np.array([1.0, 2.0]))
    assert two.correlated == "linear(test-fit)"
    assert len(two.notes) == 2
    assert two.plcc == pytest.approx(1)


def test_a_curve_that_cannot_be_found_becomes_the_best_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Optimal parameters not found")

    monkeypatch.setattr("scipy.optimize.curve_fit", lost)
    x, y = np.array(CASES["plain"]["five"]), labels_of(CASES["plain"])
    mapping = fit(x, y)
    slope, offset = np.polyfit(x, y, 1)
    assert mapping.failed == ("logistic4", "logistic3")
    assert mapping.parameters == pytest.approx((slope, offset))
    assert agree(PROTOCOLS["deqa"], x, y).plcc == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)


def test_what_cannot_be_correlated_is_none_and_never_nan() -> None:
    flat, rising = np.ones(5), np.arange(5.0)
    for x, y in ((flat, rising), (rising, flat)):
        for protocol in PROTOCOLS.values():
            found = agree(protocol, x, y)
            assert (found.srcc, found.plcc, found.krcc) == (None, None, None)
            assert all(np.isfinite(v) for v in (found.rmse_raw, found.rmse_linear, found.rmse_logistic4))
    one = agree(PROTOCOLS["qalign"], np.array([3.0]), np.array([4.0]))
    assert (one.srcc, one.rmse_raw) == (None, 1.0)


def test_what_intervals_are_drawn_from_is_what_was_correlated(case: dict[str, Any]) -> None:
    x, y = np.array(case["five"]), labels_of(case)
    for protocol in PROTOCOLS.values():
        drawn = correlated_values(protocol, x, y)
        assert stats.pearsonr(drawn, y).statistic == pytest.approx(agree(protocol, x, y).plcc, abs=1e-12)


def test_matching_gives_the_labels_mean_and_spread() -> None:
    x, y = np.array(CASES["plain"]["five"]), labels_of(CASES["plain"])
    assert (match_spread(x, y).mean(), match_spread(x, y).std()) == pytest.approx((y.mean(), y.std()))


def test_an_ensemble_is_over_entries_that_all_runs_scored() -> None:
    a, b = np.array([1.0, 2, 3, np.nan]), np.array([10.0, np.nan, 30, 40])
    both = combine([a, b])
    assert np.isnan(both).tolist() == [False, True, False, True]
    assert both[[0, 2]].tolist() == [-1, 1]
    assert np.isnan(combine([np.array([np.nan]), np.array([1.0])])).all()


def test_every_protocol_asks_by_a_prompt_that_models_have() -> None:
    asked = {protocol.task(judged, "image") for protocol in PROTOCOLS.values() for judged in ("quality", "aesthetics")}
    assert asked <= set(TASKS)
    assert find_protocol("qalign").task("aesthetics", "image") == "aesthetics-paper"
    with pytest.raises(OptionError, match="qalign, deqa, pyiqa, fastvqa"):
        find_protocol("mine")
