"""What is known of an integer without running the program: bounds and a congruence.

A `Range` stands for the integers in [lo, hi] that are `offset` modulo `multiple`. A multiple of 0 is a constant (the
only number congruent to `offset` modulo 0), 1 says nothing. Signed arithmetic is taken not to overflow, as in C: an
index that does is the author's error. Narrow and unsigned types wrap, so their results are cut to what the type holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tilus.dtypes import DataType

Bound: TypeAlias = int | float  # an integer, or an infinity


@dataclass(frozen=True, slots=True)
class Range:
    """The integers x with lo <= x <= hi and x % multiple == offset (x == offset for a multiple of 0)."""

    lo: Bound = -math.inf
    hi: Bound = math.inf
    multiple: int = 1
    offset: int = 0

    def __contains__(self, x: int) -> bool:
        congruent = x == self.offset if self.multiple == 0 else x % self.multiple == self.offset
        return self.lo <= x <= self.hi and congruent

    @property
    def constant(self) -> int | None:
        """The one value, where there is only one."""
        return self.offset if self.multiple == 0 else None

    def divisible_by(self, n: int) -> bool:
        """Whether every value is a multiple of `n`."""
        return self.multiple % n == 0 and self.offset % n == 0


ANY = Range()
BOOL = Range(0, 1)


def exactly(value: int) -> Range:
    """Return the range of one value."""
    return Range(value, value, 0, value)


def make(lo: Bound, hi: Bound, multiple: int = 1, offset: int = 0) -> Range:
    """Return a range with bounds moved inwards to the next members; where that leaves one value, that constant."""
    if multiple == 0:
        return exactly(offset)
    offset %= multiple
    if not math.isinf(lo):
        lo = int(lo) + (offset - int(lo)) % multiple
    if not math.isinf(hi):
        hi = int(hi) - (int(hi) - offset) % multiple
    # An empty range belongs to code that never runs; any answer is right there.
    return exactly(int(lo)) if lo == hi else Range(lo, hi, multiple, offset)


def of_type(dtype: DataType) -> Range:
    """Return the values of a type: its whole range for integers, 0 and 1 for booleans, anything for floats."""
    if dtype.is_boolean:
        return BOOL
    if not dtype.is_integer:
        return ANY
    signed = dtype.is_signed
    return Range(-(1 << (dtype.nbits - 1)) if signed else 0, (1 << (dtype.nbits - signed)) - 1)


def wrapped(x: Range, dtype: DataType) -> Range:
    """Return what is left of an exact result stored in `dtype`; signed words are taken not to overflow."""
    whole = of_type(dtype)
    if not dtype.is_integer or (whole.lo <= x.lo and x.hi <= whole.hi):
        return x
    if dtype.is_signed and dtype.nbits >= 32:
        return make(max(x.lo, whole.lo), min(x.hi, whole.hi), x.multiple, x.offset)
    # A wrapped value keeps its residues modulo the powers of two that the type holds.
    multiple = math.gcd(x.multiple, 1 << dtype.nbits)
    return make(whole.lo, whole.hi, multiple, x.offset % multiple)


def join(a: Range, b: Range) -> Range:
    """Return the least range that holds both."""
    multiple = math.gcd(a.multiple, b.multiple, a.offset - b.offset)
    return make(min(a.lo, b.lo), max(a.hi, b.hi), multiple, a.offset)


def add(a: Range, b: Range) -> Range:
    """Return a + b."""
    return make(a.lo + b.lo, a.hi + b.hi, math.gcd(a.multiple, b.multiple), a.offset + b.offset)


def neg(a: Range) -> Range:
    """Return -a."""
    return make(-a.hi, -a.lo, a.multiple, -a.offset)


def sub(a: Range, b: Range) -> Range:
    """Return a - b."""
    return add(a, neg(b))


def _times(x: Bound, y: Bound) -> Bound:
    return 0 if x == 0 or y == 0 else x * y


def mul(a: Range, b: Range) -> Range:
    """Return a * b."""
    corners = [_times(x, y) for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    multiple = math.gcd(a.multiple * b.multiple, a.multiple * b.offset, b.multiple * a.offset)
    return make(min(corners), max(corners), multiple, a.offset * b.offset)


def _floor(x: Bound, n: int) -> Bound:
    return x if math.isinf(x) else int(x) // n


def floordiv(a: Range, b: Range) -> Range:
    """Return a // b, rounded towards minus infinity; something is known where b is a positive constant."""
    n = b.constant
    if n is None or n <= 0:
        return make(0, a.hi) if a.lo >= 0 and b.lo >= 1 else ANY
    lo, hi = _floor(a.lo, n), _floor(a.hi, n)
    return make(lo, hi, a.multiple // n, a.offset // n) if a.multiple % n == 0 else make(lo, hi)


def mod(a: Range, b: Range) -> Range:
    """Return a % b, with the sign of b; something is known where b is positive."""
    n = b.constant
    if n is None or n <= 0:
        return make(0, b.hi - 1) if b.lo >= 1 else ANY
    multiple = math.gcd(a.multiple, n)
    if multiple == n:
        return exactly(a.offset % n)
    if a.lo >= 0 and a.hi < n:
        return a
    return make(0, n - 1, multiple, a.offset % multiple)


def minimum(a: Range, b: Range) -> Range:
    """Return the smaller of a and b."""
    both = join(a, b)
    return make(min(a.lo, b.lo), min(a.hi, b.hi), both.multiple, both.offset)


def maximum(a: Range, b: Range) -> Range:
    """Return the larger of a and b."""
    both = join(a, b)
    return make(max(a.lo, b.lo), max(a.hi, b.hi), both.multiple, both.offset)


def shl(a: Range, b: Range) -> Range:
    """Return a << b."""
    n = b.constant
    return mul(a, exactly(1 << n)) if n is not None and 0 <= n < 64 else ANY


def shr(a: Range, b: Range) -> Range:
    """Return a >> b, arithmetic."""
    n = b.constant
    return floordiv(a, exactly(1 << n)) if n is not None and 0 <= n < 64 else ANY


def bit_and(a: Range, b: Range) -> Range:
    """Return a & b: a mask of low bits is a remainder, low zeros of either operand stay."""
    if a.constant is not None:
        a, b = b, a
    n = b.constant
    if n is not None and n >= 0 and n & (n + 1) == 0:
        return mod(a, exactly(n + 1))
    zeros = max(_low_zeros(a), _low_zeros(b))
    highs = [x.hi for x in (a, b) if x.lo >= 0]
    return make(0 if highs else -math.inf, min(highs, default=math.inf), zeros)


def _low_zeros(x: Range) -> int:
    """Return the largest power of two, up to 2**30, that divides every value."""
    n = math.gcd(x.multiple, x.offset)
    return min(n & -n, 1 << 30) if n else 1 << 30


def bit_or(a: Range, b: Range) -> Range:
    """Return a | b, or a ^ b: never longer than the longer of two that are not negative."""
    if a.lo < 0 or b.lo < 0 or math.isinf(a.hi) or math.isinf(b.hi):
        return ANY
    return make(0, (1 << int(max(a.hi, b.hi)).bit_length()) - 1, min(_low_zeros(a), _low_zeros(b)))


def absolute(a: Range) -> Range:
    """Return |a|."""
    if a.lo >= 0 or a.hi <= 0:
        return a if a.lo >= 0 else neg(a)
    return make(0, max(-a.lo, a.hi), math.gcd(a.multiple, 2 * a.offset), a.offset)


def _truth(yes: bool, no: bool) -> Range:
    return exactly(1) if yes else exactly(0) if no else BOOL


def less(a: Range, b: Range) -> Range:
    """Return whether a < b."""
    return _truth(a.hi < b.lo, a.lo >= b.hi)


def less_equal(a: Range, b: Range) -> Range:
    """Return whether a <= b."""
    return _truth(a.hi <= b.lo, a.lo > b.hi)


def equal(a: Range, b: Range) -> Range:
    """Return whether a == b."""
    common = math.gcd(a.multiple, b.multiple)
    apart = a.hi < b.lo or b.hi < a.lo or (common > 0 and (a.offset - b.offset) % common != 0)
    same = a.constant is not None and a.constant == b.constant
    return _truth(same, apart or (common == 0 and not same))


def where(cond: Range, a: Range, b: Range) -> Range:
    """Return a if cond, else b."""
    return join(a, b) if cond.constant is None else a if cond.constant else b


def logical_not(a: Range) -> Range:
    """Return not a, of a boolean."""
    return BOOL if a.constant is None else exactly(1 - a.constant)


RULES: dict[str, Callable[..., Range]] = {
    "add": add,
    "sub": sub,
    "mul": mul,
    "neg": neg,
    "floordiv": floordiv,
    "mod": mod,
    "min": minimum,
    "max": maximum,
    "shl": shl,
    "shr": shr,
    "and": bit_and,
    "or": bit_or,
    "xor": bit_or,
    "abs": absolute,
    "lt": less,
    "le": less_equal,
    "eq": equal,
    "ne": lambda a, b: logical_not(equal(a, b)),
    "where": where,
}
