"""Tile accesses to shared memory: the part that is touched, how wide, and by which hardware instruction.

A shared layout decides all of this, so every question takes one: the pass that chooses layouts asks for candidates,
the pass that selects instructions for the one chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, prod

import numpy as np

from tilus.errors import LayoutError
from tilus.ir.atoms import LDMATRIX
from tilus.ir.expr import Expr, Tensor
from tilus.ir.instructions import CopyAsync, Instruction, LoadShared, StoreShared
from tilus.ir.target import Target
from tilus.layouts import RegisterLayout, SharedLayout, offset_table, shared_layout
from tilus.passes.access import MAX_BYTES
from tilus.passes.analyze import Analysis
from tilus.passes.tensors import register_type

_ROW_BYTES = 16  # a row of an 8x8 matrix of ldmatrix (PTX ISA)
_LDMATRIX_CAPABILITY = 75


@dataclass(frozen=True, slots=True)
class SharedAccess:
    """A rectangular part of a shared tensor; `dims` says which of its dimensions each tile dimension runs along."""

    tensor: Tensor
    offset: tuple[Expr, ...]
    shape: tuple[int, ...]
    dims: tuple[int, ...]


def shared_access(inst: Instruction) -> SharedAccess | None:
    """Return an instruction's access to shared memory, None if it has none."""
    match inst:
        case LoadShared(src=tensor, offset=offset, shape=shape, dims=dims):
            return SharedAccess(tensor, offset, shape, dims)
        case StoreShared(dst=tensor, tile=tile, offset=offset, dims=dims):
            return SharedAccess(tensor, offset, register_type(tile).shape, dims)
        case CopyAsync(dst=tensor, dst_offset=offset, shape=shape, dst_dims=dims):
            return SharedAccess(tensor, offset, shape, dims)
        case _:
            return None


def tile_layout(layout: SharedLayout, access: SharedAccess) -> SharedLayout | None:
    """Return the layout of an access's tile at the origin of a shared tensor; None if modes do not split there."""
    sizes = dict(zip(access.dims, access.shape, strict=True))
    modes: list[tuple[int, int]] = []
    for dim, group in enumerate(layout.grouped_modes):
        taken: list[tuple[int, int]] = []
        rest = sizes.get(dim, 1)
        for size, stride in reversed(group):
            part = gcd(size, rest)
            if part != rest and part != size:
                return None
            taken.insert(0, (part, stride))
            rest //= part
        modes += taken
    return shared_layout(access.shape, [m[0] for m in modes], [m[1] for m in modes], layout.swizzle)


@lru_cache(maxsize=1024)
def contiguous_run(layout: SharedLayout, dim: int) -> int:
    """Return the greatest power of two w such that aligned runs of w along `dim` lie contiguous and aligned."""
    table = np.moveaxis(offset_table(layout), dim, -1)
    width = 1
    while layout.shape[dim] % (width * 2) == 0:
        runs = table.reshape(*table.shape[:-1], -1, width * 2)
        start = runs[..., :1]
        if (runs != start + np.arange(width * 2)).any() or (start % (width * 2)).any():
            break
        width *= 2
    return width


def vector_width(
    access: SharedAccess, dim: int, limit: int, nbits: int, layout: SharedLayout, analysis: Analysis
) -> int:
    """Return the greatest number of elements along tile dimension `dim` that move at once, `limit` at most."""
    at = access.dims[dim]
    width = min(1 << (max(limit, 1).bit_length() - 1), max(MAX_BYTES * 8 // nbits, 1), contiguous_run(layout, at))
    while width > 1 and not analysis.of(access.offset[at]).divisible_by(width):
        width //= 2
    return width


def local_run(layout: RegisterLayout, dim: int) -> int:
    """Return the greatest power of two of consecutive locals that are neighbours along `dim`."""
    run = layout.contiguous_run(dim)
    return run & -run


@dataclass(frozen=True, slots=True)
class MatrixLoad:
    """How a tile is read by ldmatrix: matrices per instruction, and whether they are transposed on the way."""

    count: int
    transposed: bool

    @property
    def atom(self) -> str:
        """Name in `tilus.ir.atoms`."""
        return f"ldmatrix.x{self.count}{'.trans' if self.transposed else ''}"


def matrix_load(
    access: SharedAccess,
    register: RegisterLayout,
    nbits: int,
    layout: SharedLayout,
    analysis: Analysis,
    target: Target,
) -> MatrixLoad | None:
    """Return how ldmatrix can read a tile, None if it cannot.

    The tile, or each in a batch, must be made of fragments, in either orientation, and the 16 bytes of each row of a
    matrix contiguous and aligned in memory, along whichever dimension. If that is the dimension in which a lane holds
    neighbours, the matrix is read as it lies, otherwise transposed.
    """
    if target.kind != "cuda" or target.capability < _LDMATRIX_CAPABILITY or nbits not in LDMATRIX or register.rank < 2:
        return None
    pairs_along = _fragment_dim(register, nbits)
    if pairs_along is None:
        return None
    count = gcd(register.local_size // max(32 // nbits, 1), 4)
    rank = register.rank
    for dim in (pairs_along, 2 * rank - 3 - pairs_along):  # the last two
        transposed = dim != pairs_along
        row = _ROW_BYTES * 8 // nbits
        if (transposed and nbits != 16) or register.shape[dim] % row:
            continue
        if vector_width(access, dim, row, nbits, layout, analysis) == row:
            return MatrixLoad(count, transposed)
    return None


def _fragment_dim(register: RegisterLayout, nbits: int) -> int | None:
    """Return along which dimension a lane holds neighbours, None if the layout is not made of fragments."""
    plain, rank = LDMATRIX[nbits], register.rank
    for dim, fragment in ((rank - 1, plain), (rank - 2, plain.permute(1, 0))):
        try:
            _ = register / fragment.unsqueeze(range(rank - 2))
        except LayoutError:
            continue
        return dim
    return None


def expanded(register: RegisterLayout, access: SharedAccess, core: Sequence[int]) -> RegisterLayout | None:
    """Return the layout of an access to a part of a tile, repeated until it covers the whole tile `core`.

    `core` holds the extents of the last dimensions of the shared tensor. None where the part does not tile it.
    """
    rank = len(access.offset)
    first = rank - len(core)
    if any(dim < first and size > 1 for dim, size in zip(access.dims, access.shape, strict=True)):
        return None
    leading = [d for d, at in enumerate(access.dims) if at < first]
    register = register.squeeze(leading) if leading else register
    places = [at - first for at in access.dims if at >= first]
    missing = [d for d in range(len(core)) if d not in places]
    register = register.unsqueeze(missing) if missing else register
    if any(n % m for n, m in zip(core, register.shape, strict=True)):
        return None
    repeats = [n // m for n, m in zip(core, register.shape, strict=True)]
    if prod(repeats) == 1:
        return register
    return RegisterLayout(tuple(repeats), tuple(repeats), (), tuple(range(len(repeats)))) * register
