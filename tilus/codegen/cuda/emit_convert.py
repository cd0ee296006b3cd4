"""Emitter of layout conversions: registers, warp shuffles, or a trip through shared memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tilus.codegen.cuda import cpp, vectors
from tilus.codegen.cuda.context import Context, layout_of, register
from tilus.codegen.cuda.cpp import Expr, Name, call
from tilus.codegen.cuda.emit_global import selected_of
from tilus.codegen.cuda.emit_registers import copy_words, take
from tilus.codegen.cuda.emit_shared import barrier, store_vector
from tilus.codegen.cuda.lanes import LANES, choose, condition, number
from tilus.codegen.cuda.placement import is_first_replica, local_indices, thread_terms
from tilus.codegen.cuda.shared_tile import SharedTile
from tilus.codegen.cuda.words import assign, element, pack, words_of
from tilus.errors import InternalError, LayoutError
from tilus.ir import instructions as I
from tilus.ir.expr import Tensor, const
from tilus.ir.stmt import InstStmt
from tilus.layouts import RegisterLayout, RegisterMoves, Same, Shuffles, local, plan_conversion, plan_scratch
from tilus.layouts.maps import Table

_ALL_LANES = cpp.bits(0xFFFFFFFF)
_BYTE = 8


def convert_layout(ctx: Context, stmt: InstStmt, out: Tensor, inst: I.ConvertLayout) -> None:
    """Move elements between threads and registers."""
    selected, source, target = selected_of(stmt), layout_of(inst.x), layout_of(out)
    if selected.atom == "shared":
        _through_shared(ctx, out, inst.x, selected.width)
        return
    plan = plan_conversion(source, target, LANES)
    match plan:
        case Same():
            copy_words(ctx, ctx.name(out), ctx.name(inst.x), words_of(register(out)))
        case RegisterMoves(src_local=places):
            take(ctx, out, inst.x, list(places))
        case Shuffles():
            _by_shuffles(ctx, out, inst.x, plan)
        case _:
            raise InternalError(f"a conversion from {source} to {target} needs shared memory, selected is {selected}")


# --- shuffles -------------------------------------------------------------------------------------------------------


def _by_shuffles(ctx: Context, out: Tensor, x: Tensor, plan: Shuffles) -> None:
    """Shuffle whole words where both layouts keep the elements of a word together, else single elements."""
    nbits, to, from_ = register(out).dtype.nbits, ctx.name(out), ctx.name(x)
    coarse = _by_whole_words(layout_of(x), layout_of(out), nbits)
    if isinstance(coarse, Same | RegisterMoves):
        places = range(words_of(register(out))) if isinstance(coarse, Same) else coarse.src_local
        ctx.emit(*assign(to, [from_[p] for p in places]))
        return
    with ctx.block():
        if coarse is not None:
            _rounds(ctx, coarse, to, lambda i: from_[i])
        elif nbits == 32:
            _rounds(ctx, plan, to, lambda i: from_[i])
        elif nbits == 64:
            _wide_rounds(ctx, plan, to, from_)
        else:
            count = words_of(register(x))
            codes = ctx.array("codes", layout_of(out).local_size)
            _rounds(ctx, plan, codes, lambda i: element(from_, count, i, nbits))
            ctx.emit(*assign(to, pack([codes[i] for i in range(layout_of(out).local_size)], nbits)))


def _wide_rounds(ctx: Context, plan: Shuffles, to: Name, from_: Name) -> None:
    """Shuffle the halves of 64-bit elements one after the other."""
    size = 1 + max(int(r.keep.max()) for r in plan.rounds)
    for half in (0, 1):
        part = ctx.array("half", size)
        _rounds(ctx, plan, part, partial(_half_of, from_, half))
        ctx.emit(*(cpp.Set(to[2 * i + half], part[i]) for i in range(size)))


def _half_of(array: Name, half: int, i: int) -> Expr:
    return array[2 * i + half]


def _by_whole_words(
    source: RegisterLayout, target: RegisterLayout, nbits: int
) -> Same | RegisterMoves | Shuffles | None:
    """Return the conversion of words, where each holds the same neighbours in both layouts; None if none does."""
    if nbits >= 32 or 32 % nbits:
        return None
    for dim in range(source.rank):
        word = local(*(32 // nbits if d == dim else 1 for d in range(source.rank)))
        try:
            plan = plan_conversion(source / word, target / word, LANES)
        except LayoutError:
            continue
        if isinstance(plan, Same | RegisterMoves | Shuffles):
            return plan
    return None


def _rounds(ctx: Context, plan: Shuffles, to: Name, read: Callable[[int], Expr]) -> None:
    filled: set[int] = set()
    for r in plan.rounds:
        offered = ctx.constant("u32", "offer", choose(ctx, r.send, read))
        got = ctx.constant("u32", "got", _shuffle(ctx, offered, r.source))
        for place in sorted({int(k) for k in r.keep if k >= 0}):
            here = condition(ctx, r.keep == place)
            value = got if here == cpp.TRUE or place not in filled else cpp.Conditional(here, got, to[place])
            filled.add(place)
            ctx.emit(cpp.Set(to[place], value))


def _shuffle(ctx: Context, value: Expr, source: Table) -> Expr:
    """Return what each thread reads of the thread that `source` names, in its own warp."""
    lane = number(ctx, source)
    if isinstance(lane, cpp.Binary) and lane.op == "^" and lane.left == Name("tid") and isinstance(lane.right, cpp.Int):
        return call("__shfl_xor_sync", _ALL_LANES, value, lane.right.value)
    return call("__shfl_sync", _ALL_LANES, value, number(ctx, source % LANES))


# --- shared memory --------------------------------------------------------------------------------------------------


def _through_shared(ctx: Context, out: Tensor, x: Tensor, byte_offset: int) -> None:
    """Store, wait, load. The barrier before the store lets the bytes belong to something else until then."""
    kind, source, target = register(x), layout_of(x), layout_of(out)
    nbits = kind.dtype.nbits
    nbytes = max(nbits, _BYTE) // _BYTE
    plan = plan_scratch(source, target, nbytes)
    narrow = nbits < _BYTE
    origin = [const(0)] * source.rank
    dims = tuple(range(source.rank))
    base = Name("smem") + byte_offset
    barrier(ctx)
    with ctx.block():
        terms, first = thread_terms(ctx, source), is_first_replica(ctx, source)
        tile = SharedTile(ctx, plan.layout, base, nbytes, origin, dims, kind.shape, terms)
        indices = local_indices(source)
        array = _widened(ctx, x) if narrow else ctx.name(x)
        vectors.store(
            ctx,
            array,
            nbytes * _BYTE,
            source.local_size,
            plan.store_bytes // nbytes,
            lambda i, bits, words: store_vector(ctx, bits, tile.address(indices[i]), words, first),
        )
    barrier(ctx)
    with ctx.block():
        tile = SharedTile(ctx, plan.layout, base, nbytes, origin, dims, kind.shape, thread_terms(ctx, target))
        found = local_indices(target)
        array = ctx.array("bytes", -(-target.local_size // 4)) if narrow else ctx.name(out)
        vectors.load(
            ctx,
            array,
            nbytes * _BYTE,
            target.local_size,
            plan.load_bytes // nbytes,
            lambda i, bits, words: ctx.do(f"ld_shared_b{bits}", words, tile.address(found[i])),
        )
        if narrow:
            count = -(-target.local_size // 4)
            codes = [element(array, count, i, _BYTE) for i in range(target.local_size)]
            ctx.emit(*assign(ctx.name(out), pack(codes, nbits)))


def _widened(ctx: Context, x: Tensor) -> Name:
    """Return an array with each element in a byte of its own."""
    kind, count = register(x), layout_of(x).local_size
    codes = [element(ctx.name(x), words_of(kind), i, kind.dtype.nbits) for i in range(count)]
    array = ctx.array("bytes", -(-count // 4))
    ctx.emit(*assign(array, pack(codes, _BYTE)))
    return array
