"""Numbers and choices that differ from thread to thread, as arithmetic on the thread number.

What is asked for is a table with one entry per thread. A bit that is a bit of the thread number is written so; any
other pattern is a 32-bit constant, shifted by the lane. No table lies in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.context import Context
from tilus.codegen.cuda.cpp import Expr, Name

LANES = 32
_TID = Name("tid")


def condition(ctx: Context, flags: NDArray[Any]) -> Expr:
    """Return the condition that a thread's flag is set."""
    if flags.all():
        return cpp.TRUE
    if not flags.any():
        return cpp.FALSE
    found = _thread_bit(flags)
    if found is not None:
        bit, inverted = found
        return cpp.binary("==" if inverted else "!=", _TID & cpp.bits(1 << bit), 0)
    return cpp.binary("!=", _flag(ctx, flags), 0)


def _thread_bit(flags: NDArray[Any]) -> tuple[int, bool] | None:
    """Return the bit of the thread number that the flags are, and whether they are its opposite."""
    threads = np.arange(len(flags))
    for bit in range(max(len(flags) - 1, 0).bit_length()):
        same = (threads >> bit & 1).astype(bool) == flags.astype(bool)
        if same.all() or not same.any():
            return bit, not same.any()
    return None


def _flag(ctx: Context, flags: NDArray[Any]) -> Expr:
    """Return a thread's flag as 0 or 1."""
    padded = np.zeros(-(-len(flags) // LANES) * LANES, bool)
    padded[: len(flags)] = flags
    masks = [sum(1 << lane for lane in range(LANES) if row[lane]) for row in padded.reshape(-1, LANES)]
    warp = _TID // LANES
    mask: Expr = cpp.bits(masks[-1])
    for number, other in reversed(list(enumerate(masks[:-1]))):
        if other != masks[-1]:
            mask = cpp.Conditional(cpp.binary("==", warp, number), cpp.bits(other), mask)
    return cpp.binary("&", cpp.binary(">>", mask, _TID & (LANES - 1)), 1)


def choose(ctx: Context, table: NDArray[Any], option: Callable[[int], Expr]) -> Expr:
    """Return for each thread the option that its entry names."""
    values, counts = np.unique(table, return_counts=True)
    ordered = values[np.argsort(-counts, kind="stable")]
    result = option(int(ordered[0]))
    for value in ordered[1:]:
        result = cpp.Conditional(condition(ctx, table == value), option(int(value)), result)
    return result


def number(ctx: Context, table: NDArray[Any]) -> Expr:
    """Return each thread's entry, a number that is not negative."""
    differs = np.unique(table ^ np.arange(len(table)))
    if len(differs) == 1:
        return _TID ^ cpp.bits(int(differs[0])) if differs[0] else _TID
    total: Expr = cpp.ZERO
    constant = 0
    for bit in range(int(table.max()).bit_length()):
        plane = (table >> bit & 1).astype(bool)
        if plane.all():
            constant |= 1 << bit
        elif plane.any():
            total = total + (_digit(ctx, plane) << bit)
    return total + constant


def _digit(ctx: Context, plane: NDArray[Any]) -> Expr:
    found = _thread_bit(plane)
    if found is None:
        return _flag(ctx, plane)
    bit, inverted = found
    value = (_TID >> bit) & 1
    return value ^ 1 if inverted else value
