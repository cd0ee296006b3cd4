"""Emitters of instructions on register tensors."""

from __future__ import annotations

import numpy as np

from tilus.codegen.llvm import casts
from tilus.codegen.llvm.builder import Value, constant
from tilus.codegen.llvm.context import Context, compute_values, register
from tilus.codegen.llvm.expr import MODULAR, apply, scalar, splat, wrap
from tilus.codegen.llvm.fields import fill, narrow, widened
from tilus.codegen.llvm.lanes import Table, butterfly, steps_of_group
from tilus.codegen.llvm.loops import Operand, define, fold, fold_in_loops, operand
from tilus.codegen.llvm.types import compute, storage
from tilus.dtypes import DataType
from tilus.errors import CodegenError
from tilus.ir.expr import Tensor, dtype_of
from tilus.ir.instructions import (
    Arange,
    Cast,
    ConvertLayout,
    Copy,
    Elementwise,
    Full,
    Reduce,
    Reshape,
    Slice,
    Transpose,
)
from tilus.layouts import flat_index_table, index_table
from tilus.layouts.bits import WORD


def full(c: Context, out: Tensor, inst: Full) -> None:
    """Put a scalar in every element."""
    lanes = c.b.splat(scalar(c, inst.value))
    define(c, out, [], lambda: lanes)


def arange(c: Context, out: Tensor, inst: Arange) -> None:
    """Start plus the index, a constant vector."""
    kind, layout = register(out)
    b, table = c.b, index_table(layout)
    start = splat(c, inst.start, b.lanes)
    numbers = [constant(start.type, table[:, i, inst.dim].tolist()) for i in range(layout.local_size)]
    c.write(out, [wrap(b, kind.dtype, b.op("add", start, n)) for n in numbers])


def copy(c: Context, out: Tensor, inst: Copy) -> None:
    """Copy the elements."""
    _moved(c, out, inst.x, index_table(register(out)[1]))


def cast(c: Context, out: Tensor, inst: Cast) -> None:
    """Convert vector by vector."""
    x, src, dst = operand(inst.x, index_table(register(out)[1])), inst.x.type.dtype, inst.dtype

    def on_groups(count: int, word: Value) -> Value | None:
        return widened(c.b, src, count, word) if dst.is_integer and dst.nbits * count == WORD else None

    define(c, out, [x], lambda e: casts.cast(c.b, src, dst, e), on_groups)


def _moved(c: Context, out: Tensor, x: Tensor, wanted: Table) -> None:
    """Define `out` by the elements of `x` at the wanted indices, (lanes, locals, rank of x)."""
    define(c, out, [operand(x, wanted)], lambda e: e, lambda count, word: word)


def convert_layout(c: Context, out: Tensor, inst: ConvertLayout) -> None:
    """Every lane takes what the new layout says."""
    _moved(c, out, inst.x, index_table(register(out)[1]))


def transpose(c: Context, out: Tensor, inst: Transpose) -> None:
    """Dimension d of the result is dimension perm[d]."""
    table, back = index_table(register(out)[1]), np.argsort(inst.perm).tolist()
    found = c.deferred.get(inst.x)
    _moved(c, out, inst.x, table[..., back])
    new = c.deferred.get(out)
    if found is None or new is None:
        return
    new.elements = found.elements and found.elements.permuted(inst.perm)
    new.words = found.words and found.words.permuted(inst.perm)


def reshape(c: Context, out: Tensor, inst: Reshape) -> None:
    """Take the element of the same row-major number."""
    flat = flat_index_table(register(out)[1])
    _moved(c, out, inst.x, np.stack(np.unravel_index(flat, register(inst.x)[0].shape), axis=-1))


def slice_(c: Context, out: Tensor, inst: Slice) -> None:
    """Take the element shifted by the offset."""
    _moved(c, out, inst.x, index_table(register(out)[1]) + np.array(inst.offset))


def _broadcast(out: Tensor, x: Tensor) -> Operand:
    """Return the elements of an operand that go with each element of the result."""
    shape = register(x)[0].shape
    table = index_table(register(out)[1])
    aligned = table[..., table.shape[-1] - len(shape) :]
    return operand(x, np.where(np.array(shape) == 1, 0, aligned))


def elementwise(c: Context, out: Tensor, inst: Elementwise) -> None:
    """One vector operation per local element, in the compute type."""
    b = c.b
    last = inst.args[-1]
    dtype: DataType = last.type.dtype if isinstance(last, Tensor) else dtype_of(last)
    scalars = {i: splat(c, a, b.lanes) for i, a in enumerate(inst.args) if not isinstance(a, Tensor)}
    tiles = {i: a for i, a in enumerate(inst.args) if isinstance(a, Tensor)}

    def one(*stored: Value) -> Value:
        values = dict(scalars)
        for (i, tile), x in zip(tiles.items(), stored, strict=True):
            values[i] = casts.decode(b, tile.type.dtype, x)
        result = apply(b, inst.op, dtype, [values[i] for i in range(len(values))])
        return result if out.type.dtype.is_boolean else wrap(b, dtype, result)

    def on_groups(count: int, *words: Value) -> Value | None:
        if inst.op not in MODULAR or not dtype.is_integer or dtype.nbits * count != WORD:
            return None
        values = {i: fill(b, x, count) for i, x in scalars.items()} | dict(zip(tiles, words, strict=True))
        return narrow(b, count, lambda x, y: b.op(inst.op, x, y), values[0], values[1])

    define(c, out, [_broadcast(out, t) for t in tiles.values()], one, on_groups)


def reduce(c: Context, out: Tensor, inst: Reduce) -> None:
    """Combine the elements a lane holds, then those of other lanes by a butterfly."""
    kind, layout = register(out)
    x_layout = register(inst.x)[1]
    b, dtype = c.b, kind.dtype
    kept = [d for d in range(len(x_layout.shape)) if d != inst.dim or inst.keepdims]
    x_table = index_table(x_layout).copy()
    position = x_table[..., inst.dim].copy()
    x_table[..., inst.dim] = 0
    key = x_table[..., kept]
    out_table = index_table(layout)
    op = {"sum": "add", "max": "max", "min": "min"}[inst.op]
    members = []
    for j in range(layout.local_size):
        mine = (key == out_table[:, j : j + 1]).all(axis=-1)
        if (mine != mine[0]).any():
            raise CodegenError(
                f"reduce of {x_layout} to {layout}: lanes hold different registers", hint="this is a compiler bug"
            )
        members.append(np.flatnonzero(mine[0]))
    # Lanes differ in the same way in every register.
    parts = [tuple(position[lane, members[0]].tolist()) for lane in range(b.lanes)]
    steps = steps_of_group([tuple(row) for row in out_table[:, 0].tolist()], parts)

    def combine(x: Value, y: Value) -> Value:
        return _wrapped(c, dtype, apply(b, op, dtype, [x, y]))

    def finish(total: Value) -> Value:
        for step in steps:
            total = combine(total, butterfly(b, total, step))
        return casts.encode(b, dtype, total)

    if not fold_in_loops(c, out, inst.x, np.array(members), combine, finish):
        values = compute_values(c, inst.x)
        c.write(out, [finish(fold([values[i] for i in m], combine)) for m in members])


def _wrapped(c: Context, dtype: DataType, value: Value) -> Value:
    """Return a computed value brought to the range and precision of its type, still in the compute type."""
    return value if compute(dtype) == storage(dtype) else casts.decode(c.b, dtype, casts.encode(c.b, dtype, value))
