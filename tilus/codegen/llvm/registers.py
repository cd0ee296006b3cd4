"""Emitters of instructions on register tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilus.codegen.llvm import casts
from tilus.codegen.llvm.builder import Value, constant, vector
from tilus.codegen.llvm.context import Context, compute_values, register
from tilus.codegen.llvm.expr import apply, scalar, splat, wrap
from tilus.codegen.llvm.lanes import Table, butterfly, move, sources, steps_of_group
from tilus.codegen.llvm.types import compute, storage
from tilus.dtypes import DataType
from tilus.errors import CodegenError
from tilus.ir.expr import Tensor, dtype_of
from tilus.ir.instructions import (
    Arange,
    Cast,
    ConvertLayout,
    Copy,
    Dot,
    Elementwise,
    Full,
    Reduce,
    Reshape,
    Slice,
    Transpose,
    View,
)
from tilus.layouts import flat_index_table, index_table


def full(c: Context, out: Tensor, inst: Full) -> None:
    """Put a scalar in every element."""
    _, layout = register(out)
    value = scalar(c, inst.value)
    lanes = c.b.splat(value)
    c.write(out, [lanes] * layout.local_size)


def arange(c: Context, out: Tensor, inst: Arange) -> None:
    """Start plus the index, a constant vector."""
    kind, layout = register(out)
    b, table = c.b, index_table(layout)
    start = splat(c, inst.start, b.lanes)
    numbers = [constant(start.type, table[:, i, inst.dim].tolist()) for i in range(layout.local_size)]
    c.write(out, [wrap(b, kind.dtype, b.op("add", start, n)) for n in numbers])


def copy(c: Context, out: Tensor, inst: Copy) -> None:
    """Copy the vectors."""
    if inst.x in c.parts and out not in c.parts:
        c.write(out, c.read(inst.x))
        return
    for source, target in zip(c.slots(inst.x), c.slots(out), strict=True):
        c.b.store(c.b.load(c.lanes(out.type.dtype), source), target)


def cast(c: Context, out: Tensor, inst: Cast) -> None:
    """Convert vector by vector."""
    c.write(out, [casts.cast(c.b, inst.x.type.dtype, inst.dtype, e) for e in c.read(inst.x)])


def view(c: Context, out: Tensor, inst: View) -> None:
    """Keep the bits; nothing is moved between 32-bit words."""
    c.write_words(out, c.read_words(inst.x))


def _moved(c: Context, out: Tensor, x: Tensor, wanted: Table) -> None:
    """Define `out` by the elements of `x` at the wanted indices, (lanes, locals, rank of x)."""
    _, layout = register(x)
    c.write(out, move(c.b, c.read(x), *sources(layout, wanted)))


def convert_layout(c: Context, out: Tensor, inst: ConvertLayout) -> None:
    """Every lane takes what the new layout says."""
    _moved(c, out, inst.x, index_table(register(out)[1]))


def transpose(c: Context, out: Tensor, inst: Transpose) -> None:
    """Dimension d of the result is dimension perm[d]."""
    table = index_table(register(out)[1])
    _moved(c, out, inst.x, table[..., np.argsort(inst.perm)])


def reshape(c: Context, out: Tensor, inst: Reshape) -> None:
    """Take the element of the same row-major number."""
    flat = flat_index_table(register(out)[1])
    _moved(c, out, inst.x, np.stack(np.unravel_index(flat, register(inst.x)[0].shape), axis=-1))


def slice_(c: Context, out: Tensor, inst: Slice) -> None:
    """Take the element shifted by the offset."""
    _moved(c, out, inst.x, index_table(register(out)[1]) + np.array(inst.offset))


def _broadcast(c: Context, out: Tensor, x: Tensor) -> list[Value]:
    """Return the elements of an operand that go with each element of the result."""
    kind, layout = register(x)
    rank = len(kind.shape)
    table = index_table(register(out)[1])
    aligned = table[..., table.shape[-1] - rank :]
    return move(
        c.b,
        compute_values(c, x, parts=out in c.parts),
        *sources(layout, np.where(np.array(kind.shape) == 1, 0, aligned)),
    )


def elementwise(c: Context, out: Tensor, inst: Elementwise) -> None:
    """One vector operation per local element, in the compute type."""
    kind, layout = register(out)
    b = c.b
    last = inst.args[-1]
    dtype: DataType = last.type.dtype if isinstance(last, Tensor) else dtype_of(last)
    operands = [
        _broadcast(c, out, a) if isinstance(a, Tensor) else [splat(c, a, b.lanes)] * layout.local_size
        for a in inst.args
    ]
    results = [apply(b, inst.op, dtype, [o[i] for o in operands]) for i in range(layout.local_size)]
    c.write(out, results if kind.dtype.is_boolean else [wrap(b, dtype, r) for r in results])


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
    values = compute_values(c, inst.x)
    op = {"sum": "add", "max": "max", "min": "min"}[inst.op]
    results = []
    for j in range(layout.local_size):
        mine = (key == out_table[:, j : j + 1]).all(axis=-1)
        if (mine != mine[0]).any():
            raise CodegenError(
                f"reduce of {x_layout} to {layout}: lanes hold different registers", hint="this is a compiler bug"
            )
        members = np.flatnonzero(mine[0])
        total = _fold(c, op, dtype, [values[i] for i in members])
        signature = [tuple(row) for row in out_table[:, j].tolist()]
        parts = [tuple(position[lane, members].tolist()) for lane in range(b.lanes)]
        for step in steps_of_group(signature, parts):
            total = _wrapped(c, dtype, apply(b, op, dtype, [total, butterfly(b, total, step)]))
        results.append(casts.encode(b, dtype, total))
    c.write(out, results)


def _fold(c: Context, op: str, dtype: DataType, values: Sequence[Value]) -> Value:
    """Combine values pairwise, as a tree: shorter chains and smaller rounding errors."""
    level = list(values)
    while len(level) > 1:
        pairs = [
            _wrapped(c, dtype, apply(c.b, op, dtype, [a, b])) for a, b in zip(level[::2], level[1::2], strict=False)
        ]
        level = pairs + (level[-1:] if len(level) % 2 else [])
    return level[0]


def _wrapped(c: Context, dtype: DataType, value: Value) -> Value:
    """Return a computed value brought to the range and precision of its type, still in the compute type."""
    return value if compute(dtype) == storage(dtype) else casts.decode(c.b, dtype, casts.encode(c.b, dtype, value))


def dot(c: Context, out: Tensor, inst: Dot) -> None:
    """Fused multiply-add over the k's that a lane holds, then the sum over lanes that hold other k's."""
    kind, layout = register(out)
    b = c.b
    a_values, b_values = (_as_accumulator(c, t, kind.dtype) for t in (inst.a, inst.b))
    a_table, b_table = index_table(register(inst.a)[1]), index_table(register(inst.b)[1])
    rows = _registers_by_index(a_table, 0)
    columns = _registers_by_index(b_table, 1)
    start = compute_values(c, inst.c, parts=out in c.parts)
    results = []
    for j, (m, n) in enumerate(index_table(layout)[0]):
        pairs = [(i, columns[n][k]) for k, i in rows[m].items() if k in columns[n]]
        ks = [tuple(a_table[lane, [i for i, _ in pairs], 1].tolist()) for lane in range(b.lanes)]
        _check_pairs(a_table, b_table, index_table(layout)[:, j], pairs)
        signature = [tuple(row) for row in index_table(layout)[:, j].tolist()]
        steps = [] if out in c.parts else steps_of_group(signature, ks)
        total = constant(start[j].type, 0) if steps else start[j]
        for i, other in pairs:
            total = _multiply_add(c, a_values[i], b_values[other], total)
        for step in steps:
            total = b.op(_add(total), total, butterfly(b, total, step))
        if steps:
            total = b.op(_add(total), total, start[j])
        results.append(casts.encode(b, kind.dtype, total))
    c.write(out, results)


def _as_accumulator(c: Context, t: Tensor, acc: DataType) -> list[Value]:
    """Return operand elements in the compute type of the accumulator; exact for the types that `dot` takes."""
    wide = vector(c.b.lanes, compute(acc))
    opcode = {"double": "fpext", "i64": "sext" if t.type.dtype.is_signed else "zext"}.get(compute(acc), "bitcast")
    return [c.b.convert(opcode, v, wide) for v in compute_values(c, t)]


def _registers_by_index(table: Table, kept: int) -> dict[int, dict[int, int]]:
    """Return, for lane 0, {row or column: {k: local}}."""
    found: dict[int, dict[int, int]] = {}
    for i, at in enumerate(table[0].tolist()):
        found.setdefault(at[kept], {}).setdefault(at[1 - kept], i)
    return found


def _check_pairs(a: Table, b: Table, at: Table, pairs: Sequence[tuple[int, int]]) -> None:
    """Check that the registers that fit in lane 0 fit in every lane."""
    left, right = (np.array([p[side] for p in pairs], dtype=int) for side in (0, 1))
    good = (a[:, left, 1] == b[:, right, 0]) & (a[:, left, 0] == at[:, :1]) & (b[:, right, 1] == at[:, 1:])
    if not pairs or not good.all():
        raise CodegenError("dot: operand layouts do not fit the result's", hint="this is a compiler bug")


def _multiply_add(c: Context, x: Value, y: Value, z: Value) -> Value:
    if _add(z) == "fadd":
        return c.b.call(z.type, "fma", x, y, z)
    return c.b.op("add", z, c.b.op("mul", x, y))


def _add(x: Value) -> str:
    return "fadd" if "float" in x.type or "double" in x.type else "add"
