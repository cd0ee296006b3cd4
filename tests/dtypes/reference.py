"""Small floats once more, one exact number at a time: what `tilus.dtypes` is compared with.

Written from the specifications, with fractions and names only, and nothing imported from the package.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from fractions import Fraction
from functools import cache
from itertools import pairwise

MINI_FLOATS = [f"f{n}e{x}m{n - 1 - x}" for n in range(2, 9) for x in range(1, n)]


def fields(name: str) -> tuple[int, int]:
    match = re.fullmatch(r"f\d+e(\d+)m(\d+)", name)
    return int(match[1]), int(match[2])


def decode(name: str, code: int) -> Fraction | float:
    """Return the exact value of a code; infinity and NaN as floats. (Negative zero is just 0.)"""
    x, y = fields(name)
    sign = -1 if code >> (x + y) else 1
    exponent, mantissa = (code >> y) % 2**x, code % 2**y
    if name == "f8e4m3" and (exponent, mantissa) == (15, 7):
        return math.nan
    if name == "f8e5m2" and exponent == 31:
        return sign * math.inf if mantissa == 0 else math.nan
    bias = 2 ** (x - 1) - 1
    if exponent == 0:
        return sign * Fraction(mantissa, 2**y) * Fraction(2) ** (1 - bias)
    return sign * (1 + Fraction(mantissa, 2**y)) * Fraction(2) ** (exponent - bias)


@cache
def magnitudes(name: str) -> list[tuple[Fraction, int]]:
    """Return every finite magnitude with its code, in order."""
    x, y = fields(name)
    decoded = [(decode(name, code), code) for code in range(2 ** (x + y))]
    return sorted((value, code) for value, code in decoded if isinstance(value, Fraction))


def encode(name: str, value: float) -> int:
    """Return the code of the nearest finite value: of two as near, the even digit; saturating; signed zero.

    With no mantissa bits the last digit is the implicit one: 0 for zero, else 1. Of two values as near with an odd
    last digit the larger is taken (IEEE 754-2019, 4.3.1).
    """
    x, y = fields(name)
    sign = 2 ** (x + y) if math.copysign(1.0, value) < 0 else 0
    table = magnitudes(name)
    if math.isinf(value):
        return sign + table[-1][1]
    exact = abs(Fraction(value))
    place = bisect_left(table, (exact, 0))
    candidates = table[max(place - 1, 0) : place + 1]
    last_digit = [code % 2 if y else min(code, 1) for _, code in candidates]
    ranked = [(abs(v - exact), digit, -v, code) for (v, code), digit in zip(candidates, last_digit, strict=True)]
    return sign + min(ranked)[3]


def interesting_values(name: str) -> list[float]:
    """Return all values and all midpoints of a type, their neighbours in float64, and far-off numbers; both signs."""
    values = [value for value, _ in magnitudes(name)]
    points = values + [(a + b) / 2 for a, b in pairwise(values)]
    points += [values[-1] + (values[-1] - values[-2]) * Fraction(k, 4) for k in range(1, 9)]
    found = [0.0, math.inf, 5e-324, 1e-300, 1e300]
    for point in points:
        exact = float(point)
        assert Fraction(exact) == point
        found += [exact, math.nextafter(exact, math.inf), math.nextafter(exact, 0.0)]
    return found + [-each for each in found]
