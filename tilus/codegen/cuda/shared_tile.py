"""Addresses of the elements of a tile in shared memory: strides, then a swizzle.

Where the bits of the thread's part and of the constant part are disjoint, the swizzle, which is linear over XOR, acts
on each alone: the thread's part is swizzled once at run time, and each element's address is one XOR with a constant
and an immediate offset. Multiples of the swizzle's period stay outside of it. What a loop needs
of that, and the thread's strides outside, is computed before all loops (`Context.of_thread`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.context import Context, shared
from tilus.codegen.cuda.cpp import Expr
from tilus.codegen.cuda.placement import Coordinates, Index, Term
from tilus.codegen.cuda.scalars import scalar
from tilus.codegen.cuda.types import c_type
from tilus.ir.expr import Const, Tensor, dtype_of
from tilus.ir.expr import Expr as ScalarExpr
from tilus.layouts import SharedLayout
from tilus.layouts.shared import Mode


def base_of(ctx: Context, tensor: Tensor) -> Expr:
    """Return the shared address of a tensor."""
    return cpp.Name("smem") + ctx.shared_offsets[tensor]


def storage(tensor: Tensor) -> int:
    """Return the bytes of a shared tensor."""
    kind, layout = shared(tensor)
    return layout.storage_size * kind.dtype.nbits // 8


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run-time part of an element offset: `value * stride`, with `value` below `size`."""

    value: Expr
    size: int
    stride: int


class SharedTile:
    """The elements of one tile that a thread accesses.

    Parameters
    ----------
    ctx : Context
    layout : SharedLayout
        Of the shared tensor.
    base : Expr
        Shared address of the tensor, in bytes.
    nbytes : int
        Bytes of an element.
    offset : sequence of scalar expressions
        One for each dimension of the tensor.
    dims : sequence of int
        Dimension of the tensor that each dimension of the tile runs along.
    shape : sequence of int
        Extents of the tile.
    thread : Coordinates
        The thread's part of the index into the tile.
    """

    def __init__(
        self,
        ctx: Context,
        layout: SharedLayout,
        base: Expr,
        nbytes: int,
        offset: Sequence[ScalarExpr],
        dims: Sequence[int],
        shape: Sequence[int],
        thread: Coordinates,
    ) -> None:
        self.ctx, self.layout, self.nbytes = ctx, layout, nbytes
        self._dims = tuple(dims)
        self._starts = [_start(ctx, o) for o in offset]
        sizes = dict(zip(dims, shape, strict=True))
        tile_dim = {at: d for d, at in enumerate(dims)}
        self._terms = [thread[tile_dim[at]] if at in tile_dim else () for at in range(layout.rank)]
        groups = layout.grouped_modes
        parts = [
            _split(start, terms, group, sizes.get(at, 1))
            for at, (start, terms, group) in enumerate(zip(self._starts, self._terms, groups, strict=True))
        ]
        self._swizzled_parts: dict[int, Expr] = {}
        if any(part is None for part in parts):
            self._linear = False
            self._base = base
            return
        self._linear = True
        self._prepare(base, [p for part in parts if part is not None for p in part])

    def _prepare(self, base: Expr, pieces: list[_Piece]) -> None:
        """Name what all elements share."""
        ctx, swizzle = self.ctx, self.layout.swizzle
        period = swizzle.period if swizzle is not None else 1
        outside = [p for p in pieces if p.stride % period == 0]
        within = [p for p in pieces if p.stride % period]
        far = cpp.total([p.value * (p.stride * self.nbytes) for p in outside if not p.size])
        self._own = cpp.total([p.value * (p.stride * self.nbytes) for p in outside if p.size])
        self._mask = _bits_of(within)
        self._period = period
        if swizzle is None or self._mask is None:
            self._base = ctx.constant("u32", "base", base + far + ctx.of_thread(self._own))
            self._own = cpp.ZERO
            self._near = ctx.constant("u32", "near", cpp.total([p.value * p.stride for p in within]))
            return
        self._base = ctx.constant("u32", "base", base + far)
        self._near = cpp.total([p.value * p.stride for p in within])
        self._near_bytes = cpp.binary("*", _swizzled(self._near, self.layout), self.nbytes)

    def address(self, index: Index) -> Expr:
        """Return the shared address, in bytes, of the element whose index in the thread's part is `index`."""
        full = [0] * self.layout.rank
        for at, i in zip(self._dims, index, strict=True):
            full[at] = i
        if not self._linear:
            return self._from_coordinates(full)
        constant = _plain_offset(self.layout, full, self._starts)
        if self.layout.swizzle is None:
            return self._base + constant * self.nbytes
        low = constant % self._period
        high = (constant - low) * self.nbytes
        if self._mask is None or low & self._mask:
            return (self._base + self._own + _swizzled(self._near + low, self.layout) * self.nbytes) + high
        if low not in self._swizzled_parts:
            moved = self.layout.swizzle(low) * self.nbytes
            near = self._near_bytes ^ moved if self._near_bytes != cpp.ZERO else cpp.Int(moved)
            own = self.ctx.of_thread(cpp.add(self._own, near))
            self._swizzled_parts[low] = self.ctx.constant("u32", "at", self._base + own)
        return self._swizzled_parts[low] + high

    def _from_coordinates(self, index: Sequence[int]) -> Expr:
        """Compute digit by digit from the whole coordinate: where an offset may cut through a mode."""
        terms: list[Expr] = []
        for start, thread, i, group in zip(self._starts, self._terms, index, self.layout.grouped_modes, strict=True):
            coordinate = cpp.total([start, *(t.expr for t in thread), i])
            inner = 1
            for place, mode in reversed(list(enumerate(group))):
                digit = cpp.binary("/", coordinate, inner)
                terms.append((digit % mode.size if place else digit) * mode.stride)
                inner *= mode.size
        offset = self.ctx.constant("u32", "offset", cpp.total(terms))
        moved = offset if self.layout.swizzle is None else _swizzled(offset, self.layout)
        return self._base + moved * self.nbytes


