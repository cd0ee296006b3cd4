"""Emitter of matrix products: tensor-core fragments, or multiply-adds in each thread."""

from __future__ import annotations

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda import ptx as rows
from tilus.codegen.cuda.context import Context, layout_of, register
from tilus.codegen.cuda.cpp import Expr, Name, call
from tilus.codegen.cuda.emit_global import selected_of
from tilus.codegen.cuda.emit_reduce import across_threads
from tilus.codegen.cuda.emit_registers import copy_words
from tilus.codegen.cuda.operators import apply
from tilus.codegen.cuda.placement import local_indices, local_number, thread_weights
from tilus.codegen.cuda.types import c_type, literal
from tilus.codegen.cuda.values import convert_value, decode, encoded
from tilus.codegen.cuda.words import assign, element, words_of
from tilus.dtypes import DataType, f32, f64
from tilus.errors import CodegenError
from tilus.ir import instructions as I
from tilus.ir.atoms import MMA_BY_NAME, MmaAtom
from tilus.ir.expr import Tensor
from tilus.ir.stmt import InstStmt

_WORD = 32


def dot(ctx: Context, stmt: InstStmt, out: Tensor, inst: I.Dot) -> None:
    """Multiply and add."""
    selected = selected_of(stmt)
    if selected.atom == "fma":
        _by_threads(ctx, out, inst)
    elif selected.atom in MMA_BY_NAME:
        _by_fragments(ctx, out, inst, MMA_BY_NAME[selected.atom])
    else:
        raise CodegenError(f"no matrix product is called {selected.atom!r}", loc=inst.loc)


def _by_fragments(ctx: Context, out: Tensor, inst: I.Dot, atom: MmaAtom) -> None:
    """Run one instruction for each fragment of the result and of k; accumulators stay in place."""
    tiles = layout_of(inst.a), layout_of(inst.b), layout_of(out)
    a, b, c = (tile / fragment for tile, fragment in zip(tiles, atom.fragments(tiles[0].rank), strict=True))
    sizes = [
        layout.local_size * kind.nbits // _WORD
        for layout, kind in ((atom.a, atom.dtype), (atom.b, atom.dtype), (atom.c, atom.acc))
    ]
    to, left, right = ctx.name(out), ctx.name(inst.a), ctx.name(inst.b)
    copy_words(ctx, to, ctx.name(inst.c), words_of(register(out)))
    row = rows.mma(atom)
    # k is the outermost loop, so that products which follow one another have different accumulators.
    for k in range(a.shape[-1]):
        for place, (*batch, m, n) in enumerate(local_indices(c)):
            starts = (place, local_number(a, (*batch, m, k)), local_number(b, (*batch, k, n)))
            offsets = [start * size for start, size in zip(starts, (sizes[2], sizes[0], sizes[1]), strict=True)]
            ctx.do(row, *(_from(array, offset) for array, offset in zip((to, left, right), offsets, strict=True)))


def _from(array: Name, offset: int) -> Expr:
    return cpp.add(array, offset)


def _work_type(operand: DataType, acc: DataType) -> DataType:
    """Return the type to sum in: exact products need f64 for what f32 cannot hold."""
    if acc.is_integer:
        return acc
    wide = operand.nbits > 16 and operand.name not in ("f32", "tf32")
    return f64 if acc == f64 or wide else f32


def _by_threads(ctx: Context, out: Tensor, inst: I.Dot) -> None:
    """Each thread multiplies what it holds; where threads split k, their sums are added up before `c` is."""
    operand, acc = register(inst.a).dtype, register(out).dtype
    if acc.is_integer and not operand.is_integer:
        raise CodegenError(
            f"a product of {operand} cannot be summed in {acc}", loc=inst.loc, hint="use a floating-point accumulator"
        )
    work, layout = _work_type(operand, acc), layout_of(out)
    inner = layout_of(inst.a).rank - 1
    split = [(d.size, weight) for d, weight in thread_weights(layout_of(inst.a)) if d.dim == inner and d.size > 1]
    with ctx.block():
        left, right = _values(ctx, inst.a, "left", work), _values(ctx, inst.b, "right", work)
        start = _values(ctx, inst.c, "start", work)
        sums = Name(ctx.names.fresh("sum"))
        ctx.emit(cpp.Declare(c_type(work), sums.text, extent=layout.local_size))
        zero = literal(work, 0)
        ctx.emit(*(cpp.Set(sums[i], zero if split else start[i]) for i in range(layout.local_size)))
        _multiply(ctx, out, inst, work, sums, left, right)
        if split:
            across_threads(
                ctx,
                [sums[i] for i in range(layout.local_size)],
                work,
                split,
                lambda x, y: apply(ctx, "add", work, x, y),
            )
        results = [apply(ctx, "add", work, sums[i], start[i]) if split else sums[i] for i in range(layout.local_size)]
        ctx.emit(*assign(ctx.name(out), encoded(ctx, acc, results, work)))


def _values(ctx: Context, tile: Tensor, hint: str, work: DataType) -> list[Expr]:
    """Name the values of a tile's elements in the type to sum in."""
    kind, count = register(tile), layout_of(tile).local_size
    array, words = ctx.name(tile), words_of(register(tile))
    values = Name(ctx.names.fresh(hint))
    ctx.emit(cpp.Declare(c_type(work), values.text, extent=count))
    for i in range(count):
        value = decode(ctx, kind.dtype, element(array, words, i, kind.dtype.nbits))
        ctx.emit(cpp.Set(values[i], convert_value(ctx, work, value, kind.dtype)))
    return [values[i] for i in range(count)]


def _multiply(
    ctx: Context, out: Tensor, inst: I.Dot, work: DataType, sums: Name, left: list[Expr], right: list[Expr]
) -> None:
    a, b = layout_of(inst.a), layout_of(inst.b)
    ks = sorted({index[-1] for index in local_indices(a)})
    for k in ks:
        for place, (*batch, m, n) in enumerate(local_indices(layout_of(out))):
            x, y = left[local_number(a, (*batch, m, k))], right[local_number(b, (*batch, k, n))]
            ctx.emit(cpp.Set(sums[place], _fused(work, x, y, sums[place])))


def _fused(work: DataType, x: Expr, y: Expr, total: Expr) -> Expr:
    if work.is_integer:
        return total + x * y
    return call("__fma_rn" if work == f64 else "__fmaf_rn", x, y, total)
