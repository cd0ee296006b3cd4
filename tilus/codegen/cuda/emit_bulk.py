"""A producer, one warp more than the program has, starts all copies: whole tiles by one instruction, if it can.

A ring of pairs of mbarriers has one pair for each stage of the pipeline. A stage is *full* when the producer has
started all copies of a group and their bytes have come; it is *free* when all consumers have left it. At the end of its
trip each side says so for the stage it is at, and goes on to the next one; before, the consumers wait until theirs is
full, and the producer until its is free. Both count the turns of the ring by one bit, the parity for which to wait. A
fresh barrier counts as having passed a phase of parity 1: in its first turn the producer finds all stages free.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.context import Context, View, shared
from tilus.codegen.cuda.cpp import Expr, Name
from tilus.codegen.cuda.global_tile import GlobalTile
from tilus.codegen.cuda.scalars import wide
from tilus.codegen.cuda.shared_tile import SharedTile, base_of
from tilus.ir import instructions as I
from tilus.ir.expr import Expr as ScalarExpr
from tilus.ir.expr import Tensor, dtype_of

_UNIT = 16  # bytes of the vectors by which zeros are written
_BARRIER = 8  # bytes of an mbarrier
_WARP = 32
# Variables of the kernel: the addresses of the first barrier, and of that which says that this thread's stage is full,
# and the turn's parity.
_FIRST, _STAGE, _PARITY = (Name(f"bulk_{x}") for x in ("first", "stage", "parity"))
_THREAD = Name("tid")
_FIRST_THREAD = cpp.Binary("==", _THREAD, cpp.ZERO)


@dataclass(frozen=True, slots=True)
class Ring:
    """The mbarriers of a kernel, those for full stages before those for free ones.

    Attributes
    ----------
    stages : int
    consumers : int
        Threads.
    deals : bool
        Whether there are copies that the producer's lanes share out.
    """

    stages: int
    consumers: int
    deals: bool

    @property
    def threads(self) -> int:
        """Threads of a block, the producer's among them."""
        return self.consumers + _WARP

    @property
    def free(self) -> int:
        """How many bytes a barrier for a free stage lies behind that for a full one."""
        return self.stages * _BARRIER

    @property
    def nbytes(self) -> int:
        """Shared memory of the barriers."""
        return 2 * self.free

    @property
    def is_consumer(self) -> Expr:
        """Whether this thread is a consumer's."""
        return cpp.Binary("<", _THREAD, cpp.Int(self.consumers))


def begin(ctx: Context, ring: Ring, start: int) -> list[cpp.Stmt]:
    """Return the statements that initialise the barriers, in shared memory from a byte on, and make them known."""
    barrier = Name("barrier")
    full = cpp.Do(ctx.ptx("mbarrier_init", barrier, cpp.Int(1 + _WARP * ring.deals)))
    free = cpp.Do(ctx.ptx("mbarrier_init", barrier, cpp.Int(ring.consumers // _WARP)))
    initialise = (
        cpp.For("u32", barrier.text, _FIRST, _FIRST + ring.free, _BARRIER, (full,)),
        cpp.For("u32", barrier.text, _FIRST + ring.free, _FIRST + ring.nbytes, _BARRIER, (free,)),
        cpp.Do(ctx.ptx("fence_mbarrier_init")),
    )
    return [
        cpp.Declare("u32", _FIRST.text, Name("smem") + start, constant=True),
        cpp.If(_FIRST_THREAD, initialise),
        cpp.Do(cpp.call("__syncthreads")),
        cpp.Declare("u32", _STAGE.text, _FIRST),
        cpp.Declare("u32", _PARITY.text, cpp.ZERO),
    ]


def wait_full(ctx: Context) -> None:
    """Have consumers wait until their stage is full."""
    _wait(ctx, _STAGE, _PARITY)


def wait_free(ctx: Context, ring: Ring) -> None:
    """Have the producer wait until its stage is free."""
    _wait(ctx, _STAGE + ring.free, _other(_PARITY))


def _wait(ctx: Context, barrier: Expr, parity: Expr) -> None:
    passed = ctx.ptx("mbarrier_try_wait", barrier, parity)
    ctx.emit(cpp.While(cpp.Binary("==", passed, cpp.ZERO), ()))


def _other(parity: Expr) -> Expr:
    return cpp.Binary("^", parity, cpp.ONE)


def advance(ctx: Context, ring: Ring) -> None:
    """Say that this warp is done with its stage, be it filled or left, and go on to the next one.

    Bulk copies count their bytes themselves, each lane's other copies arrive for it when they have landed.
    """
    if ctx.is_producer and ring.deals:
        ctx.do("cp_async_arrive", _STAGE)
    ctx.emit(cpp.Do(cpp.call("__syncwarp")))
    with ctx.block(), ctx.where(_elected(ctx)):
        ctx.do("mbarrier_arrive", _STAGE if ctx.is_producer else _STAGE + ring.free)
    _step(ctx, ring)


def _step(ctx: Context, ring: Ring) -> None:
    last = cpp.Binary("==", _STAGE, _FIRST + (ring.free - _BARRIER))
    turn = (cpp.Set(_STAGE, _FIRST), cpp.Set(_PARITY, _other(_PARITY)))
    ctx.emit(cpp.If(last, turn, (cpp.Set(_STAGE, _STAGE + _BARRIER),)))


def _elected(ctx: Context) -> Expr:
    """Return the condition that this is the one lane of a warp that acts for it; all of them must come here."""
    return cpp.Binary("!=", ctx.constant("u32", "elected", ctx.ptx("elect")), cpp.ZERO)


def end(ctx: Context, ring: Ring) -> None:
    """Have the producer wait for the copies that no consumer waits for: the block's shared memory ends with it."""
    with ctx.body() as body:
        _step(ctx, ring)
        _wait(ctx, _STAGE, _other(_PARITY))
    ctx.emit(cpp.For("u32", "i", cpp.ZERO, cpp.Int(ring.stages - 1), 1, tuple(body)))


def copy(ctx: Context, inst: I.CopyAsync, unmasked: tuple[int, ...]) -> None:
    """Have the part of a tile that lies inside of the view copied; the producer's lanes write zeros for the rest."""
    with ctx.block():
        piece = _piece(ctx, inst.src, inst.src_offset, inst.shape, inst.src_dims, unmasked)
        with ctx.where(cpp.all_of([_elected(ctx), *piece.exists])):
            ctx.do("mbarrier_expect", _STAGE, piece.nbytes)
            ctx.do("cp_async_bulk", _address(ctx, inst), piece.address, piece.nbytes, _STAGE)
        if not piece.is_whole:
            with ctx.where(cpp.Binary("<", piece.count, cpp.Int(piece.slices))):
                first, last = piece.count * (piece.size // _UNIT), piece.slices * piece.size // _UNIT
                _write_zeros(ctx, _address(ctx, inst), first, last)


def prefetch(ctx: Context, inst: I.Prefetch, unmasked: tuple[int, ...]) -> None:
    """Have the part of a tile that lies inside of the view prefetched."""
    with ctx.block():
        piece = _piece(ctx, inst.view, inst.offset, inst.shape, inst.dims, unmasked)
        with ctx.where(cpp.all_of([_elected(ctx) if ctx.is_producer else _FIRST_THREAD, *piece.exists])):
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
    first = start + ctx.thread_digit(1, _WARP)
    ctx.emit(cpp.For("u32", vector.text, first, cpp.Int(stop), _WARP, (store,)))
    ctx.do("fence_proxy_async")
