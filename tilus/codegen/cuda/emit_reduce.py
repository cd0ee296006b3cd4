"""Emitter of reductions: within a thread, then across the lanes of a warp, then across warps.

A thread digit of the reduced dimension becomes a replicated digit of the result, so all its threads get the whole: by
butterflies of shuffles where its size is a power of two, else by reading every lane in turn. Across warps partial
results go through scratch space in shared memory. All threads add in the same order, so replicas agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.context import Context, layout_of, register
from tilus.codegen.cuda.cpp import Expr, Name, call
from tilus.codegen.cuda.emit_shared import barrier
from tilus.codegen.cuda.lanes import LANES
from tilus.codegen.cuda.operators import apply
from tilus.codegen.cuda.placement import local_indices, local_number, thread_weights
from tilus.codegen.cuda.types import c_type
from tilus.codegen.cuda.values import bits_float, decode, encoded, float_bits
from tilus.codegen.cuda.words import assign, element, words_of
from tilus.dtypes import DataType, f32
from tilus.ir import instructions as I
from tilus.ir.expr import Tensor
from tilus.ir.stmt import InstStmt

_ALL_LANES = cpp.bits(0xFFFFFFFF)
_OPERATORS = {"sum": "add", "max": "max", "min": "min"}
_SCRATCH_BYTES = 4096  # results of several elements share a trip through shared memory, up to this size
Combine = Callable[[Expr, Expr], Expr]


def reduce(ctx: Context, stmt: InstStmt, out: Tensor, inst: I.Reduce) -> None:
    """Reduce along one dimension."""
    source, dtype = layout_of(inst.x), register(out).dtype
    work = f32 if dtype.is_float and dtype.nbits < 32 else dtype  # sums of narrow floats are rounded once
    op = _OPERATORS[inst.op]

    def combine(a: Expr, b: Expr) -> Expr:
        return apply(ctx, op, work, a, b)

    with ctx.block():
        names = _within_threads(ctx, out, inst, combine)
        digits = [(d.size, weight) for d, weight in thread_weights(source) if d.dim == inst.dim and d.size > 1]
        across_threads(ctx, names, work, digits, combine)
        ctx.emit(*assign(ctx.name(out), encoded(ctx, dtype, names, work)))


def _within_threads(ctx: Context, out: Tensor, inst: I.Reduce, combine: Combine) -> list[Expr]:
    """Combine each thread's elements; return a variable for every local of the result."""
    kind, source, target = register(inst.x), layout_of(inst.x), layout_of(out)
    array, words = ctx.name(inst.x), words_of(kind)
    groups: dict[int, list[Expr]] = {}
    for i, index in enumerate(local_indices(source)):
        kept = [0] if inst.keepdims else []
        rest = (*index[: inst.dim], *kept, *index[inst.dim + 1 :])
        code = element(array, words, i, kind.dtype.nbits)
        groups.setdefault(local_number(target, rest), []).append(decode(ctx, kind.dtype, code))
    names: list[Expr] = []
    for place in range(target.local_size):
        values = groups[place]
        while len(values) > 1:  # as a tree: half as deep a chain for every doubling
            values = [
                combine(*values[i : i + 2]) if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)
            ]
        name = ctx.names.fresh("part")
        ctx.emit(cpp.Declare(c_type(_held(kind.dtype)), name, values[0]))
        names.append(Name(name))
    return names


def _held(dtype: DataType) -> DataType:
    return f32 if dtype.is_float and dtype.nbits < 32 else dtype


def across_threads(
    ctx: Context, names: list[Expr], dtype: DataType, digits: list[tuple[int, int]], combine: Combine
) -> None:
    """Combine variables over digits of the thread number, given as (size, weight); all threads get the result.

    Parameters
    ----------
    ctx : Context
    names : list of Name
        Variables that hold values of `dtype`.
    dtype : DataType
    digits : list of (int, int)
    combine : callable
    """
    beyond: list[tuple[int, int]] = []
    for size, weight in digits:
        inside, outside = _cut(size, weight)
        if inside > 1:
            _across_lanes(ctx, names, dtype, inside, weight, combine)
        if outside > 1:
            beyond.append((outside, weight * inside))
    for size, weight in beyond:
        _across_warps(ctx, names, dtype, size, weight, combine)


