"""Tensor maps: what `cuTensorMapEncodeTiled` makes on the host, as a kernel's argument.

A map describes a tensor in global memory and a box that copies move. In shared memory a box lies dense, its last
dimension innermost; with a swizzle, the 16-byte pieces of each span of 128, 64 or 32 bytes are exchanged: bits 4 to 6
of an address are xor-ed with bits 7 to 9 (or fewer of both).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilus.errors import LaunchError
from tilus.simt.formats import Array

NBYTES = 128
SWIZZLES = {"none": 0, "32B": 1, "64B": 2, "128B": 3}  # bits that are exchanged
_MAGIC = b"tensor map"


def swizzle(addresses: Array, bits: int) -> Array:
    """Return where bytes lie that would be at some addresses without a swizzle."""
    return addresses ^ ((addresses >> 7 & ((1 << bits) - 1)) << 4)


@dataclass(frozen=True, eq=False)
class TensorMap:
    """A tensor and a box, for tensor copies.

    Parameters
    ----------
    array : array
        The tensor; C-contiguous, 1 to 5 dimensions.
    box : sequence of int
        Extents of the box, at most 256 each; the last is innermost.
    swizzle : str
        `none`, `32B`, `64B` or `128B`: the innermost extent in bytes is at most that.
    fill : str
        What is read beyond the tensor: `zeros` or `nan`.
    """

    array: Array
    box: Sequence[int]
    swizzle: str = "none"
    fill: str = "zeros"

    def __post_init__(self) -> None:
        rank, inner = self.array.ndim, self.box[-1] * self.array.itemsize
        span = 16 << SWIZZLES.get(self.swizzle, 0) if self.swizzle != "none" else inner
        problems = {
            "the array is not contiguous": not self.array.flags.c_contiguous,
            f"a box of {len(self.box)} dimensions for an array of {rank}": len(self.box) != rank or not 1 <= rank <= 5,
            "extents of a box are 1 to 256": not all(1 <= b <= 256 for b in self.box),
            f"the innermost extent has {inner} bytes, which is no multiple of 16": inner % 16 != 0,
            "strides are no multiples of 16 bytes": any(s % 16 for s in self.array.strides[:-1]),
            f"no swizzle {self.swizzle!r}": self.swizzle not in SWIZZLES,
            f"the innermost extent has {inner} bytes, more than the swizzle spans": inner > span,
        }
        for text, wrong in problems.items():
            if wrong:
                raise LaunchError(f"tensor map: {text}")

    @property
    def nbytes(self) -> int:
        """Bytes of a box: those that a barrier is told, also where the box leaves the tensor."""
        return math.prod(self.box) * int(self.array.itemsize)

    def encode(self, number: int) -> bytes:
        """Return the bytes of the argument, which name the map by its number."""
        return (_MAGIC + number.to_bytes(4, "little")).ljust(NBYTES, b"\0")

    def elements(self, start: Sequence[int]) -> tuple[Array, Array]:
        """Return flat positions in the tensor of a box that begins at `start`, innermost last, and which lie inside."""
        places = np.zeros(1, np.int64)
        inside = np.ones(1, bool)
        for first, extent, length in zip(start, self.box, self.array.shape, strict=True):
            index = first + np.arange(extent)
            places = (places[:, None] * length + np.clip(index, 0, length - 1)).reshape(-1)
            inside = (inside[:, None] & (index >= 0) & (index < length)).reshape(-1)
        return places, inside

    def shared(self, address: int) -> Array:
        """Return the addresses in shared memory of the bytes of each element: shape (elements, bytes)."""
        flat = address + np.arange(self.nbytes).reshape(-1, self.array.itemsize)
        return swizzle(flat, SWIZZLES[self.swizzle])

    @property
    def alignment(self) -> int:
        """What addresses in shared memory are multiples of: the swizzle's pattern repeats after so many bytes."""
        return {"none": 128, "32B": 256, "64B": 512, "128B": 1024}[self.swizzle]


def decode(data: bytes) -> int | None:
    """Return the number of the map that an argument names."""
    return int.from_bytes(data[len(_MAGIC) : len(_MAGIC) + 4], "little") if data.startswith(_MAGIC) else None