def _start(ctx: Context, expr: ScalarExpr) -> Expr:
    if isinstance(expr, Const):
        return cpp.Int(int(expr.value))
    value = scalar(ctx, expr)
    return value if c_type(dtype_of(expr)) == "u32" else cpp.convert("u32", value)


def _split(start: Expr, terms: Sequence[Term], group: Sequence[Mode], extent: int) -> list[_Piece] | None:
    """Return the parts that an offset and the thread add to the element offset along one dimension.

    None where digits of the coordinate cannot be told apart without knowing the offset. A constant offset is left to
    the constant part.
    """
    if len(group) <= 1:
        stride = group[0].stride if group else 0
        pieces = [_Piece(t.value, t.size, t.stride * stride) for t in terms]
        if not isinstance(start, cpp.Int) and stride:
            pieces.append(_Piece(start, 0, stride))
        return pieces
    if not isinstance(start, cpp.Int) or start.value % extent:
        return None
    pieces, inner = [], 1
    for size, stride in reversed(group):
        if extent % inner and inner % extent:
            return None
        for term in terms:
            piece = _overlap(term, inner, size, stride)
            if piece is None:
                return None
            pieces += piece
        inner *= size
    return pieces


def _overlap(term: Term, inner: int, size: int, stride: int) -> list[_Piece] | None:
    """Return the part of a term that counts in the mode of `size` whose step in the coordinate is `inner`."""
    low, high = max(term.stride, inner), min(term.stride * term.size, inner * size)
    if low >= high:
        return []
    if low % term.stride or low % inner or high % low:
        return None
    value = term.value // (low // term.stride)
    if high < term.stride * term.size:
        value = value % (high // low)
    return [_Piece(value, high // low, low // inner * stride)]


def _plain_offset(layout: SharedLayout, index: Sequence[int], starts: Sequence[Expr]) -> int:
    """Return the element offset of the constant part of an index, not swizzled."""
    total = 0
    for i, start, group in zip(index, starts, layout.grouped_modes, strict=True):
        coordinate = i + (start.value if isinstance(start, cpp.Int) else 0)
        inner = 1
        for place, mode in reversed(list(enumerate(group))):
            digit = coordinate // inner
            total += (digit % mode.size if place else digit) * mode.stride
            inner *= mode.size
    return total


def _bits_of(pieces: Sequence[_Piece]) -> int | None:
    """Return the bits that may be set in a sum of pieces, None if that is not known or they may carry."""
    mask = 0
    for piece in pieces:
        size, stride = piece.size, piece.stride
        if size == 0 or size & (size - 1) or stride & (stride - 1):
            return None
        bits = (size - 1) * stride
        if mask & bits:
            return None
        mask |= bits
    return mask


def _swizzled(offset: Expr, layout: SharedLayout) -> Expr:
    swizzle = layout.swizzle
    assert swizzle is not None
    if isinstance(offset, cpp.Int):
        return cpp.Int(int(swizzle(offset.value)))
    mask = ((1 << swizzle.bits) - 1) << swizzle.base
    return offset ^ ((offset >> swizzle.shift) & mask)
