"""Bulk copies: thread 0 has a whole tile copied by one instruction, and its warp waits on behalf of the block.

The language's groups become phases of mbarriers. A group is open from the commit before to its own; thread 0 tells the
group's mbarrier how many bytes to expect and arrives at the commit, so the phase ends when all of them are there. Where
other copies are waited for, warp 0 (as a whole: a lane alone would part from it) waits for the phases of the groups
that must have landed, oldest first. The `sync()` that a program needs anyhow before threads read what others have
copied makes the bytes known to all.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.context import Context, View, shared
from tilus.codegen.cuda.cpp import Expr, Name
from tilus.codegen.cuda.emit_shared import base_of
from tilus.codegen.cuda.global_tile import GlobalTile
from tilus.codegen.cuda.scalars import wide
from tilus.codegen.cuda.shared_tile import SharedTile
from tilus.ir import instructions as I
from tilus.ir.expr import Expr as ScalarExpr
from tilus.ir.expr import Tensor, dtype_of
from tilus.ir.node import walk
from tilus.ir.program import Program
from tilus.ir.stmt import InstStmt

_UNIT = 16  # bytes of the vectors by which zeros are written
_BARRIER = 8  # bytes of an mbarrier
# Variables of the kernel: the address of the first mbarrier, how many groups were committed, and how many waited for.
_FIRST, _COMMITTED, _LANDED = (Name(f"bulk_{x}") for x in ("first", "committed", "landed"))
_LEADER = cpp.Binary("==", Name("tid"), cpp.ZERO)
_WARP = cpp.Binary("<", Name("tid"), cpp.Int(32))


@dataclass(frozen=True, slots=True)
class Phases:
    """The mbarriers of a kernel, which are used in turn.

    Attributes
    ----------
    depth : int
        How many there are, a power of two: more than the groups that any wait leaves under way and the open one.
    fenced : bool
        Whether threads may have written, by other instructions, to memory that is copied to.
    """

    depth: int
    fenced: bool

    @property
    def nbytes(self) -> int:
        """Shared memory of the barriers."""
        return self.depth * _BARRIER

    def barrier(self, group: Expr) -> Expr:
        """Return the address of a group's mbarrier."""
        return _FIRST + group % self.depth * _BARRIER


def find_phases(program: Program) -> Phases | None:
    """Return the barriers that a program needs; None if it has no bulk copies."""
    lines = [line for line in walk(program) if isinstance(line, InstStmt)]
    places = {line.out: line.inst.byte_offset or 0 for line in lines if isinstance(line.inst, I.AllocShared)}
    bulk: list[range] = []
    others: list[range] = []
    for line in lines:
        match line.inst:
            case I.CopyAsync(dst=tensor) | I.StoreShared(dst=tensor):
                taken = range(places[tensor], places[tensor] + storage(tensor))
                (bulk if _atom(line) == "cp.async.bulk" else others).append(taken)
            case I.ConvertLayout() if line.selected is not None and _atom(line) == "shared":
                others.append(range(line.selected.width, program.shared_bytes or 0))
    if not bulk:
        return None
    pending = max((line.inst.pending for line in lines if isinstance(line.inst, I.WaitGroup)), default=0)
    depth = 1 << (pending + 1).bit_length()
    return Phases(depth, any(a.start < b.stop and b.start < a.stop for a in bulk for b in others))


def _atom(line: InstStmt) -> str:
    return "" if line.selected is None else line.selected.atom


def storage(tensor: Tensor) -> int:
    """Return the bytes of a shared tensor."""
    kind, layout = shared(tensor)
    return layout.storage_size * kind.dtype.nbits // 8


