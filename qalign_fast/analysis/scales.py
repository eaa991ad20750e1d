"""Scores and limits in; the same on the other scale, and levels, out."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from fractions import Fraction
from math import nextafter
from typing import TYPE_CHECKING, Any

import numpy as np

from qalign_fast.errors import OptionError
from qalign_fast.levels import LEVELS

if TYPE_CHECKING:
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]

_SMALLEST = -30  # of a number's exponent: exact arithmetic with more digits takes long
Scale = tuple[float, float]  # the lowest and the highest score


def to_unit(score: float, scale: Scale) -> float:
    """A score on 0..1: the double nearest to what the score's decimals say, whose own decimals give it back or less."""
    low, high = map(_exactly, scale)
    unit = float((_exactly(score) - low) / (high - low))
    while unit > 0 and float(low + _exactly(unit) * (high - low)) > score:
        unit = nextafter(unit, 0)
    return unit


def from_unit(text: str, scale: Scale) -> float:
    """A number on 0..1 as a score. Raises OptionError for text that is no such number."""
    low, high = map(_exactly, scale)
    return float(low + _number(text, 0, 1) * (high - low))


def score_from(text: str, scale: Scale) -> float:
    """A score that the user wrote. Raises OptionError for what is not on the scale."""
    return float(_number(text, *scale))


def share_from(text: str) -> Fraction:
    """ "30%" as 3/10. Raises OptionError for what is no percentage above 0 and up to 100."""
    body, sign, rest = text.strip().partition("%")
    share = _number(body, 0, 100) / 100 if sign and not rest else Fraction(0)
    if share == 0:
        raise OptionError(f"{text!r} is no share; expected a percentage above 0% and up to 100%, such as 30%")
    return share


def level_places(scores: Numbers, scale: Scale) -> npt.NDArray[np.intp]:
    """The place in LEVELS of each score's level: `levels.level_of` for an array [n]."""
    low, high = scale
    bounds = [low + i * (high - low) / len(LEVELS) for i in range(1, len(LEVELS))]
    places: npt.NDArray[Any] = len(LEVELS) - 1 - np.searchsorted(bounds, scores)
    return places


def _exactly(number: float) -> Fraction:
    """The decimals that stand for a double: 3.2 is 16/5, which no double is."""
    return Fraction(repr(float(number)))


def _number(text: str, low: float, high: float) -> Fraction:
    try:
        number = Decimal(text.strip())
        if not number.is_finite() or not low <= number <= high or (number and number.adjusted() < _SMALLEST):
            raise InvalidOperation
    except InvalidOperation as error:
        raise OptionError(f"{text!r} is no number from {low:g} to {high:g}") from error
    return Fraction(number)
