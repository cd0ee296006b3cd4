"""Shared memory, barriers and asynchronous copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tilus.ir.expr import Tensor
from tilus.ir.instructions import AllocShared, CommitGroup, CopyAsync, LoadShared, StoreShared, Sync, WaitGroup
from tilus.ir.stmt import InstStmt
from tilus.ir.types import SharedType
from tilus.layouts import locate_table
from tilus.vm.claims import check_unmasked, check_width
from tilus.vm.fault import Fault
from tilus.vm.instructions.global_memory import layout_of, load_tile
from tilus.vm.memory import View, access, coordinates
from tilus.vm.registry import meaning
from tilus.vm.shared import UNKNOWN, SharedTensor
from tilus.vm.values import Array, encode

if TYPE_CHECKING:
    from tilus.vm.machine import Block


@meaning(AllocShared)
def alloc_shared(block: Block, stmt: InstStmt, inst: AllocShared) -> SharedTensor:
    """Reserve memory with undefined contents."""
    out = stmt.out
    if not isinstance(out, Tensor) or not isinstance(out.type, SharedType):
        raise Fault("alloc_shared defines a shared tensor")
    return block.shared.allocate(out, inst.dtype, out.type.layout, inst.byte_offset)


def _threads(tensor: object, shape: tuple[int, ...]) -> Array:
    """Return the thread that holds each element of a register tile, `UNKNOWN` for several or without a layout."""
    layout = layout_of(tensor)
    if layout is None or layout.replication > 1:
        return np.full(shape, UNKNOWN)
    return np.asarray(locate_table(layout)[0][..., 0])


def _check_vectors(
    stmt: InstStmt, tile: object, t: SharedTensor, offset: tuple[int, ...], dims: tuple[int, ...]
) -> None:
    layout = layout_of(tile)
    if layout is not None and stmt.selected is not None and stmt.selected.width > 1:
        coords = coordinates(offset, layout.shape, dims)
        t.check_bounds(coords, f"{stmt.selected.atom} reaches")
        check_width(stmt.selected, layout, t.element_offsets(coords), None)


@meaning(LoadShared)
def load_shared(block: Block, stmt: InstStmt, inst: LoadShared) -> Array:
    """Load a tile."""
    t: SharedTensor = block.read(inst.src)
    offset = block.integers(inst.offset)
    _check_vectors(stmt, stmt.out, t, offset, inst.dims)
    return block.shared.load(t, stmt, _threads(stmt.out, inst.shape), offset, inst.shape, inst.dims)


@meaning(StoreShared)
def store_shared(block: Block, stmt: InstStmt, inst: StoreShared) -> None:
    """Store a tile."""
    t: SharedTensor = block.read(inst.dst)
    tile, offset = block.value(inst.tile), block.integers(inst.offset)
    _check_vectors(stmt, inst.tile, t, offset, inst.dims)
    block.shared.store(t, stmt, _threads(inst.tile, tile.shape), offset, tile, inst.dims)


@meaning(CopyAsync)
def copy_async(block: Block, stmt: InstStmt, inst: CopyAsync) -> None:
    """Start a copy; outside of the view zeros are written."""
    view: View = block.read(inst.src)
    found = access(view, block.integers(inst.src_offset), inst.shape, inst.src_dims)
    check_unmasked(stmt.selected, found.inside_by_dim)
    tile = load_tile(view, found, "copy_async", encode(view.buffer.dtype, 0))
    block.shared.start_copy(block.read(inst.dst), stmt, block.integers(inst.dst_offset), tile, inst.dst_dims)


@meaning(CommitGroup)
def commit_group(block: Block, stmt: InstStmt, inst: CommitGroup) -> None:
    """Close a group of copies."""
    block.shared.commit()


@meaning(WaitGroup)
def wait_group(block: Block, stmt: InstStmt, inst: WaitGroup) -> None:
    """Let groups land."""
    block.shared.wait(inst.pending)


@meaning(Sync)
def sync(block: Block, stmt: InstStmt, inst: Sync) -> None:
    """Order the accesses of all threads before it and after it."""
    block.shared.sync()
