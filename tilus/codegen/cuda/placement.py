"""Where a thread's elements lie: arithmetic from the digits of a register layout, never a table.

The index of local element i of a thread is the sum of a part that depends on the thread and a part that depends on i:
the first is computed once at run time, the second is a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.context import Context
from tilus.codegen.cuda.cpp import Expr
from tilus.layouts import RegisterLayout
from tilus.layouts import digits as dg
from tilus.layouts.digits import Digits

Index = tuple[int, ...]


@lru_cache(maxsize=512)
def local_indices(layout: RegisterLayout) -> tuple[Index, ...]:
    """Return the part of the index that every local number adds."""
    found = []
    for number in range(layout.local_size):
        index = [0] * layout.rank
        dg.index_of(layout.local_digits, number, index)
        found.append(tuple(index))
    return tuple(found)


def local_number(layout: RegisterLayout, index: Sequence[int]) -> int:
    """Return the local number of an element, from its index or from the part of it that local numbers add."""
    return dg.number_of(layout.local_digits, index)


@dataclass(frozen=True, slots=True)
class Term:
    """A part of a coordinate: `value * stride`, where `value` (a u32) runs from 0 to size - 1."""

    value: Expr
    size: int
    stride: int

    @property
    def expr(self) -> Expr:
        """The part itself."""
        return self.value * self.stride


Coordinates = Sequence[Sequence[Term]]  # for each dimension the terms whose sum is the coordinate


def thread_digits(ctx: Context, layout: RegisterLayout) -> list[Expr]:
    """Return the value of every digit of the thread number."""
    values: list[Expr] = []
    weight = 1
    for size, _, _ in reversed(layout.spatial_digits):
        values.insert(0, ctx.thread_digit(weight, size))
        weight *= size
    return values


def coordinates(digits: Digits, rank: int, values: Sequence[Expr]) -> list[list[Term]]:
    """Return the index that digits with these values lead to."""
    terms: list[list[Term]] = [[] for _ in range(rank)]
    for (size, dim, stride), value in zip(digits, values, strict=True):
        if dim is not None:
            terms[dim].append(Term(value, size, stride))
    return terms


def thread_terms(ctx: Context, layout: RegisterLayout) -> list[list[Term]]:
    """Return the part of the index that the thread adds."""
    return coordinates(layout.spatial_digits, layout.rank, thread_digits(ctx, layout))


def sum_of(terms: Sequence[Term]) -> Expr:
    """Return a coordinate."""
    return cpp.total([t.expr for t in terms])


def is_first_replica(ctx: Context, layout: RegisterLayout) -> Expr:
    """Return the condition that the thread is the first of those that hold its elements."""
    values = thread_digits(ctx, layout)
    replicas = [v for v, d in zip(values, layout.spatial_digits, strict=True) if d.dim is None]
    return cpp.all_of([cpp.binary("==", v, 0) for v in replicas])


def thread_weights(layout: RegisterLayout) -> list[tuple[dg.Digit, int]]:
    """Return the digits of the thread number, least significant first, with their weights."""
    found, weight = [], 1
    for digit in reversed(layout.spatial_digits):
        found.append((digit, weight))
        weight *= digit.size
    return found
