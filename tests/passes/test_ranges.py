"""Every rule of ranges, tried on members of random ranges: the result of the operator lies in the result's range."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tilus.dtypes import boolean, f32, i8, i32, u8, u16
from tilus.passes import ranges
from tilus.passes.ranges import ANY, Range

SMALL = st.integers(-60, 60)


@st.composite
def member_of(draw: st.DrawFn) -> tuple[Range, int]:
    """A range, and one of its members."""
    x = draw(SMALL)
    if draw(st.booleans()):
        return ranges.exactly(x), x
    multiple = draw(st.integers(1, 24))
    lo = draw(st.one_of(st.just(-math.inf), st.integers(-80, x)))
    hi = draw(st.one_of(st.just(math.inf), st.integers(x, 80)))
    return ranges.make(lo, hi, multiple, x % multiple), x


BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "min": min,
    "max": max,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "shl": lambda a, b: a << b,
    "shr": lambda a, b: a >> b,
    "lt": lambda a, b: int(a < b),
    "le": lambda a, b: int(a <= b),
    "eq": lambda a, b: int(a == b),
    "ne": lambda a, b: int(a != b),
}


@pytest.mark.parametrize("name", BINARY)
@given(first=member_of(), second=member_of())
def test_binary_rules_hold(name: str, first: tuple[Range, int], second: tuple[Range, int]) -> None:
    (a, x), (b, y) = first, second
    assume(not (name in ("floordiv", "mod") and y == 0))
    if name in ("shl", "shr"):
        b, y = ranges.exactly(abs(y)), abs(y)
    assert BINARY[name](x, y) in ranges.RULES[name](a, b)


@given(member_of(), member_of())
def test_other_rules_hold(first: tuple[Range, int], second: tuple[Range, int]) -> None:
    (a, x), (b, y) = first, second
    assert -x in ranges.neg(a)
    assert abs(x) in ranges.absolute(a)
    assert x in ranges.join(a, b)
    assert y in ranges.join(a, b)
    for cond, value in ((ranges.exactly(1), x), (ranges.exactly(0), y), (ranges.BOOL, x), (ranges.BOOL, y)):
        assert value in ranges.where(cond, a, b)


def test_every_rule_is_tried() -> None:
    assert ranges.RULES.keys() == BINARY.keys() | {"neg", "abs", "where"}


@pytest.mark.parametrize("dtype", [i8, u8, u16, i32])
@given(x=member_of())
def test_a_wrapped_value_is_known_still(dtype, x: tuple[Range, int]) -> None:
    known, value = x
    size = 1 << dtype.nbits
    low = value % size
    stored = low - size if dtype.is_signed and low >= size // 2 else low
    assert stored in ranges.wrapped(known, dtype)


def test_bounds_move_inwards_to_the_residue() -> None:
    assert ranges.make(1, 30, 8, 3) == Range(3, 27, 8, 3)
    assert ranges.make(5, 9, 8) == ranges.exactly(8)
    assert ranges.make(-math.inf, 9, 8).hi == 8


def test_precision_that_vector_widths_need() -> None:
    row = ranges.mul(ranges.make(0, 100), ranges.exactly(64))
    assert row.divisible_by(64)
    assert not row.divisible_by(128)
    assert ranges.add(row, ranges.exactly(16)).divisible_by(16)
    assert ranges.floordiv(ranges.mul(ANY, ranges.exactly(64)), ranges.exactly(8)).divisible_by(8)
    assert ranges.mod(ranges.mul(ANY, ranges.exactly(12)), ranges.exactly(8)).divisible_by(4)
    assert ranges.bit_and(ANY, ranges.exactly(7)) == Range(0, 7)
    assert ranges.shl(ANY, ranges.exactly(4)).divisible_by(16)


def test_types() -> None:
    assert ranges.of_type(boolean) == ranges.BOOL
    assert ranges.of_type(f32) == ANY
    assert (ranges.of_type(i8).lo, ranges.of_type(i8).hi) == (-128, 127)
    assert (ranges.of_type(u8).lo, ranges.of_type(u8).hi) == (0, 255)