def _cut(size: int, weight: int) -> tuple[int, int]:
    """Split a digit into the part within a warp and the part across warps; one that does not split crosses."""
    if weight >= LANES:
        return 1, size
    if weight * size <= LANES:
        return (size, 1) if LANES % (weight * size) == 0 else (1, size)
    inside = LANES // weight
    return (inside, size // inside) if size % inside == 0 and LANES % weight == 0 else (1, size)


def _across_lanes(ctx: Context, names: list[Expr], dtype: DataType, size: int, weight: int, combine: Combine) -> None:
    """Combine over lanes: both sides of a butterfly add the same two numbers, which is the same in either order."""
    if size & (size - 1) == 0:
        for step in (weight << bit for bit in range(size.bit_length() - 1)):
            for name in names:
                other = _moved(dtype, name, "__shfl_xor_sync", cpp.Int(step))
                ctx.emit(cpp.Set(name, combine(name, other)))
        return
    first = cpp.binary("-", Name("tid") & (LANES - 1), ctx.thread_digit(weight, size) * weight)
    for name in names:
        total = Name(ctx.names.fresh("total"))
        for turn in range(size):
            value = _moved(dtype, name, "__shfl_sync", first + turn * weight)
            _accumulate(ctx, total, dtype, value, combine, first=turn == 0)
        ctx.emit(cpp.Set(name, total))


def _accumulate(ctx: Context, total: Name, dtype: DataType, value: Expr, combine: Combine, *, first: bool) -> None:
    """Start or go on with a sum."""
    if first:
        ctx.emit(cpp.Declare(c_type(dtype), total.text, value))
    else:
        ctx.emit(cpp.Set(total, combine(total, value)))


def _words(dtype: DataType, value: Expr) -> list[Expr]:
    """Return the bits of a value as words."""
    held = c_type(dtype)
    if held == "float":
        return [float_bits(value)]
    if held == "double":
        value = cpp.convert("u64", call("__double_as_longlong", value))
        held = "u64"
    if held == "u64":
        return [cpp.convert("u32", value), cpp.convert("u32", value >> 32)]
    return [cpp.convert("u32", value)]


def _from_words(dtype: DataType, words: list[Expr]) -> Expr:
    """Return the value whose bits are words."""
    held = c_type(dtype)
    if held == "float":
        return bits_float(words[0])
    if len(words) == 2:
        both = (cpp.convert("u64", words[1]) << 32) | words[0]
        return call("__longlong_as_double", cpp.convert("i64", both)) if held == "double" else both
    return cpp.convert(held, words[0])


def _moved(dtype: DataType, value: Expr, shuffle: str, lane: Expr) -> Expr:
    """Return the value that another lane has."""
    return _from_words(dtype, [call(shuffle, _ALL_LANES, word, lane) for word in _words(dtype, value)])


def _across_warps(ctx: Context, names: list[Expr], dtype: DataType, size: int, weight: int, combine: Combine) -> None:
    """Combine through shared memory: every thread writes its values, and reads those of the threads it stands for."""
    words = len(_words(dtype, names[0]))
    batch = max(_SCRATCH_BYTES // (4 * words * ctx.num_threads), 1)
    for start in range(0, len(names), batch):
        part = names[start : start + batch]
        base = ctx.scratch(4 * words * ctx.num_threads * len(part))
        barrier(ctx)
        with ctx.block():
            _exchange(ctx, part, dtype, size, weight, combine, base)


def _exchange(
    ctx: Context, names: list[Expr], dtype: DataType, size: int, weight: int, combine: Combine, base: Expr
) -> None:
    row = 4 * ctx.num_threads  # word j of all threads side by side: no two lanes share a bank
    mine = ctx.constant("u32", "mine", base + Name("tid") * 4)
    count = len(_words(dtype, names[0]))
    for j, name in enumerate(names):
        for w, word in enumerate(_words(dtype, name)):
            cell = ctx.array("cell", 1)
            ctx.emit(cpp.Set(cell[0], word))
            ctx.do("st_shared_b32", mine + (j * count + w) * row, cell)
    barrier(ctx)
    first = ctx.constant("u32", "first", cpp.binary("-", mine, ctx.thread_digit(weight, size) * (4 * weight)))
    for j, name in enumerate(names):
        total = Name(ctx.names.fresh("total"))
        for turn in range(size):
            cell = ctx.array("cell", count)
            for w in range(count):
                ctx.do("ld_shared_b32", cell + w if w else cell, first + ((j * count + w) * row + 4 * weight * turn))
            value = _from_words(dtype, [cell[w] for w in range(count)])
            _accumulate(ctx, total, dtype, value, combine, first=turn == 0)
        ctx.emit(cpp.Set(name, total))
