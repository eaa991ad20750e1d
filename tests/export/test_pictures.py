"""The pictures that exports are calibrated on and judged by."""

from __future__ import annotations

from qalign_export.pictures import bundled_pictures, generate_pictures


def test_generated_pictures_are_the_same_every_time_and_unlike_each_other() -> None:
    for make in (generate_pictures, bundled_pictures):
        once, again = make(15), make(15)
        assert [p.tobytes() for p in once] == [p.tobytes() for p in again]
        assert len({p.tobytes() for p in once}) == 15


def test_what_is_judged_by_is_not_what_was_calibrated_on() -> None:
    calibration, judged = ({p.tobytes() for p in make(60)} for make in (generate_pictures, bundled_pictures))
    assert not calibration & judged
