"""Address spaces. Every buffer has a window of its own, so no stray address falls into another buffer.

Generic addresses are 64 bits. Global buffer number i (counted from 1) begins at i * 2^36, or as far behind that as the
array lies behind a multiple of 16 bytes: what is misaligned there is so here. The shared memory of the thread's own
block, its local memory and the kernel's parameters are windows far above. In the shared space an address has 32 bits:
its upper 8 say which block of the cluster is meant, counted from 1; 0 is the thread's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilus.simt.formats import Array
from tilus.simt.program import SHARED_BASE
from tilus.simt.report import Spot

WINDOW_BITS = 36
SPACE_BITS = 56
SPACES = ("global", "shared", "local", "param")  # by the upper 8 bits of a generic address
RANK_SHIFT = 24
_WIDEST = 16  # bytes of an access
GUARD = 256  # every buffer begins at a multiple of this
POISON = 0xFF  # not a number in every float format


class Memory:
    """Bytes that are read and written in units of 1, 2, 4, 8 or 16."""

    def __init__(self, nbytes: int, fill: int = 0) -> None:
        self.nbytes = nbytes
        self.bytes = np.full(-(-max(nbytes, 1) // GUARD) * GUARD, fill, np.uint8)
        self._units = {size: self.bytes.view(f"u{size}") for size in (1, 2, 4, 8)}

    def load(self, places: Array, size: int, count: int = 1) -> list[Array]:
        """Return `count` arrays of words of `size` bytes, from aligned places on."""
        words, first = self._units[size], places // size
        return [words[first + i] for i in range(count)]

    def store(self, places: Array, values: Sequence[Array]) -> None:
        """Write arrays of words one behind another."""
        size = values[0].dtype.itemsize
        words, first = self._units[size], places // size
        for i, value in enumerate(values):
            words[first + i] = value

    def rows(self, places: Array, nbytes: int) -> Array:
        """Return the bytes from each place on, of shape (places, nbytes)."""
        unit = next(size for size in (8, 4, 2, 1) if nbytes % size == 0 and not (places % size).any())
        words = self._units[unit][(places // unit)[:, None] + np.arange(nbytes // unit)]
        return words.view(np.uint8)

    def write_rows(self, places: Array, rows: Array) -> None:
        """Write bytes of shape (places, nbytes)."""
        self.bytes[places[:, None] + np.arange(rows.shape[1])] = rows


@dataclass(slots=True)
class Buffer:
    """A piece of global memory: an argument, or a variable of the module."""

    name: str
    array: Array | None
    nbytes: int
    start: int  # in the global memory's bytes
    lead: int  # bytes of the window before it

    @property
    def flat(self) -> Array:
        """The argument's bytes."""
        assert self.array is not None
        return self.array.reshape(-1).view(np.uint8)


class GlobalMemory(Memory):
    """All buffers one behind another; `window` finds them by the upper bits of an address."""

    def __init__(self, pieces: Sequence[tuple[str, Array | bytes]]) -> None:
        self.buffers: list[Buffer] = []
        total = GUARD
        for name, data in pieces:
            array = None if isinstance(data, bytes) else data
            nbytes = len(data) if isinstance(data, bytes) else data.nbytes
            lead = 0 if isinstance(data, bytes) else data.ctypes.data % _WIDEST
            self.buffers.append(Buffer(name, array, nbytes, total + lead, lead))
            total += -(-(lead + nbytes) // GUARD) * GUARD + GUARD
        super().__init__(total)
        self.windows = np.array([0, *(b.start - b.lead for b in self.buffers), 0], np.int64)
        self.leads = np.array([0, *(b.lead for b in self.buffers), 0], np.int64)
        self.ends = np.array([0, *(b.lead + b.nbytes for b in self.buffers), 0], np.int64)
        for buffer, (_, data) in zip(self.buffers, pieces, strict=True):
            content = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else buffer.flat
            self.bytes[buffer.start : buffer.start + buffer.nbytes] = content

    def is_argument(self, addresses: Array) -> Array:
        """Return whether each address is of an argument, and not of a variable of the module."""
        given = np.array([False, *(b.array is not None for b in self.buffers), False])
        windows = np.minimum(addresses >> np.uint64(WINDOW_BITS), np.uint64(len(given) - 1))
        found: Array = given[windows.astype(np.int64)]
        return found

    def address(self, number: int) -> int:
        """Return where a buffer begins, for programs."""
        return ((number + 1) << WINDOW_BITS) + self.buffers[number].lead

    def copy_back(self) -> None:
        """Write the contents of all arguments back into their arrays."""
        for buffer in self.buffers:
            if buffer.array is not None and buffer.array.flags.writeable:
                buffer.flat[:] = self.bytes[buffer.start : buffer.start + buffer.nbytes]

    def locate(self, addresses: Array, nbytes: int) -> tuple[Array, Array]:
        """Return places in `bytes`, and whether each access lies in a buffer."""
        windows = np.minimum(addresses >> np.uint64(WINDOW_BITS), np.uint64(len(self.buffers) + 1)).astype(np.int64)
        offsets = (addresses & np.uint64((1 << WINDOW_BITS) - 1)).astype(np.int64)
        inside = (offsets >= self.leads[windows]) & (offsets + nbytes <= self.ends[windows])
        return self.windows[windows] + offsets, inside

    def spot(self, address: int) -> Spot | None:
        """Return the place in the buffer that an address is nearest to."""
        number = (address + (1 << (WINDOW_BITS - 1))) >> WINDOW_BITS
        if not 1 <= number <= len(self.buffers):
            return None
        buffer = self.buffers[number - 1]
        return Spot(buffer.name, address - self.address(number - 1), buffer.nbytes)


class SharedMemory(Memory):
    """The shared memory of all resident blocks, one behind another."""

    def __init__(self, blocks: int, nbytes: int, names: Sequence[tuple[int, str]]) -> None:
        self.size = nbytes
        self.stride = -(-max(nbytes, 1) // GUARD) * GUARD
        self.names = sorted(names)
        super().__init__(blocks * self.stride, POISON)

    def locate(
        self, addresses: Array, nbytes: int, blocks: Array, cluster: int, window: tuple[int, int]
    ) -> tuple[Array, Array]:
        """Return places in `bytes`, and whether each access lies in shared memory.

        Parameters
        ----------
        addresses : array
            Of the shared space, with the rank of a block or without.
        nbytes : int
        blocks : array of int
            The resident block of each thread.
        cluster : int
            Blocks of a cluster.
        window : tuple of int
            The first byte, and the end, of what may be accessed.
        """
        where = addresses.astype(np.int64) & 0xFFFFFFFF
        rank, offsets = where >> RANK_SHIFT, (where & ((1 << RANK_SHIFT) - 1)) - SHARED_BASE
        good = (offsets >= window[0]) & (offsets + nbytes <= window[1]) & (rank <= cluster)
        if rank.any():
            blocks = np.where(rank > 0, blocks // cluster * cluster + rank - 1, blocks)
        return blocks * self.stride + offsets, good

    def spot(self, address: int) -> Spot:
        """Return the place in the variable that an address lies in or behind."""
        address &= (1 << RANK_SHIFT) - 1
        found = [(at, name) for at, name in self.names if at <= address]
        at, name = found[-1] if found else (SHARED_BASE, "shared memory")
        return Spot(name, address - at)
