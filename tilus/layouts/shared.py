"""Shared layouts: where in shared memory every element of a tile lies.

A shared layout factors every dimension into modes, as a register layout does, and gives each mode a stride in
elements: offset = sum(digit * stride). A swizzle then XORs some bits of the offset into lower ones, which permutes
the 16-byte chunks of a row differently from row to row, so that a column of chunks lies in different banks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, prod
from operator import index as as_int
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from tilus.errors import LayoutError
from tilus.layouts.printer import shared_table, shared_text

Offsets = npt.NDArray[np.int64]


class Mode(NamedTuple):
    """One factor of a dimension and its step in memory, in elements."""

    size: int
    stride: int


@dataclass(frozen=True, slots=True)
class Swizzle:
    """XOR the offset bits [base+shift, base+shift+bits) into the bits [base, base+bits). Bits count elements.

    It is its own inverse (the source bits lie above the target bits), and permutes every aligned block of
    `2**(base+bits)` offsets.
    """

    base: int
    bits: int
    shift: int

    def __post_init__(self) -> None:
        if self.base < 0 or self.bits < 1 or self.shift < self.bits:
            raise LayoutError(f"a swizzle needs base >= 0 and shift >= bits >= 1, got {self}")

    @property
    def period(self) -> int:
        """Moving a tile by a multiple of this many elements moves its swizzled offsets by the same."""
        return 1 << (self.base + self.shift + self.bits)

    @overload
    def __call__(self, offset: int) -> int: ...
    @overload
    def __call__(self, offset: Offsets) -> Offsets: ...
    def __call__(self, offset: int | Offsets) -> int | Offsets:
        """Return the swizzled offset; works on arrays."""
        mask = ((1 << self.bits) - 1) << self.base
        return offset ^ ((offset >> self.shift) & mask)


@dataclass(frozen=True, slots=True, repr=False)
class SharedLayout:
    """A map from index to element offset: modes with strides, then an optional swizzle.

    Canonical by construction: modes of size 1 are dropped, neighbours in a dimension that step on are merged, so equal
    maps without a swizzle are equal objects.

    Parameters
    ----------
    shape : tuple of int
        Extents of the tile.
    mode_shape, mode_strides : tuple of int
        Sizes and strides (in elements, at least 0) of the modes, dimension by dimension, outermost first.
    swizzle : Swizzle, optional
        Applied to the sum of strides.

    Raises
    ------
    LayoutError
        If the modes do not factor the shape.
    """

    shape: tuple[int, ...]
    mode_shape: tuple[int, ...]
    mode_strides: tuple[int, ...]
    swizzle: Swizzle | None = None

    def __post_init__(self) -> None:
        shape = tuple(as_int(n) for n in self.shape)
        if len(self.mode_shape) != len(self.mode_strides) or any(n < 1 for n in (*shape, *self.mode_shape)):
            raise LayoutError(f"expected extents of at least 1 and one stride per mode, got {self._fields()}")
        if any(stride < 0 for stride in self.mode_strides):
            raise LayoutError(f"strides in shared memory are at least 0, got {tuple(self.mode_strides)}")
        modes = [Mode(as_int(n), as_int(s)) for n, s in zip(self.mode_shape, self.mode_strides, strict=True) if n > 1]
        flat = [mode for group in _grouped(shape, modes, self._fields()) for mode in _merged(group)]
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "mode_shape", tuple(mode.size for mode in flat))
        object.__setattr__(self, "mode_strides", tuple(mode.stride for mode in flat))

    def _fields(self) -> str:
        return f"shape {tuple(self.shape)}, modes {tuple(self.mode_shape)}, strides {tuple(self.mode_strides)}"

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def grouped_modes(self) -> tuple[tuple[Mode, ...], ...]:
        """The modes of each dimension, outermost first."""
        modes = [Mode(n, s) for n, s in zip(self.mode_shape, self.mode_strides, strict=True)]
        return tuple(tuple(group) for group in _grouped(self.shape, modes, self._fields()))

    @property
    def storage_size(self) -> int:
        """Number of elements to allocate: the greatest offset plus one."""
        return int(offset_table(self).max()) + 1

    def __call__(self, *index: int | Offsets) -> int | Offsets:
        """Return the element offset at `index`; integer arrays broadcast to an array of offsets."""
        if len(index) != self.rank:
            raise LayoutError(f"{self} has {self.rank} dimensions, got an index of {len(index)}")
        offset: int | Offsets = 0
        for coordinate, group in zip(index, self.grouped_modes, strict=True):
            inner = 1
            for size, stride in reversed(group):
                offset = offset + coordinate // inner % size * stride
                inner *= size
        return offset if self.swizzle is None else self.swizzle(offset)

    def __str__(self) -> str:
        return shared_text(self)

    __repr__ = __str__

    def show(self) -> str:
        """Return a table with the offset of every index."""
        return shared_table(self)

    def swizzled(self, base: int, bits: int, shift: int) -> SharedLayout:
        """Return this layout with a swizzle; LayoutError if it has one."""
        if self.swizzle is not None:
            raise LayoutError(f"{self} is swizzled already")
        return self._with(self.shape, self.grouped_modes, Swizzle(base, bits, shift))

    def __mul__(self, other: SharedLayout) -> SharedLayout:
        """Replace every element of this layout by a copy of `other`, copies `other.storage_size` elements apart."""
        if not isinstance(other, SharedLayout):
            return NotImplemented
        rank = max(self.rank, other.rank)
        outer, inner = self.unsqueeze(range(rank - self.rank)), other.unsqueeze(range(rank - other.rank))
        size = inner.storage_size
        modes = [
            [*(Mode(m.size, m.stride * size) for m in outer_modes), *inner_modes]
            for outer_modes, inner_modes in zip(outer.grouped_modes, inner.grouped_modes, strict=True)
        ]
        shape = tuple(m * n for m, n in zip(outer.shape, inner.shape, strict=True))
        return self._with(shape, modes, _product_swizzle(outer, inner))

    def permute(self, *dims: int) -> SharedLayout:
        """Return the layout whose dimension k is this layout's dimension `dims[k]`."""
        if sorted(dims) != list(range(self.rank)):
            raise LayoutError(f"expected a permutation of {self.rank} dimensions, got {dims}")
        groups = self.grouped_modes
        return self._with(tuple(self.shape[d] for d in dims), [groups[d] for d in dims], self.swizzle)

    def reshape(self, *shape: int) -> SharedLayout:
        """Return the layout of the same elements, in row-major order, under another shape."""
        if prod(shape) != prod(self.shape):
            raise LayoutError(f"cannot reshape {self.shape} to {shape}: {prod(self.shape)} and {prod(shape)} elements")
        pieces = _regroup(_merged([mode for group in self.grouped_modes for mode in group]), shape)
        if pieces is None:
            raise LayoutError(
                f"cannot reshape {self} to {shape}: the modes {self.mode_shape} do not split at its borders"
            )
        return self._with(shape, pieces, self.swizzle)

    def unsqueeze(self, dims: int | Sequence[int]) -> SharedLayout:
        """Insert dimensions of extent 1, so that they are dimensions `dims` of the result."""
        new = (dims,) if isinstance(dims, int) else tuple(dims)
        rank = self.rank + len(new)
        places = {dim % rank for dim in new if -rank <= dim < rank}
        if len(places) != len(new):
            raise LayoutError(f"dimensions to insert must differ and lie in a rank of {rank}, got {new}")
        old = iter(self.shape)
        return self.reshape(*[1 if d in places else next(old) for d in range(rank)])

    def prepend_dim(self, extent: int) -> SharedLayout:
        """Return `extent` copies of this tile, one after the other: the buffers of a pipeline.

        Copies of a swizzled tile are a multiple of the swizzle's period apart, so that each has the same pattern.
        """
        period = 1 if self.swizzle is None else self.swizzle.period
        stride = -(-self.storage_size // period) * period
        return self._with((extent, *self.shape), [[Mode(extent, stride)], *self.grouped_modes], self.swizzle)

    @staticmethod
    def _with(shape: Sequence[int], groups: Sequence[Sequence[Mode]], swizzle: Swizzle | None) -> SharedLayout:
        modes = [mode for group in groups for mode in group]
        return SharedLayout(tuple(shape), tuple(m.size for m in modes), tuple(m.stride for m in modes), swizzle)


def shared_layout(
    shape: Sequence[int], mode_shape: Sequence[int], mode_strides: Sequence[int], swizzle: Swizzle | None = None
) -> SharedLayout:
    """Return the canonical shared layout with these modes; see `SharedLayout`."""
    return SharedLayout(tuple(shape), tuple(mode_shape), tuple(mode_strides), swizzle)


def strided(shape: Sequence[int], strides: Sequence[int]) -> SharedLayout:
    """One stride per dimension, in elements."""
    return SharedLayout(tuple(shape), tuple(shape), tuple(strides))


def row_major(*shape: int) -> SharedLayout:
    """Dense, the last dimension varies fastest."""
    return strided(shape, [prod(shape[d + 1 :]) for d in range(len(shape))])


def column_major(*shape: int) -> SharedLayout:
    """Dense, the first dimension varies fastest."""
    return strided(shape, [prod(shape[:d]) for d in range(len(shape))])


# Bytes of a row segment -> number of swizzled bits: as many 16-byte chunks as the segment has, up to all 32 banks.
_SEGMENT_BITS = {128: 3, 64: 2, 32: 1, 16: 0}


def row_major_swizzle(shape: Sequence[int], elem_bytes: int) -> SharedLayout:
    """Row-major with the usual XOR swizzle of 16-byte chunks, so that reading a column of chunks has no conflicts.

    A row is a multiple of the widest of 128, 64, 32, 16 bytes that divides it; a longer row is split into panels of
    that width, which lie one after the other. Rows that 16 bytes do not divide stay plain row-major.

    Parameters
    ----------
    shape : sequence of int
        Extents, at least one dimension.
    elem_bytes : int
        Bytes of an element: 1, 2, 4, 8 or 16.
    """
    if not shape or elem_bytes not in (1, 2, 4, 8, 16):
        raise LayoutError(f"expected at least one dimension and elements of 1 to 16 bytes, got {shape}, {elem_bytes}")
    row_bytes = shape[-1] * elem_bytes
    segment = next((width for width in _SEGMENT_BITS if row_bytes % width == 0), 0)
    if segment == 0 or len(shape) == 1:
        return row_major(*shape)
    columns = segment // elem_bytes
    panel = row_major(*shape[:-1], columns)
    panels = row_major(*shape[:-2], 1, shape[-1] // columns) * row_major(shape[-2], columns)
    layout = panel if shape[-1] == columns else panels
    bits = _SEGMENT_BITS[segment]
    return layout.swizzled((16 // elem_bytes).bit_length() - 1, bits, 3) if bits else layout


@lru_cache(maxsize=256)
def offset_table(layout: SharedLayout) -> Offsets:
    """Return the offset of every index, a read-only int64 array of the layout's shape."""
    coordinates = np.indices(layout.shape, dtype=np.int64)
    table = np.empty(layout.shape, dtype=np.int64)
    table[...] = layout(*coordinates)
    table.flags.writeable = False
    return table


def _grouped(shape: Sequence[int], modes: Sequence[Mode], fields: str) -> list[list[Mode]]:
    """Give every dimension its modes."""
    groups: list[list[Mode]] = []
    rest = iter(modes)
    for extent in shape:
        group: list[Mode] = []
        while (done := prod(mode.size for mode in group)) < extent:
            mode = next(rest, None)
            if mode is None or extent % (done * mode.size):
                raise LayoutError(f"the modes do not factor the shape: {fields}")
            group.append(mode)
        groups.append(group)
    if next(rest, None) is not None:
        raise LayoutError(f"there are more modes than the shape has: {fields}")
    return groups


def _merged(group: Sequence[Mode]) -> list[Mode]:
    merged: list[Mode] = []
    for mode in group:
        if merged and merged[-1].stride == mode.size * mode.stride:
            merged[-1] = Mode(merged[-1].size * mode.size, mode.stride)
        else:
            merged.append(mode)
    return merged


def _regroup(modes: Sequence[Mode], shape: Sequence[int]) -> list[list[Mode]] | None:
    """Split modes at the borders of a new shape, from the inside out; None if one does not split."""
    rest = list(modes)
    groups: list[list[Mode]] = []
    for extent in reversed(shape):
        group: list[Mode] = []
        while extent > 1:
            size, stride = rest.pop()
            inner = gcd(size, extent)
            if inner not in (size, extent):
                return None
            group.insert(0, Mode(inner, stride))
            if inner < size:
                rest.append(Mode(size // inner, stride * inner))
            extent //= inner
        groups.insert(0, group)
    return groups


def _product_swizzle(outer: SharedLayout, inner: SharedLayout) -> Swizzle | None:
    """Return the one swizzle that does in the product what the factors' swizzles did."""
    size = inner.storage_size
    if outer.swizzle is None and inner.swizzle is None:
        return None
    if outer.swizzle is None and inner.swizzle is not None and size % inner.swizzle.period == 0:
        return inner.swizzle
    if outer.swizzle is not None and inner.swizzle is None and size & (size - 1) == 0:
        return Swizzle(outer.swizzle.base + size.bit_length() - 1, outer.swizzle.bits, outer.swizzle.shift)
    raise LayoutError(
        f"the product of {outer} and {inner} is not one swizzle",
        hint="multiply the layouts first, then swizzle the product",
    )