def begin(ctx: Context, phases: Phases, start: int) -> list[cpp.Stmt]:
    """Return the statements that place the barriers in shared memory from a byte on and initialise them."""
    barrier = Name("barrier")
    init = cpp.Do(ctx.ptx("mbarrier_init", barrier))
    every = cpp.For("u32", barrier.text, _FIRST, _FIRST + phases.nbytes, _BARRIER, (init,))
    known = cpp.Do(cpp.call("__syncwarp"))
    return [
        cpp.Declare("u32", _FIRST.text, Name("smem") + start, constant=True),
        cpp.Declare("u32", _COMMITTED.text, cpp.ZERO),
        cpp.Declare("u32", _LANDED.text, cpp.ZERO),
        cpp.If(_WARP, (cpp.If(_LEADER, (every, cpp.Do(ctx.ptx("fence_mbarrier_init")))), known)),
    ]


def copy(ctx: Context, inst: I.CopyAsync, phases: Phases, unmasked: tuple[int, ...]) -> None:
    """Have the part of a tile that lies inside of the view copied; all threads write zeros for the rest."""
    with ctx.block():
        piece = _piece(ctx, inst.src, inst.src_offset, inst.shape, inst.src_dims, unmasked)
        with ctx.where(piece.exists):
            if phases.fenced:
                ctx.do("fence_proxy_async")
            barrier = phases.barrier(_COMMITTED)
            ctx.do("mbarrier_expect", barrier, piece.nbytes)
            ctx.do("cp_async_bulk", _address(ctx, inst), piece.address, piece.nbytes, barrier)
        if not piece.is_whole:
            with ctx.where(cpp.Binary("<", piece.count, cpp.Int(piece.slices))):
                first, last = piece.count * (piece.size // _UNIT), piece.slices * piece.size // _UNIT
                _write_zeros(ctx, _address(ctx, inst), first, last)


def prefetch(ctx: Context, inst: I.Prefetch, unmasked: tuple[int, ...]) -> None:
    """Have the part of a tile that lies inside of the view prefetched."""
    with ctx.block():
        piece = _piece(ctx, inst.view, inst.offset, inst.shape, inst.dims, unmasked)
        with ctx.where(piece.exists):
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
    def exists(self) -> Expr:
        """Whether this is the thread that copies, and there is something to copy."""
        return _LEADER if self.is_whole else cpp.all_of([_LEADER, cpp.Binary("!=", self.count, cpp.ZERO)])


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
    """Have all threads write zeros to vectors; the next copy to the same place must come after them."""
    words, vector = ctx.array("zeros", _UNIT // 4), Name(ctx.names.fresh("vector"))
    ctx.emit(*(cpp.Set(words[i], cpp.bits(0)) for i in range(_UNIT // 4)))
    store = cpp.Do(ctx.ptx(f"st_shared_b{8 * _UNIT}", address + vector * _UNIT, words))
    first = start + Name("tid")
    ctx.emit(cpp.For("u32", vector.text, first, cpp.Int(stop), ctx.num_threads, (store,)))
    ctx.do("fence_proxy_async")


def commit(ctx: Context, phases: Phases) -> None:
    """Close the open group; where all mbarriers are in use, wait for the oldest group."""
    with ctx.where(_LEADER):
        ctx.do("mbarrier_arrive", phases.barrier(_COMMITTED))
    ctx.emit(cpp.Set(_COMMITTED, _COMMITTED + 1))
    wait(ctx, phases, phases.depth - 1)


def wait(ctx: Context, phases: Phases, pending: int) -> None:
    """Wait until at most `pending` groups are under way."""
    more = cpp.Binary(">", _COMMITTED - _LANDED, cpp.Int(pending))
    landed = ctx.ptx("mbarrier_try_wait", phases.barrier(_LANDED), _LANDED // phases.depth % 2)
    poll = cpp.While(cpp.Binary("==", landed, cpp.ZERO), ())
    with ctx.where(_WARP):
        ctx.emit(cpp.While(more, (poll, cpp.Set(_LANDED, _LANDED + 1))))


def end(ctx: Context, phases: Phases) -> None:
    """Let no copy land in shared memory that belongs to another block by then."""
    wait(ctx, phases, 0)
