"""Emitters of instructions that fill registers, rename them or reinterpret their bits."""

from __future__ import annotations

import numpy as np

from tilus.codegen.cuda import bank_tables, cpp
from tilus.codegen.cuda.casts import cast_call
from tilus.codegen.cuda.context import Context, layout_of, register
from tilus.codegen.cuda.cpp import Expr, Name
from tilus.codegen.cuda.lanes import choose
from tilus.codegen.cuda.placement import local_indices, sum_of, thread_terms
from tilus.codegen.cuda.scalars import scalar
from tilus.codegen.cuda.types import code_type
from tilus.codegen.cuda.values import encode
from tilus.codegen.cuda.words import assign, element, gather, pack, splat, words_of
from tilus.dtypes import DataType
from tilus.ir import instructions as I
from tilus.ir.expr import Const, Tensor, dtype_of
from tilus.ir.stmt import InstStmt
from tilus.layouts import RegisterLayout, index_table, locate_table
from tilus.layouts.maps import Table


def loop(ctx: Context, count: int, make: list[cpp.Stmt]) -> None:
    """Emit an unrolled loop over `i`, or its body alone for one turn."""
    i = Name("i")
    ctx.emit(cpp.For("u32", i.text, cpp.ZERO, cpp.Int(count), 1, tuple(make), unroll=True))


def copy_words(ctx: Context, target: Name, source: Name, count: int) -> None:
    """Copy an array."""
    if target != source:
        i = Name("i")
        loop(ctx, count, [cpp.Set(target[i], source[i])])


def splat_word(ctx: Context, dtype: DataType, code: Expr) -> list[Expr]:
    """Return the words that repeat a run-time code of a type: one, or as many as make the pattern whole."""
    if dtype.nbits == 64:
        return pack([code], 64)
    if 32 % dtype.nbits:
        return pack([code] * 32, dtype.nbits)
    return [code * (splat(1, dtype.nbits)[0]) if dtype.nbits < 32 else code]


def full(ctx: Context, stmt: InstStmt, out: Tensor, inst: I.Full) -> None:
    """Set every element."""
    kind, dtype, array, i = register(out), dtype_of(inst.value), ctx.name(out), Name("i")
    words: list[Expr]
    if isinstance(inst.value, Const):
        words = [cpp.bits(w) for w in splat(_code_of(inst.value), dtype.nbits)]
    else:
        code = ctx.constant(code_type(dtype), "code", encode(ctx, dtype, scalar(ctx, inst.value), dtype))
        words = [ctx.constant("u32", "word", w) for w in splat_word(ctx, dtype, code)]
    if len(words) == 1:
        loop(ctx, words_of(kind), [cpp.Set(array[i], words[0])])
    else:
        ctx.emit(*(cpp.Set(array[w], words[w % len(words)]) for w in range(words_of(kind))))


def _code_of(value: Const) -> int:
    return int(value.dtype.encode(value.value))


def arange(ctx: Context, stmt: InstStmt, out: Tensor, inst: I.Arange) -> None:
    """Count along one dimension."""
    kind, layout = register(out), layout_of(out)
    dtype = kind.dtype
    terms = thread_terms(ctx, layout)[inst.dim]
    value = scalar(ctx, inst.start)
    begin = sum_of(terms)
    start = ctx.constant("u64" if dtype.nbits == 64 else "u32", "start", value + begin)
    found = {}
    for index in local_indices(layout):
        if index[inst.dim] not in found:
            moved = start + index[inst.dim]
            found[index[inst.dim]] = moved if dtype.nbits >= 32 else moved & cpp.bits((1 << dtype.nbits) - 1)
    codes = [found[index[inst.dim]] for index in local_indices(layout)]
    if dtype.nbits == 64:
        codes = [cpp.convert("u64", code) for code in codes]
    ctx.emit(*assign(ctx.name(out), pack(codes, dtype.nbits)))


def copy(ctx: Context, stmt: InstStmt, out: Tensor, inst: I.Copy) -> None:
    """Copy registers; the compiler renames them."""
    copy_words(ctx, ctx.name(out), ctx.name(inst.x), words_of(register(out)))


def same_registers(ctx: Context, stmt: InstStmt, out: Tensor, inst: I.View | I.Transpose | I.Reshape) -> None:
    """Give the same registers another meaning: thread and local of every element stay what they are."""
    copy_words(ctx, ctx.name(out), ctx.name(inst.x), words_of(register(out)))


def cast(ctx: Context, stmt: InstStmt, out: Tensor, inst: I.Cast) -> None:
    """Convert elements by a function made for the pair of types."""
    if register(inst.x).dtype == register(out).dtype:
        copy_words(ctx, ctx.name(out), ctx.name(inst.x), words_of(register(out)))
    elif bank_tables.suits(ctx, out, inst.x):
        bank_tables.cast(ctx, out, inst.x)
    else:
        ctx.emit(cast_call(ctx, out, inst.x))


def take(ctx: Context, target: Tensor, source: Tensor, places: list[int]) -> None:
    """Set local i of `target` to local `places[i]` of `source`; of itself a tensor takes all, in order."""
    nbits = register(target).dtype.nbits
    to, from_ = ctx.name(target), ctx.name(source)
    count = words_of(register(source))
    words = gather(from_, count, places, nbits)
    if words == [from_[w] for w in range(len(words))]:
        copy_words(ctx, to, from_, len(words))
    else:
        ctx.emit(*assign(to, words))


def slice_(ctx: Context, stmt: InstStmt, out: Tensor, inst: I.Slice) -> None:
    """Pick registers: every element of the result lies in the thread that holds it in the operand."""
    places = slice_places(layout_of(inst.x), layout_of(out), inst.offset)
    if (places == places[0]).all():
        take(ctx, out, inst.x, [int(p) for p in places[0]])
        return
    # A slice may cut a row of locals at another place in every thread: then each thread chooses among its registers.
    nbits, source, count = register(out).dtype.nbits, ctx.name(inst.x), words_of(register(inst.x))
    codes = [
        choose(ctx, places[:, local], lambda place: element(source, count, place, nbits))
        for local in range(places.shape[1])
    ]
    ctx.emit(*assign(ctx.name(out), pack(codes, nbits)))


def slice_places(whole: RegisterLayout, part: RegisterLayout, offset: tuple[int, ...]) -> Table:
    """Return where (thread, local) of a slice lies among the locals of the whole."""
    index = index_table(part) + np.array(offset)
    places: Table = locate_table(whole)[1][tuple(np.moveaxis(index, -1, 0))]
    return places
