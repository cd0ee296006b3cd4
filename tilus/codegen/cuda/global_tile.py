"""Addresses and bounds of the elements of a tile in global memory.

The part of an address that the thread and the offset determine is computed once, in 64 bits; elements differ from it by
constants, or by multiples of run-time strides.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.context import Context
from tilus.codegen.cuda.cpp import Expr
from tilus.codegen.cuda.placement import Coordinates, Index, sum_of
from tilus.codegen.cuda.scalars import scalar, wide
from tilus.codegen.cuda.types import signed
from tilus.dtypes import DataType
from tilus.errors import CodegenError
from tilus.ir.expr import Const, Tensor, dtype_of
from tilus.ir.expr import Expr as ScalarExpr
from tilus.ir.types import GlobalType

_BYTE = 8


class GlobalTile:
    """The elements of one tile that a thread accesses.

    Parameters
    ----------
    ctx : Context
    tensor : Tensor
        A global view.
    offset : sequence of scalar expressions
        One for each dimension of the view.
    dims : sequence of int
        Dimension of the view that each dimension of the tile runs along.
    thread : Coordinates
        The thread's part of the index into the tile.
    unmasked : sequence of int
        Dimensions of the view in which no bounds need be tested.
    """

    def __init__(
        self,
        ctx: Context,
        tensor: Tensor,
        offset: Sequence[ScalarExpr],
        dims: Sequence[int],
        thread: Coordinates,
        unmasked: Sequence[int] = (),
    ) -> None:
        self.ctx = ctx
        self.dtype = bit_packed(tensor)
        self._view = ctx.views[tensor]
        self._tile_dim = {at: d for d, at in enumerate(dims)}
        self._starts: dict[int, Expr] = {}
        self._uniform: list[Expr] = []
        self._rows: dict[tuple[tuple[int, int], ...], Expr] = {}
        for at, start in enumerate(offset):
            if at not in unmasked:
                self._test(at, start, thread)
        self._base = self._base_of(offset, thread)

    def _test(self, at: int, start: ScalarExpr, thread: Coordinates) -> None:
        """Prepare the bounds test of one dimension of the view: one unsigned comparison tests both ends."""
        extent, d = self._view.extents[at], self._tile_dim.get(at)
        long = self._view.wide[at] or dtype_of(start).nbits == 64
        kind = "u64" if long else "u32"
        first = _held(self.ctx, start, long)
        inner = sum_of(thread[d]) if d is not None else cpp.ZERO
        index = first + inner
        if isinstance(index, cpp.Int) and isinstance(extent, cpp.Int) and d is None:
            self._uniform.append(cpp.TRUE if 0 <= index.value < extent.value else cpp.FALSE)
            return
        if isinstance(index, cpp.Int) or (isinstance(index, cpp.Name) and d is None):
            index = cpp.convert(kind, index)
        if d is None:
            self._uniform.append(cpp.Binary("<", index, _as(kind, extent)))
        else:
            self._starts[at] = self.ctx.constant(kind, "index", index)

    def _base_of(self, offset: Sequence[ScalarExpr], thread: Coordinates) -> Expr:
        terms: list[Expr] = []
        for at, (start, stride) in enumerate(zip(offset, self._view.strides, strict=True)):
            d = self._tile_dim.get(at)
            inner = sum_of(thread[d]) if d is not None else cpp.ZERO
            if not isinstance(inner, cpp.Int):
                inner = cpp.convert("i64", inner)
            terms.append((wide(self.ctx, start) + inner) * stride)
        elements = cpp.total(terms)
        pointer = self.ctx.name(self._view.pointer)
        if self.dtype.nbits % _BYTE:
            self._bits = self.ctx.constant("i64", "bit", elements * self.dtype.nbits)
            return pointer
        return self.ctx.constant("pointer", "at", pointer + elements * (self.dtype.nbits // _BYTE))

    def _delta(self, index: Index, unit: int) -> tuple[Expr, int]:
        """Return how far an element lies behind the thread's first, in `unit`s: a named run-time part, a constant."""
        constant, moving = 0, []
        for at, d in self._tile_dim.items():
            stride = self._view.strides[at]
            if isinstance(stride, cpp.Int):
                constant += index[d] * stride.value * unit
            elif index[d]:
                moving.append((at, index[d]))
        key = tuple(moving)
        if key not in self._rows:
            step = cpp.total([self._view.strides[at] * i for at, i in moving])
            self._rows[key] = self.ctx.constant("i64", "step", step * unit)
        return self._rows[key], constant

    def address(self, index: Index) -> Expr:
        """Return a pointer to the element whose index in the thread's part is `index`; it begins a byte."""
        if self.dtype.nbits % _BYTE:
            return self._base + (self.bit(index) >> 3)
        step, constant = self._delta(index, self.dtype.nbits // _BYTE)
        return cpp.add(self._base if step == cpp.ZERO else self._base + step, constant)

    def bit(self, index: Index) -> Expr:
        """Return the bit, counted from the pointer, at which an element narrower than a byte begins."""
        step, constant = self._delta(index, self.dtype.nbits)
        return cpp.add(self._bits if step == cpp.ZERO else self._bits + step, constant)

    @property
    def is_masked(self) -> bool:
        """Whether elements may lie outside."""
        return bool(self._starts) or any(test != cpp.TRUE for test in self._uniform)

    @property
    def pointer(self) -> Expr:
        """What `bit` counts from."""
        return self._base

    def inside(self, index: Index) -> Expr:
        """Return the condition that an element lies inside the view."""
        tests = list(self._uniform)
        for at, start in self._starts.items():
            kind = "u64" if self._view.wide[at] else "u32"
            tests.append(cpp.Binary("<", start + index[self._tile_dim[at]], _as(kind, self._view.extents[at])))
        return cpp.all_of(tests)


def _held(ctx: Context, start: ScalarExpr, long: bool) -> Expr:
    """Return an offset as an unsigned integer, sign extended where need be."""
    if isinstance(start, Const):
        return cpp.Int(int(start.value))
    value = scalar(ctx, start)
    dtype = dtype_of(start)
    if long and dtype.nbits < 64:
        return cpp.convert("u64", cpp.convert("i64", signed(dtype, value)))
    return cpp.convert("u32", value) if dtype.nbits < 32 else value


def _as(kind: str, value: Expr) -> Expr:
    return value if isinstance(value, cpp.Int) else cpp.convert(kind, value) if kind == "u64" else value


def bit_packed(tensor: Tensor) -> DataType:
    """Return the element type of a view; its elements must be a stream of bits."""
    assert isinstance(tensor.type, GlobalType)
    dtype = tensor.type.dtype
    if not dtype.is_bit_packed:
        raise CodegenError(
            f"{dtype} elements are no stream of bits in memory, {tensor.name!r} cannot be accessed by tiles",
            hint="load the packed bytes as u8, or use t2",
        )
    return dtype
