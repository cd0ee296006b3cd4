"""Global layouts: affine maps from index to offset, whose extents and strides may be run-time values.

An *operand* is an int or anything that supports ``+ * // %`` with ints and its like, for instance an expression of
the IR: this package does not know which. Ints fold here, so that a dense layout of known extents has known strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from tilus.errors import LayoutError

Operand: TypeAlias = Any


class GlobalMode(NamedTuple):
    """One factor of a dimension and its step in memory, in elements; both may be run-time values."""

    extent: Operand
    stride: Operand


@dataclass(frozen=True, slots=True)
class GlobalLayout:
    """offset(index) = offset + sum over the modes of digit * stride.

    Most dimensions have one mode, whose digit is the coordinate itself; a product of layouts has several, outermost
    first.

    Parameters
    ----------
    modes : tuple of tuple of GlobalMode
        The modes of each dimension, at least one each.
    offset : operand
        Offset of index (0, ..., 0).
    """

    modes: tuple[tuple[GlobalMode, ...], ...]
    offset: Operand = 0

    def __post_init__(self) -> None:
        if not all(self.modes):
            raise LayoutError("every dimension of a global layout has at least one mode")

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.modes)

    @property
    def shape(self) -> tuple[Operand, ...]:
        """Extent of each dimension."""
        return tuple(_product(mode.extent for mode in group) for group in self.modes)

    @property
    def strides(self) -> tuple[Operand, ...]:
        """One stride per dimension; LayoutError where a dimension has several modes."""
        if any(len(group) > 1 for group in self.modes):
            raise LayoutError("a product of global layouts has no single stride per dimension")
        return tuple(group[0].stride for group in self.modes)

    def __call__(self, *index: Operand) -> Operand:
        """Return the element offset at `index`, of ints, arrays or operands."""
        if len(index) != self.rank:
            raise LayoutError(f"expected an index of {self.rank} coordinates, got {len(index)}")
        total = self.offset
        for coordinate, group in zip(index, self.modes, strict=True):
            inner: Operand = 1
            for position, mode in reversed(list(enumerate(group))):
                digit = coordinate if _is_one(inner) else coordinate // inner
                # The outermost digit needs no remainder: the coordinate lies within the extent.
                total = _add(total, _mul(digit % mode.extent if position else digit, mode.stride))
                inner = _mul(inner, mode.extent)
        return total

    def __mul__(self, other: GlobalLayout) -> GlobalLayout:
        """Replace every element of this dense layout by a copy of the dense `other`.

        offset(i) = self(i // other.shape) * other.numel + other(i % other.shape), coordinate by coordinate.
        """
        if not isinstance(other, GlobalLayout):
            return NotImplemented
        if self.rank != other.rank:
            raise LayoutError(f"expected two layouts of one rank, got {self.rank} and {other.rank}")
        size = other.numel
        modes = tuple(
            (*(GlobalMode(mode.extent, _mul(mode.stride, size)) for mode in outer), *inner)
            for outer, inner in zip(self.modes, other.modes, strict=True)
        )
        return GlobalLayout(modes, _add(_mul(self.offset, size), other.offset))

    @property
    def numel(self) -> Operand:
        """Number of elements."""
        return _product(self.shape)

    def permute(self, *dims: int) -> GlobalLayout:
        """Return the layout whose dimension k is this layout's dimension `dims[k]`."""
        if sorted(dims) != list(range(self.rank)):
            raise LayoutError(f"expected a permutation of {self.rank} dimensions, got {dims}")
        return GlobalLayout(tuple(self.modes[dim] for dim in dims), self.offset)

    def slice(self, start: Sequence[Operand], shape: Sequence[Operand]) -> GlobalLayout:
        """Return the layout of the box of `shape` at `start`; every dimension must have a single stride."""
        if len(start) != self.rank or len(shape) != self.rank:
            raise LayoutError(f"expected {self.rank} starts and extents, got {len(start)} and {len(shape)}")
        for begin, extent, whole in zip(start, shape, self.shape, strict=True):
            known = isinstance(begin, int) and isinstance(extent, int) and isinstance(whole, int)
            if known and not 0 <= begin <= begin + extent <= whole:
                raise LayoutError(f"slice [{begin}, {begin + extent}) lies outside of extent {whole}")
        return global_strided(shape, self.strides, self(*start))


def global_strided(shape: Sequence[Operand], strides: Sequence[Operand], offset: Operand = 0) -> GlobalLayout:
    """One stride per dimension, in elements."""
    if len(shape) != len(strides):
        raise LayoutError(f"expected one stride per dimension, got {len(shape)} extents and {len(strides)} strides")
    return GlobalLayout(tuple((GlobalMode(n, s),) for n, s in zip(shape, strides, strict=True)), offset)


def global_row_major(*shape: Operand) -> GlobalLayout:
    """Dense, the last dimension varies fastest."""
    return global_strided(shape, [_product(shape[dim + 1 :]) for dim in range(len(shape))])


def global_column_major(*shape: Operand) -> GlobalLayout:
    """Dense, the first dimension varies fastest."""
    return global_strided(shape, [_product(shape[:dim]) for dim in range(len(shape))])


def _product(values: Any) -> Operand:  # operands
    result: Operand = 1
    for value in values:
        result = _mul(result, value)
    return result


def _is_one(value: Operand) -> bool:
    return isinstance(value, int) and value == 1


def _mul(a: Operand, b: Operand) -> Operand:
    """Multiply; a known 1 or 0 leaves no operation behind."""
    for x, y in ((a, b), (b, a)):
        if isinstance(x, int) and x in (0, 1):
            return y if x else 0
    return a * b


def _add(a: Operand, b: Operand) -> Operand:
    """Add; a known 0 leaves no operation behind."""
    if isinstance(a, int) and a == 0:
        return b
    return a if isinstance(b, int) and b == 0 else a + b
