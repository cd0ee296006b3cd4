"""Codebooks, nf4 and the two packings of ternary numbers."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilus
from tilus.errors import DTypeError

# A grid on which every midpoint is a float64 too, and a whole number of halves: there nearness is compared exactly.
GRID = 1 / 1024
on_grid = st.integers(-(2**20), 2**20).map(lambda k: k * GRID)
tables = st.integers(1, 5).flatmap(lambda n: st.lists(on_grid, min_size=2**n, max_size=2**n))


def nearest(table: list[Any], value: Any) -> int:
    """Return the code of the nearest of exact numbers; of two as near the smaller one, of equal ones the first code."""
    return min((abs(entry - value), entry, code) for code, entry in enumerate(table))[2]


def halves(value: float) -> int:
    """Return a value in halves of the grid's step; infinities as far beyond every table."""
    return int(value * 2 / GRID) if math.isfinite(value) else int(math.copysign(2**40, value))


@given(tables, st.lists(on_grid, max_size=20))
def test_any_table(table: list[float], values: list[float]) -> None:
    dtype = tilus.codebook("mine", table)
    assert (dtype.is_codebook, dtype.is_integer, dtype.is_float) == (True, False, False)
    assert 2**dtype.nbits == len(table)
    assert dtype.decode(np.arange(len(table))).tolist() == table
    assert (dtype.min_value, dtype.max_value) == (min(table), max(table))
    middle = [(a + b) / 2 for a in table for b in table]
    points = [*values, *table, *middle, math.inf, -math.inf]
    entries = list(map(halves, table))
    assert dtype.encode(np.asarray(points)).tolist() == [nearest(entries, halves(point)) for point in points]


def test_nf4_is_the_quantiles_of_the_normal_distribution() -> None:
    """The rule of the QLoRA paper, appendix E: 8 quantiles below 0 and 9 above, 0 shared, scaled to [-1, 1]."""
    offset = (1 - 1 / (2 * 15) + 1 - 1 / (2 * 16)) / 2
    above = [normal_quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    below = [-normal_quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    expected = np.sort([*above, *below, 0.0]) / max(above)
    np.testing.assert_allclose(tilus.nf4.decode(np.arange(16)), expected, atol=1e-6)
    assert tilus.nf4.decode(7) == 0.0


def normal_quantile(p: float) -> float:
    """Invert the normal distribution function by bisection."""
    low, high = -10.0, 10.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erf(middle / math.sqrt(2)) < 2 * p - 1 else (low, middle)
    return low


def test_nf4_encodes_every_border() -> None:
    table = tilus.nf4.decode(np.arange(16)).tolist()
    middle = [(a + b) / 2 for a, b in pairwise(table)]
    points = [math.nextafter(m, away) for m in middle for away in (-9, m, 9)] + table + [-5.0, 5.0]
    entries = list(map(Fraction, table))
    assert tilus.nf4.encode(points).tolist() == [nearest(entries, Fraction(point)) for point in points]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([1.0, 2.0, 3.0], "got 3"),
        ([1.0], "got 1"),
        ([], "got 0"),
        (range(512), "got 512"),
        ([0.0, math.inf], "finite"),
        ([0.0, math.nan], "finite"),
    ],
)
def test_bad_tables(table, message: str) -> None:
    with pytest.raises(DTypeError, match=message):
        tilus.codebook("bad", table)


def test_codebooks_compare_by_name_and_table() -> None:
    assert tilus.codebook("a", [0, 1]) == tilus.codebook("a", (0.0, 1.0))
    assert hash(tilus.codebook("a", [0, 1])) == hash(tilus.codebook("a", (0.0, 1.0)))
    assert tilus.codebook("a", [0, 1]) != tilus.codebook("a", [0, 2])
    assert tilus.codebook("a", [0, 1]) != tilus.codebook("b", [0, 1])


def test_ternary_codes() -> None:
    assert tilus.t2.decode([0, 1, 2, 3]).tolist() == [-1, 0, 1, 2]
    values = [-9, -0.6, -0.5, -0.4, 0, 0.5, 0.51, 1, 1.9, 9]
    assert tilus.t2.encode(values).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert (tilus.t2.min_value, tilus.t2.max_value) == (-1, 1)
    assert tilus.t1_6.encode(values).tolist() == tilus.t2.encode(values).tolist()
    assert tilus.t1_6.decode([0, 1, 2]).tolist() == [-1, 0, 1]


def test_t1_6_says_its_two_widths() -> None:
    dtype = tilus.dtype("t1.6")
    assert (dtype.nbits, dtype.bits_per_element, dtype.num_codes) == (2, Fraction(8, 5), 3)
    assert not dtype.is_bit_packed
    assert [dtype.nbytes(count) for count in (0, 1, 5, 6, 10, 11)] == [0, 1, 1, 2, 2, 3]


def test_t1_6_every_byte() -> None:
    digits = [[byte // 3**i % 3 for i in range(5)] for byte in range(243)]
    assert tilus.t1_6.pack(digits).tolist() == list(range(243))
    assert tilus.t1_6.unpack(np.arange(243, dtype=np.uint8), 243 * 5).tolist() == [d for row in digits for d in row]


@given(st.lists(st.integers(0, 2), max_size=40))
def test_t1_6_round_trip(codes: list[int]) -> None:
    stream = tilus.t1_6.pack(np.asarray(codes, np.uint8))
    assert len(stream) == -(-len(codes) // 5)
    assert tilus.t1_6.unpack(stream, len(codes)).tolist() == codes


def test_t1_6_refuses_what_is_not_ternary() -> None:
    with pytest.raises(DTypeError, match=r"lie in \[0, 3\)"):
        tilus.t1_6.pack([3])
    with pytest.raises(DTypeError, match="byte 243 at 1 is not five ternary digits"):
        tilus.t1_6.unpack(bytes([0, 243]), 10)
