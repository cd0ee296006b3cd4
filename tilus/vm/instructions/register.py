"""Register tensors: each is one array of the tile's shape.

Where threads and registers matter, `view` and the races of shared memory, the array is spread over them by the layout.
That is the same as keeping an array of shape (threads, local) throughout, since all other instructions are defined by
index: replicas can come to disagree in a `view` only, and there they are compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tilus.casts import form_named
from tilus.dtypes import DataType
from tilus.ir.expr import Tensor, dtype_of
from tilus.ir.instructions import (
    Arange,
    Cast,
    ConvertLayout,
    Copy,
    Dot,
    Elementwise,
    Full,
    Reduce,
    Reshape,
    Slice,
    Transpose,
    Unpack,
    View,
)
from tilus.ir.stmt import InstStmt
from tilus.ir.types import RegisterType
from tilus.layouts import BitLayout, RegisterLayout, gather, local, locate_table, scatter
from tilus.layouts.scratch import plan_scratch
from tilus.vm.fault import Fault
from tilus.vm.instructions.global_memory import layout_of
from tilus.vm.registry import meaning
from tilus.vm.values import Array, apply, cast, dot, from_codes, reduce, to_codes, wrap

if TYPE_CHECKING:
    from tilus.vm.machine import Block


@meaning(Full)
def full(block: Block, stmt: InstStmt, inst: Full) -> Array:
    """Fill a tile."""
    value = block.scalar(inst.value)
    return np.full(inst.shape, value, value.dtype)


@meaning(Arange)
def arange(block: Block, stmt: InstStmt, inst: Arange) -> Array:
    """Count along a dimension."""
    along = [1] * len(inst.shape)
    along[inst.dim] = inst.shape[inst.dim]
    steps = np.arange(inst.shape[inst.dim], dtype=np.int64).reshape(along)
    counted = wrap(dtype_of(inst.start), steps + block.integer(inst.start))
    return np.array(np.broadcast_to(counted, inst.shape))


@meaning(Copy)
def copy(block: Block, stmt: InstStmt, inst: Copy) -> Array:
    """Return the same elements."""
    return block.tile(inst.x)


@meaning(Cast)
def cast_(block: Block, stmt: InstStmt, inst: Cast) -> Array:
    """Convert every element."""
    return cast(block.value(inst.x), inst.x.type.dtype, inst.dtype)


@meaning(View)
def view(block: Block, stmt: InstStmt, inst: View) -> Array:
    """Reinterpret the bits of every thread."""
    registers = _view(block, inst.x, inst.dtype, inst.layout, inst.bits)
    return from_codes(inst.dtype, _tile_of(inst.layout, registers))


@meaning(Unpack)
def unpack(block: Block, stmt: InstStmt, inst: Unpack) -> Array:
    """Take the codes, and then what the form makes of each, which depends on its slot."""
    codes = _view(block, inst.x, inst.source, inst.layout, inst.bits)
    if inst.form == "value":
        tile = from_codes(inst.source, _tile_of(inst.layout, codes))
        return cast(tile, inst.source, inst.dtype)
    form = form_named(inst.form, inst.source, inst.dtype)
    tables = np.stack([[form.patterns(p, turned) for p in inst.positions] for turned in (False, True)])
    elements = np.arange(inst.layout.local_size)
    slots = elements // (inst.bits.units * inst.bits.lanes)
    turned = np.array([inst.bits.turned(element) for element in elements.tolist()], int)
    spelled = tables[turned, slots, codes].astype(inst.dtype.code_dtype)
    return from_codes(inst.dtype, _tile_of(inst.layout, spelled))


def _view(block: Block, x: Tensor, dtype: DataType, layout: RegisterLayout, places: BitLayout | None) -> Array:
    """Return the codes (threads, locals) of another type that a tile's registers hold."""
    tile = block.tile(x)
    source, old = x.type.dtype, layout_of(x) or local(*tile.shape)
    bits = _bits_of(gather(old, to_codes(source, tile)), source)
    if bits.shape != (layout.num_threads, layout.local_size * dtype.nbits):
        raise Fault(
            f"view of {bits.shape[0]} threads with {bits.shape[1]} bits each as {layout.num_threads} threads with "
            f"{layout.local_size * dtype.nbits}",
            hint=None if layout_of(x) else f"{x.name!r} has no layout: give it one with annotate",
        )
    if places is None:
        return _codes_of(bits, dtype)
    words = np.packbits(bits, axis=-1, bitorder="little").view(np.uint32)
    return np.asarray(places.unpack(words).astype(dtype.code_dtype))


