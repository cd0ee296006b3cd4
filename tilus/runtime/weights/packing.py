"""The packed order of a weight matrix, as one layout expression from the whole matrix down to the bit.

A weight `[N, K]` is cut into tiles of the shape of a *fragment*, a register layout `(thread, local) -> (n, k)`. Where
the bits of every thread's codes lie in its 32-bit words is said by a *bit layout*; without one they are a little-endian
bit stream in the order of its local elements. The words are cut into vectors of `vector`, and a tile stores vector 0 of
all threads, then vector 1, and so on. In memory::

    words[tile_n, tile_k, word // vector, thread, word % vector]

So a thread reads its registers' contents in whole vectors, threads side by side, and `view` gives codes in the
fragment's layout: there is nothing to shuffle at run time. Codes beyond N or K are 0.

A float with one bit of exponent is a fixed-point number, an integer times its smallest value. It is stored as that
integer, in two's complement, which takes fewer instructions to unpack than a sign and a magnitude; -0 becomes 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from math import gcd, prod
from typing import cast

import numpy as np

from tilus.casts import best_unpacking
from tilus.dtypes import DataType, Float, bf16, dtype, f16
from tilus.errors import LayoutError
from tilus.ir.parser import parse_dtype
from tilus.ir.types import dtype_text
from tilus.layouts import BitLayout, RegisterLayout, column_local, index_table, local, parse, parse_bits, spatial
from tilus.layouts.bits import pattern_of, whole_unit
from tilus.runtime.targets import Device, host_target

# m16n8k16: a lane's registers of a 16x16 tile of the left operand (PTX ISA, "Matrix fragments for mma.m16n8k16").
FRAGMENT = column_local(2, 2) * spatial(8, 4) * local(1, 2)
WARPS = 4
WARP = 32
_BITS = " | bits("  # between a name that may hold anything and the bit layout
_STORED = re.compile(r"(.+) as (i\d)")


@dataclass(frozen=True, slots=True)
class PackLayout:
    """How codes of a type are packed.

    Attributes
    ----------
    dtype : DataType
        Type of the codes, of 1 to 8 bits.
    fragment : RegisterLayout
        A tile, two-dimensional: (n, k).
    vector : int
        32-bit words a thread reads at once: 4 for 16-byte accesses.
    bits : BitLayout, optional
        Where in a thread's words its codes have their bits; as a little-endian stream, if there is none.
    stored : DataType, optional
        Integers of the same width, if that is what values are stored as, in units of the type's smallest.
    """

    dtype: DataType
    fragment: RegisterLayout
    vector: int
    bits: BitLayout | None = None
    stored: DataType | None = None

    def __post_init__(self) -> None:
        bits = self.fragment.local_size * self.dtype.nbits
        if len(self.fragment.shape) != 2 or bits % (32 * self.vector):
            raise LayoutError(
                f"{self.fragment.local_size} codes of {self.dtype} a thread are {bits} bits, no multiple of "
                f"{self.vector} words of 32 bits",
                hint="use a larger tile",
            )
        if self.stored not in (None, _fixed_point(self.dtype)):
            raise LayoutError(f"values of {self.dtype} are not stored as {self.stored}")
        places = self.bits
        if places is not None and (places.nbits, places.num_elements) != (self.dtype.nbits, self.fragment.local_size):
            raise LayoutError(f"{places} does not place {self.fragment.local_size} codes of {self.dtype}")

    @property
    def unit(self) -> float:
        """What integers are stored in multiples of; 1 where codes are stored as they are."""
        return 1.0 if self.stored is None else cast(Float, self.dtype).smallest_subnormal

    @property
    def of_stored(self) -> PackLayout:
        """The order as one of what is stored: `unit` times its values are the values of this one."""
        return self if self.stored is None else replace(self, dtype=self.stored, stored=None)

    @property
    def device(self) -> Device:
        """The kind of device whose kernels read this order: GPUs have whole warps, a CPU's block fewer lanes."""
        return "cpu" if self.fragment.num_threads < WARP else "cuda"

    @property
    def tile(self) -> tuple[int, int]:
        """Extents (n, k) of a tile."""
        n, k = self.fragment.shape
        return n, k

    @property
    def vectors(self) -> int:
        """Vectors of a thread's stream."""
        return self.fragment.local_size * self.dtype.nbits // (32 * self.vector)

    @property
    def words(self) -> RegisterLayout:
        """Layout of a tile's words, shape (vectors, threads, vector), as a kernel loads them."""
        threads = self.fragment.num_threads
        return local(self.vectors, 1, 1) * spatial(1, threads, 1) * local(1, 1, self.vector)

    @property
    def digits(self) -> int:
        """How many codes a lane of the words holds in a way that takes them out one after the other; else 1."""
        return 1

    @property
    def warps(self) -> int:
        """Warps of a block that holds a tile."""
        return max(self.fragment.num_threads // WARP, 1)

    @property
    def interleave(self) -> int:
        """Neighbouring rows of a tile that are in one lane of the tensor cores, 8 apart where they are multiplied."""
        (first, _), (second, _) = (self.fragment.locate(row, 0) for row in (0, 1))
        return self.tile[0] // 8 if first == second else 1

    def sliced(
        self, slices: int, tiles: int = 1, warps: int = WARPS
    ) -> tuple[RegisterLayout, RegisterLayout, BitLayout | None]:
        """Return how the warps of a block hold `tiles` along N and `slices` along K at once, each in its share of them.

        Parameters
        ----------
        slices, tiles, warps : int
            A tile has `warps / (slices * tiles)` warps, no more than it was packed for; or a warp has so many tiles
            along N.

        Returns
        -------
        words, fragment : RegisterLayout
            Of shapes (tiles * slices, *words) and (slices, tiles * n, k), the rows of a tile in the order in which they
            are multiplied; k is that of one digit.
        bits : BitLayout or None
            Of a thread's words.
        """
        own = max(tiles * slices // warps, 1)  # tiles of a warp
        assert tiles % own == 0, "a warp's tiles are neighbours along N"
        assert warps * own % (tiles * slices) == 0, "no warp is left over"
        count, side = tiles * slices // own, max(warps // (tiles * slices), 1)
        held = self.warps // side  # a warp has its own rows, and others'
        lanes = local(1, self.vectors, 1, 1) * spatial(1, 1, WARP, 1) * local(1, 1, 1, self.vector)
        words = local(own, 1, 1, 1) * spatial(count, 1, side, 1) * local(1, 1, held, 1) * lanes
        steps = self.fragment.shape[1] // FRAGMENT.shape[1]
        slots = 1 if self.bits is None else self.bits.num_slots
        shares = local(own, 1, 1) * spatial(count, side, 1) * local(1, held, 1)
        fragment = local(1, 1, slots) * shares * local(1, 1, steps // slots) * FRAGMENT.unsqueeze(0)
        rows, columns = fragment.shape[1:]
        fragment = fragment.reshape(tiles, slices, rows, columns).permute(1, 0, 2, 3)
        bits = None if self.bits is None else self.bits.repeated(self.bits.units * held * own)
        return words, fragment.reshape(slices, tiles * rows, columns), bits

    def __str__(self) -> str:
        places = "" if self.bits is None else f" | {self.bits}"
        stored = "" if self.stored is None else f" as {self.stored}"
        return f"{dtype_text(self.dtype)}{stored} | {self.fragment} | {self.vector}{places}"

    @staticmethod
    def parse(text: str) -> PackLayout:
        """Read what `str` wrote."""
        head, mark, places = text.rpartition(_BITS)
        parts = [part.strip() for part in (head or text).rsplit("|", 2)]
        if len(parts) != 3 or not parts[2].isdigit():
            raise LayoutError(f"expected 'type | layout | words' or 'type | layout | words | bits', got {text!r}")
        bits = parse_bits("bits(" + places) if mark else None
        stored = _STORED.fullmatch(parts[0])
        kind, held = parse_dtype(stored[1] if stored else parts[0]), dtype(stored[2]) if stored else None
        return PACKS.get(kind.name, PackLayout)(kind, parse(parts[1]), int(parts[2]), bits, held)

    def grid(self, n: int, k: int) -> tuple[int, int]:
        """Return the number of tiles along N and K."""
        return -(-n // self.tile[0]), -(-k // self.tile[1])

    def packed_shape(self, n: int, k: int) -> tuple[int, int, int, int, int]:
        """Return the shape of the packed words of an [n, k] weight."""
        return *self.grid(n, k), self.vectors, self.fragment.num_threads, self.vector

    def pack(self, codes: np.ndarray) -> np.ndarray:
        """Pack codes [N, K] into words, uint32 of shape `packed_shape(N, K)`."""
        if self.stored is not None:
            return self.of_stored.pack(self.stored.encode(self.dtype.decode(codes) / self.unit))
        n, k = codes.shape
        tiles_n, tiles_k = self.grid(n, k)
        height, width = self.tile
        padded = np.zeros((tiles_n * height, tiles_k * width), codes.dtype)
        padded[:n, :k] = codes
        tiles = padded.reshape(tiles_n, height, tiles_k, width).swapaxes(1, 2)
        index = index_table(self.fragment)
        streams = tiles[:, :, index[..., 0], index[..., 1]]
        if self.bits is not None:
            words = self.bits.pack(streams)
        else:
            words = np.frombuffer(self.dtype.pack(streams.ravel()), np.uint32)
        blocked = words.reshape(tiles_n, tiles_k, self.fragment.num_threads, self.vectors, self.vector)
        return np.ascontiguousarray(blocked.swapaxes(2, 3))

    def unpack(self, words: np.ndarray, n: int, k: int) -> np.ndarray:
        """Return the codes [n, k] of packed words."""
        if self.stored is not None:
            return self.dtype.encode(self.stored.decode(self.of_stored.unpack(words, n, k)) * self.unit)
        tiles_n, tiles_k = self.grid(n, k)
        height, width = self.tile
        threads, locals_ = self.fragment.num_threads, self.fragment.local_size
        stream = np.ascontiguousarray(words.reshape(self.packed_shape(n, k)).swapaxes(2, 3))
        shape = tiles_n, tiles_k, threads, locals_
        if self.bits is not None:
            codes = self.bits.unpack(stream.reshape(*shape[:3], self.bits.num_words))
        else:
            codes = self.dtype.unpack(stream.view(np.uint8).ravel(), prod(shape)).reshape(shape)
        index = index_table(self.fragment)
        tiles = np.empty((tiles_n, tiles_k, height, width), codes.dtype)
        tiles[:, :, index[..., 0], index[..., 1]] = codes
        matrix: np.ndarray = tiles.swapaxes(1, 2).reshape(tiles_n * height, tiles_k * width)
        return matrix[:n, :k]


# Types whose codes take no whole number of bits, and how they are packed.
PACKS: dict[str, type[PackLayout]] = {}


@cache
def native_pack(kind: DataType, device: Device, activation: DataType = f16) -> PackLayout:
    """Return the order of codes that the kernels of a device read fastest, for activations of a type.

    Kernels for other activations read it too: the bit layout is one that unpacks fastest to f16, or to bf16.

    On a GPU a tile is 64 rows, 16 for each of four warps, and as many k as give every thread whole 16-byte vectors: 128
    for most types, which spreads what a trip of the loop costs besides unpacking over enough weights.
    On a CPU with L lanes a tile is 4 L rows of 32: each lane has rows of its own, so nothing is added up over lanes.
    Neighbours along k lie in the halves of a word, for instructions that multiply and add pairs of 16-bit integers.
    """
    if kind.name in PACKS:
        return _small_tile(PACKS[kind.name], kind, device)
    stored = _fixed_point(kind)
    if stored is not None:
        return replace(native_pack(stored, device, activation), dtype=kind, stored=stored)
    if device == "cpu":
        fragment = local(4, 1) * spatial(host_target().lanes, 1) * local(1, 32)
        return PackLayout(kind, fragment, 1, _halves(kind, fragment.local_size))
    elements = 128 // gcd(128, kind.nbits)
    steps = max(elements // FRAGMENT.local_size, 8)
    fragment = _neighbours(local(1, steps) * spatial(WARPS, 1) * FRAGMENT)
    return PackLayout(kind, fragment, 4, _bits(kind, activation, fragment.local_size))


def _fixed_point(kind: DataType) -> DataType | None:
    """Return the integers that the values of a type are multiples of its smallest by, None if they are not all such."""
    return dtype(f"i{kind.nbits}") if isinstance(kind, Float) and kind.exponent_bits == 1 else None


def _neighbours(fragments: RegisterLayout) -> RegisterLayout:
    """Make neighbours of the rows of fragments that are 8 apart: lanes load their scales and store results together."""
    rows, columns = fragments.shape
    return fragments.reshape(rows // 8, 8, columns).permute(1, 0, 2).reshape(rows, columns)


def _small_tile(pack: type[PackLayout], kind: DataType, device: Device) -> PackLayout:
    """Return an order whose fragment is as narrow as the smallest group: any group is a whole number of them."""
    if device == "cpu":
        return pack(kind, local(4, 1) * spatial(1, host_target().lanes), 1)
    return pack(kind, _neighbours(spatial(WARPS, 1) * FRAGMENT), 4)


@cache
def native_packs(kind: DataType, device: Device) -> tuple[PackLayout, ...]:
    """Return all orders that the kernels of a device are made for, one for each type of activations."""
    return tuple(dict.fromkeys(native_pack(kind, device, activation) for activation in (f16, bf16)))


def _halves(kind: DataType, elements: int) -> BitLayout:
    """Return the bit layout in which each 16-bit half of the words is a little-endian stream of every other code."""
    words = whole_unit(kind.nbits, 16)
    slots = 16 * words // kind.nbits
    cells = [[divmod(slot * kind.nbits + bit, 16) for bit in range(kind.nbits)] for slot in range(slots)]
    return BitLayout(kind.nbits, 16, pattern_of(cells, words, 16), elements // (2 * slots))


def _bits(kind: DataType, activation: DataType, elements: int) -> BitLayout | None:
    """Return where the bits of a thread's codes lie: None for types whose codes are looked up in tables."""
    wanted = [bf16, f16] if activation == bf16 else [f16, bf16]  # bf16 holds exponents that f16 does not
    found = (best_unpacking(kind, target) for target in wanted)
    best = next((unpacking for unpacking in found if unpacking is not None), None)
    return None if best is None else best.bits.repeated(elements // (best.bits.num_slots * best.bits.lanes))
