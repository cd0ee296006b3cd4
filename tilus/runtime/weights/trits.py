"""The packed order of `t1.6` weights: five ternary digits in a byte, unpacked by multiplications with 3.

A byte holds the fraction `digits / 3^5`, rounded up to 1/256. Times 3, its whole part is the first digit, and the rest
is the fraction that holds the others. In the 16-bit lanes of a word there is room for the product, so two bytes go
together: a word is two *slots*, the lower bytes of its lanes and the upper ones.

A tile has the rows of a fragment and ten times its columns: column h of digit i of slot s is k = (5 s + i) width + h.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilus.errors import LayoutError
from tilus.layouts import index_table
from tilus.runtime.weights.packing import PACKS, PackLayout

DIGITS, SLOTS = 5, 2
_POWERS = 3 ** np.arange(DIGITS - 1, -1, -1)  # the first digit is the most significant one
_BYTES = ((np.arange(3**DIGITS) * 256 + 3**DIGITS - 1) // 3**DIGITS).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class TritPack(PackLayout):
    """How ternary digits are packed; `fragment` is the layout of one digit of one slot, two lanes to a word."""

    def __post_init__(self) -> None:
        if self.stored is not None:
            raise LayoutError(f"digits of {self.dtype} are not stored as {self.stored}")
        if len(self.fragment.shape) != 2 or self.fragment.local_size % (2 * self.vector) or self.bits is not None:
            raise LayoutError(
                f"{self.fragment} has {self.fragment.local_size} lanes a thread, no multiple of 2 x {self.vector} words"
            )

    @property
    def tile(self) -> tuple[int, int]:
        """Extents (n, k) of a tile."""
        n, width = self.fragment.shape
        return n, width * DIGITS * SLOTS

    @property
    def digits(self) -> int:
        """Digits that are taken out of a lane, one after the other."""
        return DIGITS * SLOTS

    @property
    def vectors(self) -> int:
        """Vectors of a thread's words."""
        return self.fragment.local_size // (2 * self.vector)

    def pack(self, codes: np.ndarray) -> np.ndarray:
        """Pack codes [N, K] into words, uint32 of shape `packed_shape(N, K)`."""
        n, k = codes.shape
        tiles_n, tiles_k = self.grid(n, k)
        height, width = self.fragment.shape
        padded = np.zeros((tiles_n * height, tiles_k * self.tile[1]), np.int64)
        padded[:n, :k] = codes
        digits = padded.reshape(tiles_n, height, tiles_k, SLOTS, DIGITS, width)
        held = _BYTES[np.einsum("anbsdw,d->absnw", digits, _POWERS)]
        index = index_table(self.fragment)
        lanes = held[..., index[..., 0], index[..., 1]].astype(np.uint32)  # [tiles_n, tiles_k, slots, threads, locals]
        halves = lanes[:, :, 0] | lanes[:, :, 1] << np.uint32(8)
        words = halves[..., ::2] | halves[..., 1::2] << np.uint32(16)
        blocked = words.reshape(tiles_n, tiles_k, self.fragment.num_threads, self.vectors, self.vector)
        return np.ascontiguousarray(blocked.swapaxes(2, 3))

    def unpack(self, words: np.ndarray, n: int, k: int) -> np.ndarray:
        """Return the codes [n, k] of packed words."""
        tiles_n, tiles_k = self.grid(n, k)
        height, width = self.fragment.shape
        stream = words.reshape(self.packed_shape(n, k)).swapaxes(2, 3)
        threads, locals_ = self.fragment.num_threads, self.fragment.local_size
        flat = np.ascontiguousarray(stream).reshape(tiles_n, tiles_k, threads, locals_ // 2, 1)
        halves = (flat >> np.array([0, 16], np.uint32) & np.uint32(0xFFFF)).reshape(tiles_n, tiles_k, threads, locals_)
        index = index_table(self.fragment)
        codes = np.empty((tiles_n, height, tiles_k, SLOTS, DIGITS, width), np.uint8)
        for slot in range(SLOTS):
            rest = halves >> np.uint32(8 * slot) & np.uint32(0xFF)
            for digit in range(DIGITS):
                plane = np.empty((tiles_n, tiles_k, height, width), np.uint8)
                plane[:, :, index[..., 0], index[..., 1]] = rest * 3 >> 8
                codes[:, :, :, slot, digit] = plane.swapaxes(1, 2)
                rest = rest * np.uint32(3) & np.uint32(0xFF)
        matrix: np.ndarray = codes.reshape(tiles_n * height, tiles_k * self.tile[1])
        return matrix[:n, :k]


PACKS["t1.6"] = TritPack