def _tile_of(layout: RegisterLayout, registers: Array) -> Array:
    tile = scatter(layout, registers)
    _check_replicas(layout, registers, tile)
    return tile


def _bits_of(codes: Array, kind: DataType) -> Array:
    """Return the bits of each row of codes, lowest first: shape (rows, codes * nbits)."""
    shifts = np.arange(kind.nbits, dtype=codes.dtype)
    bits = (codes[..., None] >> shifts) & codes.dtype.type(1)
    return np.asarray(bits.astype(np.uint8).reshape(len(codes), -1))


def _codes_of(bits: Array, kind: DataType) -> Array:
    """Return the codes that rows of bits spell: the inverse of `_bits_of`."""
    weights = np.left_shift(np.uint64(1), np.arange(kind.nbits, dtype=np.uint64))
    groups = bits.reshape(len(bits), -1, kind.nbits).astype(np.uint64)
    return np.asarray((groups * weights).sum(axis=-1, dtype=np.uint64).astype(kind.code_dtype))


def _check_replicas(layout: RegisterLayout, registers: Array, tile: Array) -> None:
    wrong = gather(layout, tile) != registers
    if not np.any(wrong):
        return
    thread, place = (int(i) for i in np.argwhere(wrong)[0])
    index = layout(thread, place)
    holder = int(locate_table(layout)[0][index][0])
    raise Fault(
        f"replicas disagree: threads {holder} and {thread} both hold element {index} of {layout}, with different bits"
    )


@meaning(ConvertLayout)
def convert_layout(block: Block, stmt: InstStmt, inst: ConvertLayout) -> Array:
    """Return the same elements; on the way, scratch memory may be overwritten."""
    x, source = block.tile(inst.x), layout_of(inst.x)
    if stmt.selected is not None and stmt.selected.atom == "shared" and source is not None:
        nbytes = max(8, inst.x.type.dtype.nbits) // 8
        scratch = plan_scratch(source, inst.layout, nbytes)
        block.shared.clobber(stmt.selected.width, scratch.layout.storage_size * nbytes)
    return x


@meaning(Elementwise)
def elementwise(block: Block, stmt: InstStmt, inst: Elementwise) -> Array:
    """Apply an operator; NumPy broadcasts as the instruction does."""
    last = inst.args[-1]
    kind = last.type.dtype if isinstance(last, Tensor) else dtype_of(last)
    return apply(inst.op, kind, tuple(block.value(arg) for arg in inst.args))


@meaning(Reduce)
def reduce_(block: Block, stmt: InstStmt, inst: Reduce) -> Array:
    """Reduce along one dimension."""
    return reduce(inst.op, inst.x.type.dtype, block.value(inst.x), inst.dim, inst.keepdims)


@meaning(Transpose)
def transpose(block: Block, stmt: InstStmt, inst: Transpose) -> Array:
    """Reorder dimensions."""
    return np.transpose(block.tile(inst.x), inst.perm)


@meaning(Reshape)
def reshape(block: Block, stmt: InstStmt, inst: Reshape) -> Array:
    """Rename indices in row-major order."""
    return block.tile(inst.x).reshape(inst.shape)


@meaning(Slice)
def slice_(block: Block, stmt: InstStmt, inst: Slice) -> Array:
    """Take a part."""
    part = tuple(slice(o, o + n) for o, n in zip(inst.offset, inst.shape, strict=True))
    return block.tile(inst.x)[part]


@meaning(Dot)
def dot_(block: Block, stmt: InstStmt, inst: Dot) -> Array:
    """Multiply matrices."""
    acc = inst.c.type
    assert isinstance(acc, RegisterType)
    return dot(block.value(inst.a), block.value(inst.b), block.value(inst.c), inst.a.type.dtype, acc.dtype)
