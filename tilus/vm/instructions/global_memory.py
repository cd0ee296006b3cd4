"""Views, loads, stores and atomic additions of global memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tilus.ir.expr import Tensor
from tilus.ir.instructions import AtomicAdd, GlobalView, LoadElement, LoadGlobal, StoreGlobal
from tilus.ir.stmt import InstStmt
from tilus.ir.types import RegisterType
from tilus.layouts import RegisterLayout
from tilus.vm.claims import check_unmasked, check_width
from tilus.vm.memory import Access, Buffer, View, access
from tilus.vm.registry import meaning
from tilus.vm.values import Array, apply, encode, storage

if TYPE_CHECKING:
    from tilus.vm.machine import Block


@meaning(GlobalView)
def global_view(block: Block, stmt: InstStmt, inst: GlobalView) -> View:
    """Name a part of a buffer."""
    return View(block.read(inst.ptr), block.integers(inst.shape), block.integers(inst.strides))


def layout_of(tensor: object) -> RegisterLayout | None:
    """Return the layout of a register tensor, if it has one."""
    return tensor.type.layout if isinstance(tensor, Tensor) and isinstance(tensor.type, RegisterType) else None


def load_tile(view: View, found: Access, action: str, other: Array) -> Array:
    """Return the elements that an access means; outside of the view `other`."""
    view.buffer.check(found.index, f"{action} reads", found.inside)
    tile = np.full(found.index.shape, other, storage(view.buffer.dtype))
    tile[found.inside] = view.buffer.load(found.index[found.inside])
    return tile


@meaning(LoadGlobal)
def load_global(block: Block, stmt: InstStmt, inst: LoadGlobal) -> Array:
    """Load a tile."""
    view: View = block.read(inst.view)
    found = access(view, block.integers(inst.offset), inst.shape, inst.dims)
    check_unmasked(stmt.selected, found.inside_by_dim)
    check_width(stmt.selected, layout_of(stmt.out), found.index, found.inside)
    return load_tile(view, found, "load_global", encode(view.buffer.dtype, inst.other))


def _target(block: Block, stmt: InstStmt, inst: StoreGlobal | AtomicAdd, action: str) -> tuple[Buffer, Array, Array]:
    """Return the buffer, the elements of it that are written, and the values for them."""
    view: View = block.read(inst.view)
    tile = block.value(inst.tile)
    found = access(view, block.integers(inst.offset), tile.shape, inst.dims)
    check_unmasked(stmt.selected, found.inside_by_dim)
    check_width(stmt.selected, layout_of(inst.tile), found.index, found.inside)
    view.buffer.check(found.index, f"{action} writes", found.inside)
    return view.buffer, found.index[found.inside], tile[found.inside]


@meaning(StoreGlobal)
def store_global(block: Block, stmt: InstStmt, inst: StoreGlobal) -> None:
    """Store a tile."""
    buffer, index, values = _target(block, stmt, inst, "store_global")
    buffer.store(index, values)


@meaning(AtomicAdd)
def atomic_add(block: Block, stmt: InstStmt, inst: AtomicAdd) -> None:
    """Add a tile, one element of the tile after the other."""
    buffer, index, values = _target(block, stmt, inst, "atomic_add")
    while index.size:
        # The first element of the tile at each place; elements that fall on the same place wait for the next round.
        now = np.unique(index, return_index=True)[1]
        buffer.store(index[now], apply("add", buffer.dtype, (buffer.load(index[now]), values[now])))
        index, values = np.delete(index, now), np.delete(values, now)


@meaning(LoadElement)
def load_element(block: Block, stmt: InstStmt, inst: LoadElement) -> Array:
    """Load one element."""
    buffer: Buffer = block.read(inst.ptr)
    index = np.asarray(block.integer(inst.index))
    buffer.check(index, "load_element reads")
    return buffer.load(index.reshape(1)).reshape(())
