"""Bank conflicts, counted: how many wavefronts a warp's access to shared memory takes.

Shared memory has 32 banks of 4 bytes. In one wavefront every bank delivers one word, to any number of lanes. A warp's
access of 4 bytes per lane or less is one phase of 32 lanes; of 8 bytes, two phases of 16 lanes; of 16 bytes, four
phases of 8 lanes; `ldmatrix` has one phase per matrix, eight rows of 16 bytes. (CUDA C++ Programming Guide, "Shared
Memory"; PTX ISA, `ldmatrix`.) A phase takes as many wavefronts as its busiest bank has different words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Literal, TypeAlias

import numpy as np

from tilus.errors import LayoutError
from tilus.layouts.maps import Table, index_table
from tilus.layouts.register import RegisterLayout
from tilus.layouts.shared import SharedLayout, offset_table, row_major, row_major_swizzle, strided

BANKS = 32
WORD_BYTES = 4
_PHASE_LANES = {1: 32, 2: 32, 4: 32, 8: 16, 16: 8}
_ROW_BYTES = 16  # a row of an ldmatrix matrix


@dataclass(frozen=True, slots=True)
class BankReport:
    """What the accesses of all warps to one tile cost.

    Attributes
    ----------
    accesses : int
        Warp-wide memory instructions (for `ldmatrix`: matrices).
    wavefronts : int
        Wavefronts that they take.
    ideal : int
        Wavefronts without any conflict: one per phase.
    """

    accesses: int
    wavefronts: int
    ideal: int

    @property
    def conflicts(self) -> int:
        """Wavefronts that a better layout would save."""
        return self.wavefronts - self.ideal


AccessKind: TypeAlias = Literal["vector", "matrix", "matrix_transposed"]


@dataclass(frozen=True, slots=True)
class Access:
    """One way in which a tile is read or written: by vectors of `vector_bytes` per lane, or by ldmatrix."""

    layout: RegisterLayout
    vector_bytes: int = _ROW_BYTES
    kind: AccessKind = "vector"

    def report(self, shared: SharedLayout, elem_bits: int) -> BankReport:
        """Return the bank report of this access to a tile."""
        if self.kind == "vector":
            return bank_conflicts(shared, self.layout, elem_bits, self.vector_bytes)
        return ldmatrix_conflicts(shared, self.layout, elem_bits, transposed=self.kind == "matrix_transposed")


def bank_conflicts(
    shared: SharedLayout, register: RegisterLayout, elem_bits: int, vector_bytes: int, lanes: int = 32
) -> BankReport:
    """Count the wavefronts of reading or writing a whole tile by vectors.

    Parameters
    ----------
    shared, register : SharedLayout, RegisterLayout
        Where the tile lies and who moves which element; equal shapes.
    elem_bits : int
        Bits of an element in shared memory.
    vector_bytes : int
        Bytes that a lane moves at once: 1, 2, 4, 8 or 16. A vector is a run of consecutive locals.
    lanes : int
        Threads per warp.

    Raises
    ------
    LayoutError
        If a lane's vector is not contiguous and aligned in shared memory.
    """
    if vector_bytes not in _PHASE_LANES:
        raise LayoutError(f"a lane moves 1, 2, 4, 8 or 16 bytes at once, got {vector_bytes}")
    start = _starts(_offsets(shared, register), elem_bits, vector_bytes, f"{register} in {shared}")
    threads, vectors = start.shape
    warps = -(-threads // lanes)
    padded = np.full((warps * lanes, vectors), -1, dtype=np.int64)
    padded[:threads] = start
    phase = min(_PHASE_LANES[vector_bytes], lanes)
    grouped = padded.reshape(warps, lanes // phase, phase, vectors).transpose(0, 3, 1, 2).reshape(-1, phase)
    grouped = grouped[(grouped >= 0).any(axis=1)]
    return BankReport(warps * vectors, int(_wavefronts(grouped, vector_bytes).sum()), len(grouped))


def ldmatrix_conflicts(
    shared: SharedLayout, register: RegisterLayout, elem_bits: int, *, transposed: bool = False
) -> BankReport:
    """Count the wavefronts of loading a tile by `ldmatrix` (or storing it by `stmatrix`).

    Lanes 4r .. 4r+3 hold row r of an 8x8 matrix of 16-bit elements, 32 bits each (other widths: a row is still 16
    bytes); transposed, lanes 4c .. 4c+3 hold column c, and rows are what lies contiguous in memory.

    Raises
    ------
    LayoutError
        If the layouts do not put 16 contiguous, aligned bytes into every row.
    """
    values = 32 // elem_bits
    if values == 0 or 32 % elem_bits or register.num_threads % 32 or register.local_size % values:
        raise LayoutError(
            f"ldmatrix fills 32-bit registers of whole warps, got {register} with {elem_bits}-bit elements"
        )
    if transposed and elem_bits != 16:
        raise LayoutError(f"ldmatrix transposes 16-bit elements only, got {elem_bits} bits")
    # (warp, row or column, lane of four, register, value in the register)
    offsets = _offsets(shared, register).reshape(-1, 8, 4, register.local_size // values, values)
    rows = offsets.transpose((0, 3, 2, 4, 1) if transposed else (0, 3, 1, 2, 4)).reshape(-1, 8 * 4 * values)
    start = _starts(rows, elem_bits, _ROW_BYTES, f"{register} in {shared}")
    return BankReport(len(start), int(_wavefronts(start, _ROW_BYTES).sum()), len(start))


@lru_cache(maxsize=256)
def best_swizzle(shape: tuple[int, ...], elem_bytes: int, accesses: tuple[Access, ...]) -> SharedLayout:
    """Return the shared layout that costs the given accesses the fewest wavefronts, then the least storage.

    Candidates: row-major and column-major, plain, with the usual swizzle, with every XOR swizzle that keeps the
    vectors together, and with padded rows (for rows that no XOR fits).

    Parameters
    ----------
    shape : tuple of int
        Shape of the tile.
    elem_bytes : int
        Bytes of an element: 1, 2, 4, 8 or 16.
    accesses : tuple of Access
        Who reads and writes the tile, and how.

    Raises
    ------
    LayoutError
        If the accesses cannot be contiguous together, as vectors along different dimensions.
    """
    best: tuple[int, int, SharedLayout] | None = None
    ideal, reason = 0, ""
    for candidate in _candidates(shape, elem_bytes, accesses):
        try:
            reports = [access.report(candidate, elem_bytes * 8) for access in accesses]
        except LayoutError as error:
            reason = reason or error.message
            continue
        ideal = sum(report.ideal for report in reports)
        cost = sum(report.wavefronts for report in reports), candidate.storage_size
        if best is None or cost < best[:2]:
            best = (*cost, candidate)
        if best[0] == ideal and best[1] == prod(shape):
            break
    if best is None:
        raise LayoutError(f"no shared layout of shape {shape} fits all accesses: {reason}", hint="use narrower vectors")
    return best[2]


def _candidates(shape: tuple[int, ...], elem_bytes: int, accesses: Sequence[Access]) -> Iterator[SharedLayout]:
    """Yield shared layouts, the plainest first."""
    rank = len(shape)
    backwards = tuple(reversed(range(rank)))
    bases = [row_major(*shape)]
    if rank > 1:
        yield from bases
        yield row_major_swizzle(shape, elem_bytes)
        bases.append(row_major(*reversed(shape)).permute(*backwards))
    yield from bases
    vector = max((a.vector_bytes if a.kind == "vector" else _ROW_BYTES for a in accesses), default=elem_bytes)
    lowest = max(vector // elem_bytes, 1).bit_length() - 1
    top = (prod(shape) - 1).bit_length()
    for layout in bases:
        for bits in (3, 2, 1, 4, 5):
            for shift in range(bits, max(top - lowest - bits, 0) + 1):
                yield layout.swizzled(lowest, bits, shift)
    yield from _padded(shape, max(vector // elem_bytes, 1))


def _padded(shape: tuple[int, ...], chunk: int) -> Iterator[SharedLayout]:
    """Yield row-major and column-major layouts whose rows are some chunks longer than they need be."""
    for order in (tuple(range(len(shape))), tuple(reversed(range(len(shape))))):
        for pad in range(1, 9):
            strides = [0] * len(shape)
            step = 1
            for position, dim in enumerate(reversed(order)):
                strides[dim] = step
                step = -(-step * shape[dim] // chunk) * chunk + pad * chunk if position == 0 else step * shape[dim]
            yield strided(shape, strides)


def _offsets(shared: SharedLayout, register: RegisterLayout) -> Table:
    """Return the element offset of every (thread, local)."""
    if shared.shape != register.shape:
        raise LayoutError(f"shapes differ: {shared} has {shared.shape}, {register} has {register.shape}")
    table = index_table(register)
    return offset_table(shared)[tuple(table[:, :, dim] for dim in range(register.rank))]


def _starts(offsets: Table, elem_bits: int, vector_bytes: int, what: str) -> Table:
    """Return the byte address of every vector, having checked that it is contiguous and aligned."""
    vector_bits = vector_bytes * 8
    width = vector_bits // elem_bits
    if width == 0 or vector_bits % elem_bits or offsets.shape[1] % width:
        raise LayoutError(
            f"{what}: {offsets.shape[1]} elements of {elem_bits} bits are no vectors of {vector_bytes} bytes"
        )
    vectors = offsets.reshape(offsets.shape[0], -1, width)
    start = vectors[:, :, 0]
    if (vectors != start[:, :, None] + np.arange(width)).any() or (start * elem_bits % vector_bits).any():
        raise LayoutError(f"{what}: vectors of {vector_bytes} bytes are not contiguous and aligned")
    return start * elem_bits // 8


def _wavefronts(start: Table, vector_bytes: int) -> Table:
    """Return the wavefronts of each phase, given the byte addresses of its vectors (-1: no lane)."""
    words = start[:, :, None] // WORD_BYTES + np.arange(max(vector_bytes // WORD_BYTES, 1))
    words = np.where(start[:, :, None] < 0, -1, words).reshape(len(start), -1)
    words.sort(axis=1)
    new = np.ones(words.shape, dtype=bool)
    new[:, 1:] = words[:, 1:] != words[:, :-1]
    new &= words >= 0
    bank = np.arange(len(words))[:, None] * BANKS + words % BANKS
    loads: Table = np.bincount(bank[new], minlength=len(words) * BANKS).reshape(-1, BANKS)
    busiest: Table = loads.max(axis=1)
    return busiest
