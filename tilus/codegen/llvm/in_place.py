"""Tiles of memory that a matrix product reads where they lie.

A tile of activations is the same for all lanes, and every number of it is loaded with a broadcast where it is
multiplied: x86 does that in the load itself. A row that lies outside of the view is read from a row of zeros, so rows
need no copy at the border. Only where the tile's rows themselves cross the border, a dense copy takes their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from tilus.codegen.llvm.builder import Value, constant
from tilus.codegen.llvm.context import Context, Memory, register
from tilus.codegen.llvm.lanes import Table
from tilus.codegen.llvm.memory import (
    Place,
    as_value,
    copy_in,
    dense_strides,
    inside,
    memory_type,
    read_tile,
    run_of,
    settle,
)
from tilus.ir.expr import Tensor
from tilus.layouts import index_table
from tilus.layouts.bits import WORD


def defer_load(c: Context, place: Place, out: Tensor, shape: Sequence[int], other: Value) -> bool:
    """Let a product load the elements of a tile; whether that was possible.

    All lanes must hold the same, or neighbours of a row that is known to lie inside.
    """
    run = run_of(place, shape)
    if out not in c.deferrable or run is None or other != constant(other.type, 0):
        return False
    steps = _lane_steps(out)
    together = steps is not None and not steps.any()
    if not together and (steps is None or not _along(steps, run) or not place.proved >= set(place.dims)):
        return False
    memory = _memory(c, place, shape, run, together)
    kind, table = memory_type(place.dtype), index_table(register(out)[1])[0]

    def element(number: int) -> Value:
        return memory.load(c.b, kind, [constant("i64", n) for n in table[number].tolist()])

    c.defer(out, element, lambda: read_tile(c, place, out, shape, other, defer=False), elements=memory)
    if together and place.dtype.nbits in (8, 16):
        _read_words(c, out, memory, run)
    return True


def _read_words(c: Context, out: Tensor, memory: Memory, run: int) -> None:
    """Let neighbours that all lanes hold be loaded as one word."""
    b, nbits, table = c.b, out.type.dtype.nbits, index_table(register(out)[1])[0]
    count = WORD // nbits

    def address(index: Sequence[Value]) -> Value:
        return memory.address([b.op("mul", n, count) if d == run else n for d, n in enumerate(index)])

    def group(numbers: tuple[int, ...]) -> Value | None:
        wanted = np.repeat(table[[numbers[0]]], len(numbers), axis=0)
        wanted[:, run] += np.arange(len(numbers))
        if len(numbers) != count or (table[list(numbers)] != wanted).any():
            return None
        return memory.load(b, "i32", [constant("i64", n) for n in wanted[0].tolist()])

    deferred = c.deferred[out]
    deferred.group, deferred.words = group, Memory(address, True, run)


def _lane_steps(t: Tensor) -> Table | None:
    """Return how each lane's index differs from that of lane 0, (lanes, rank); None if that depends on the local."""
    table = index_table(register(t)[1])
    steps: Table = table - table[:1]
    return steps[:, 0] if (steps == steps[:, :1]).all() else None


def _along(steps: Table, run: int) -> bool:
    """Whether lanes are neighbours along a dimension."""
    wanted = np.zeros_like(steps)
    wanted[:, run] = np.arange(len(steps))
    return bool((steps == wanted).all())


def _memory(c: Context, place: Place, shape: Sequence[int], run: int, together: bool) -> Memory:
    """Return where the elements of a tile lie, or those of its dense copy."""
    b, element = c.b, memory_type(place.dtype)
    rows = [i for i in range(len(shape)) if i != run]
    masked = [i for i in rows if place.dims[i] not in place.proved]
    last = [b.op("add", o, shape[run] - 1) if d == place.dims[run] else o for d, o in enumerate(place.offset)]
    others = frozenset(place.dims[i] for i in rows)
    whole = inside(b, replace(place, proved=place.proved | others), place.offset, last)
    dense = dense_strides(place, shape)
    assert place.strides is not None
    # What the copy has instead: its own address and strides, and all of its rows.
    values = [b.gep(element, place.pointer, place.address(place.offset))]
    values += [as_value(place.strides[place.dims[i]]) for i in rows]
    values += [x for i in masked for x in (place.offset[place.dims[i]], place.extents[place.dims[i]])]
    copies = [constant("i64", dense[i]) for i in rows]
    copies += [constant("i64", n) for i in masked for n in (0, shape[i])]

    def fill() -> list[Value]:
        copy = b.alloca(f"[{prod(shape)} x {element}]", "dense", 64)
        copy_in(c, place, shape, copy, dense, constant(element, 0))
        return [copy, *copies]

    pointer, *numbers = settle(b, whole, values, fill)
    strides, bounds = numbers[: len(rows)], numbers[len(rows) :]
    zeros = b.hidden(b.table(element, [0] * shape[run])) if masked else pointer

    known: dict[tuple[str, ...], Value] = {}

    def row_at(index: Sequence[Value]) -> Value:
        row = pointer
        for i, stride in zip(rows, strides, strict=True):
            row = b.gep(element, row, b.op("mul", index[i], stride))
        for i, offset, extent in zip(masked, bounds[::2], bounds[1::2], strict=True):
            there = b.compare("icmp ult", b.op("add", index[i], offset), extent)
            row = b.select(there, row, zeros)
        return row

    def address(index: Sequence[Value]) -> Value:
        key = tuple(index[i].name for i in rows)
        if key not in known:
            known[key] = row_at(index)
        return b.gep(element, known[key], index[run])

    return Memory(address, together)
