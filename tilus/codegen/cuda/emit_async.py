"""Emitters of asynchronous copies from global to shared memory."""

from __future__ import annotations

from tilus.codegen.cuda import cpp, emit_bulk, ring
from tilus.codegen.cuda import ptx as rows
from tilus.codegen.cuda.context import Context, shared
from tilus.codegen.cuda.emit_global import selected_of
from tilus.codegen.cuda.emit_shared import store_vector
from tilus.codegen.cuda.global_tile import GlobalTile
from tilus.codegen.cuda.placement import is_first_replica, local_indices, thread_terms
from tilus.codegen.cuda.shared_tile import SharedTile, base_of
from tilus.errors import CodegenError
from tilus.ir import instructions as I
from tilus.ir.stmt import InstStmt
from tilus.layouts import dealt_vectors


def copy_async(ctx: Context, stmt: InstStmt, out: None, inst: I.CopyAsync) -> None:
    """Deal the vectors of a tile to the threads, side by side along the contiguous dimension.

    Outside of the view `cp.async` reads no bytes and writes zeros.
    """
    selected = selected_of(stmt)
    if selected.atom == "cp.async.bulk":
        emit_bulk.copy(ctx, inst, selected.unmasked)
        return
    kind, places = shared(inst.dst)
    nbytes = kind.dtype.nbits // 8
    size = selected.width * nbytes
    threads = ctx.target.lanes if ctx.is_producer else ctx.num_threads
    layout = dealt_vectors(threads, inst.shape, _contiguous(ctx, inst, selected.width), selected.width)
    terms, first = thread_terms(ctx, layout), is_first_replica(ctx, layout)
    source = GlobalTile(ctx, inst.src, inst.src_offset, inst.src_dims, terms, selected.unmasked)
    to = SharedTile(ctx, places, base_of(ctx, inst.dst), nbytes, inst.dst_offset, inst.dst_dims, inst.shape, terms)
    for index in local_indices(layout)[:: selected.width]:
        inside, address, pointer = source.inside(index), to.address(index), source.address(index)
        if selected.atom == "cp.async":
            read = cpp.Int(size) if inside == cpp.TRUE else cpp.Conditional(inside, cpp.bits(size), cpp.bits(0))
            with ctx.where(first):
                ctx.do(f"cp_async_{size}", address, pointer, read)
        else:
            _through_registers(ctx, size, inside=inside, pointer=pointer, address=address, first=first)


def _through_registers(
    ctx: Context, size: int, *, inside: cpp.Expr, pointer: cpp.Expr, address: cpp.Expr, first: cpp.Expr
) -> None:
    words = ctx.array("part", size // 4)
    if inside == cpp.TRUE:
        ctx.do(f"ld_global_b{8 * size}", words, pointer)
    else:
        ctx.emit(*(cpp.Set(words[w], cpp.bits(0)) for w in range(max(size // 4, 1))))
        ctx.do(f"ld_global_b{8 * size}_if", words, pointer, inside)
    store_vector(ctx, 8 * size, address, words, first)


def _contiguous(ctx: Context, inst: I.CopyAsync, width: int) -> int:
    """Return the tile dimension of neighbours in memory: of several, the longest, then the last."""
    strides = ctx.views[inst.src].strides
    unit = [d for d, at in enumerate(inst.src_dims) if strides[at] == cpp.ONE and inst.shape[d] % width == 0]
    if not unit and width > 1:
        raise CodegenError(
            f"{width} elements cannot be copied at once: no dimension of {inst.src.name!r} has the stride 1",
            loc=inst.loc,
        )
    return max(unit, key=lambda d: (inst.shape[d], d), default=len(inst.shape) - 1)


def commit_group(ctx: Context, stmt: InstStmt, out: None, inst: I.CommitGroup) -> None:
    """Close a group of copies; consumers leave the stage of one."""
    if ctx.ring is None:
        ctx.do("cp_async_commit")
    else:
        ring.advance(ctx, ctx.ring)


def wait_group(ctx: Context, stmt: InstStmt, out: None, inst: I.WaitGroup) -> None:
    """Wait until at most `pending` groups are under way."""
    if ctx.ring is None:
        ctx.do(rows.wait_group(inst.pending))
    else:
        ring.wait_full(ctx, ctx.ring)
