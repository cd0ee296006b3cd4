"""Bulk copies: a whole tile is moved, or prefetched, by one instruction of the producer, as one piece of memory."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.context import Context, View, shared
from tilus.codegen.cuda.cpp import Expr, Name
from tilus.codegen.cuda.global_tile import GlobalTile
from tilus.codegen.cuda.lanes import LANES
from tilus.codegen.cuda.ring import FIRST_THREAD, STAGE, elected
from tilus.codegen.cuda.scalars import scalar, wide
from tilus.codegen.cuda.shared_tile import SharedTile, base_of
from tilus.ir import instructions as I
from tilus.ir.expr import Expr as ScalarExpr
from tilus.ir.expr import Tensor, dtype_of

_UNIT = 16  # bytes of the vectors by which zeros are written


def copy(ctx: Context, inst: I.CopyAsync, unmasked: tuple[int, ...]) -> None:
    """Have the part of a tile that lies inside of the view copied; the producer's lanes write zeros for the rest."""
    with ctx.block():
        piece = _piece(ctx, inst.src, inst.src_offset, inst.shape, inst.src_dims, unmasked)
        with ctx.where(cpp.all_of([elected(ctx), *piece.exists])):
            ctx.do("mbarrier_expect", STAGE, piece.nbytes)
            where = _address(ctx, inst), piece.address, piece.nbytes, STAGE
            if inst.once is None:
                ctx.do("cp_async_bulk", *where)
            else:
                ctx.do("cp_async_bulk_hint", *where, _policy(ctx, inst.once))
        if not piece.is_whole:
            with ctx.where(cpp.Binary("<", piece.count, cpp.Int(piece.slices))):
                first, last = piece.count * (piece.size // _UNIT), piece.slices * piece.size // _UNIT
                _write_zeros(ctx, _address(ctx, inst), first, last)


def _policy(ctx: Context, once: ScalarExpr) -> Expr:
    """Return what the second-level cache is to do with a tile, which is read once or not."""
    first, usual = (ctx.ptx(f"policy_evict_{name}") for name in ("first", "unchanged"))
    return ctx.constant("u64", "policy", cpp.Conditional(scalar(ctx, once), first, usual))


def prefetch(ctx: Context, inst: I.Prefetch, unmasked: tuple[int, ...]) -> None:
    """Have the part of a tile that lies inside of the view prefetched."""
    with ctx.block():
        piece = _piece(ctx, inst.view, inst.offset, inst.shape, inst.dims, unmasked)
        with ctx.where(cpp.all_of([elected(ctx) if ctx.is_producer else FIRST_THREAD, *piece.exists])):
            ctx.do("prefetch_bulk", piece.address, piece.nbytes)


@dataclass(frozen=True, slots=True)
class _Piece:
    """The part of a tile that lies inside of its view: `count` of its `slices`, each of `size` bytes."""

    address: Expr
    count: Expr
    slices: int
    size: int

    @property
    def is_whole(self) -> bool:
        """Whether the whole tile lies inside, as far as is known."""
        return isinstance(self.count, cpp.Int)

    @property
    def nbytes(self) -> Expr:
        """How much there is."""
        return self.count * self.size

    @property
    def exists(self) -> list[Expr]:
        """The condition that there is something to copy, if it is one."""
        return [] if self.is_whole else [cpp.Binary("!=", self.count, cpp.ZERO)]


def _piece(
    ctx: Context,
    tensor: Tensor,
    offset: tuple[ScalarExpr, ...],
    shape: tuple[int, ...],
    dims: tuple[int, ...],
    unmasked: tuple[int, ...],
) -> _Piece:
    rank = len(shape)
    outer = next((d for d in range(rank) if shape[d] > 1), 0)
    slices, at = shape[outer], dims[outer]
    source = GlobalTile(ctx, tensor, offset, dims, ((),) * rank, (*unmasked, at))
    inside = source.inside((0,) * rank)
    count: Expr = cpp.Int(slices)
    if at not in unmasked:
        count = _clamped(ctx, ctx.views[tensor], at, offset[at], slices)
    count = count if inside == cpp.TRUE else cpp.Conditional(inside, count, cpp.ZERO)
    size = prod(shape) // slices * source.dtype.nbits // 8
    return _Piece(source.address((0,) * rank), ctx.constant("u32", "count", count), slices, size)


def _clamped(ctx: Context, view: View, at: int, start: ScalarExpr, most: int) -> Expr:
    """Return how many slices from a start on, which is not negative, lie inside of a view."""
    kind = "i64" if view.wide[at] or dtype_of(start).nbits == 64 else "i32"
    left = ctx.constant(kind, "left", cpp.convert(kind, view.extents[at]) - cpp.convert(kind, wide(ctx, start)))
    some = cpp.Conditional(cpp.Binary("<", left, cpp.Int(most)), cpp.convert("u32", left), cpp.Int(most))
    return cpp.Conditional(cpp.Binary(">", left, cpp.ZERO), some, cpp.ZERO)


def _bytes_of(inst: I.CopyAsync) -> int:
    return shared(inst.dst)[0].dtype.nbits // 8


def _address(ctx: Context, inst: I.CopyAsync) -> Expr:
    """Return the shared address of the first element of a copy."""
    places, nowhere = shared(inst.dst)[1], ((),) * len(inst.shape)
    tile = SharedTile(
        ctx, places, base_of(ctx, inst.dst), _bytes_of(inst), inst.dst_offset, inst.dst_dims, inst.shape, nowhere
    )
    return tile.address((0,) * len(inst.shape))


def _write_zeros(ctx: Context, address: Expr, start: Expr, stop: int) -> None:
    """Have all lanes write zeros to vectors; the next copy to the same place must come after them."""
    words, vector = ctx.array("zeros", _UNIT // 4), Name(ctx.names.fresh("vector"))
    ctx.emit(*(cpp.Set(words[i], cpp.bits(0)) for i in range(_UNIT // 4)))
    store = cpp.Do(ctx.ptx(f"st_shared_b{8 * _UNIT}", address + vector * _UNIT, words))
    first = start + ctx.thread_digit(1, LANES)
    ctx.emit(cpp.For("u32", vector.text, first, cpp.Int(stop), LANES, (store,)))
    ctx.do("fence_proxy_async")
