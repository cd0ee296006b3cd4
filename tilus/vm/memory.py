"""Global memory: the caller's arrays as buffers of elements, views of them, and which elements a tile access means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilus.dtypes import DataType
from tilus.errors import VMError
from tilus.vm.fault import Fault
from tilus.vm.values import Array, from_codes, to_codes


@dataclass(frozen=True, slots=True)
class Buffer:
    """What a pointer parameter points at.

    Attributes
    ----------
    name : str
        The parameter.
    dtype : DataType
    data : array, one dimension
        Codes of the elements; for types of less than a byte the bytes of a little-endian bit stream. Shares memory
        with the caller's array.
    size : int
        Number of elements.
    """

    name: str
    dtype: DataType
    data: Array
    size: int

    def load(self, index: Array) -> Array:
        """Return the elements at indices that are in bounds."""
        if self.dtype.nbits >= 8:
            return from_codes(self.dtype, self.data[index])
        low, high, shift = self._bit_places(index)
        words = self.data[low].astype(np.uint16) | (self.data[high].astype(np.uint16) << 8)
        return from_codes(self.dtype, (words >> shift) & np.uint16(self.dtype.num_codes - 1))

    def store(self, index: Array, values: Array) -> None:
        """Write the elements at indices that are in bounds."""
        if not self.data.flags.writeable:
            raise Fault(f"buffer {self.name!r} is read-only", hint="pass a writable array")
        codes = to_codes(self.dtype, values)
        if self.dtype.nbits >= 8:
            self.data[index] = codes
            return
        low, high, shift = self._bit_places(index)
        mask = np.uint16(self.dtype.num_codes - 1) << shift
        bits = codes.astype(np.uint16) << shift
        for place, down in ((low, np.uint16(0)), (high, np.uint16(8))):
            # Elements of one byte follow one another: the unbuffered `at` lets each see what the last one wrote.
            np.bitwise_and.at(self.data, place, (~(mask >> down)).astype(np.uint8))
            np.bitwise_or.at(self.data, place, (bits >> down).astype(np.uint8))

    def _bit_places(self, index: Array) -> tuple[Array, Array, Array]:
        """Return the first and the last byte of each element, and its shift in the 16 bits of both."""
        start = index.astype(np.int64) * self.dtype.nbits
        low = start >> 3
        # Where the element lies in one byte, the high byte is that byte once more, and its bits are all shifted out.
        return low, (start + self.dtype.nbits - 1) >> 3, (start & 7).astype(np.uint16)

    def check(self, index: Array, action: str, where: Array | None = None) -> None:
        """Raise `Fault` for an index out of bounds; `where` says which indices count."""
        wrong = (index < 0) | (index >= self.size)
        if where is not None:
            wrong = wrong & where
        if np.any(wrong):
            raise Fault(
                f"{action} element {int(np.asarray(index)[wrong].flat[0])} of buffer {self.name!r}, "
                f"which has {self.size} elements of {self.dtype}"
            )


def make_buffer(name: str, kind: DataType, array: object) -> Buffer:
    """Return an array as a buffer of elements of a type; `VMError` if it cannot be one.

    Parameters
    ----------
    name : str
    kind : DataType
        Type of the pointer's elements.
    array : numpy.ndarray
        C-contiguous, any shape. Of `kind.numpy_dtype`, or of integers of that width, taken as codes. For types of
        less than a byte any integers whose bytes are the bit stream.
    """
    if not isinstance(array, np.ndarray):
        raise VMError(f"argument {name!r} must be a NumPy array of {kind}, got {type(array).__name__}")
    if not array.flags.c_contiguous:
        raise VMError(f"argument {name!r} must be contiguous", hint="pass numpy.ascontiguousarray(x)")
    if not kind.is_bit_packed:
        raise VMError(f"argument {name!r}: {kind} is no bit stream, and cannot be pointed at")
    flat = array.reshape(-1)
    if kind.nbits < 8 and flat.dtype.kind in "iu":
        stream = flat.view(np.uint8)
        return Buffer(name, kind, stream, stream.size * 8 // kind.nbits)
    is_codes = flat.dtype.kind in "iu" and flat.dtype.itemsize == kind.code_dtype.itemsize
    if kind.nbits < 8 or not (flat.dtype == kind.numpy_dtype or is_codes):
        expected = "uint8 (a bit stream)" if kind.nbits < 8 else kind.numpy_dtype or kind.code_dtype
        raise VMError(f"argument {name!r} must be an array of {expected} for {kind}, got {array.dtype}")
    return Buffer(name, kind, flat.view(kind.code_dtype), flat.size)


@dataclass(frozen=True, slots=True)
class View:
    """A global tensor: element i of the view is element `sum(i * strides)` of the buffer."""

    buffer: Buffer
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def coordinates(offset: Sequence[int], shape: Sequence[int], dims: Sequence[int]) -> list[Array]:
    """Return the index of every element of a tile along each dimension of the tensor; they broadcast to the tile."""
    found = [np.full((1,) * len(shape), o, np.int64) for o in offset]
    for place, (dim, extent) in enumerate(zip(dims, shape, strict=True)):
        along = [1] * len(shape)
        along[place] = extent
        found[dim] = found[dim] + np.arange(extent, dtype=np.int64).reshape(along)
    return found


@dataclass(frozen=True, slots=True)
class Access:
    """The elements of a view that a tile access means.

    Attributes
    ----------
    index : array of the tile's shape
        Element of the buffer.
    inside : array of bool, of the tile's shape
        Whether the element lies in the view.
    inside_by_dim : list of arrays
        The same for each dimension of the view; they broadcast to the tile.
    """

    index: Array
    inside: Array
    inside_by_dim: list[Array]


def access(view: View, offset: Sequence[int], shape: Sequence[int], dims: Sequence[int]) -> Access:
    """Return which elements a tile access means, inside and outside of the view."""
    coords = coordinates(offset, shape, dims)
    by_dim = [(c >= 0) & (c < extent) for c, extent in zip(coords, view.shape, strict=True)]
    index, inside = np.zeros(tuple(shape), np.int64), np.ones(tuple(shape), np.bool_)
    for c, ok, stride in zip(coords, by_dim, view.strides, strict=True):
        index = index + c * stride
        inside = inside & ok
    return Access(index, inside, by_dim)
