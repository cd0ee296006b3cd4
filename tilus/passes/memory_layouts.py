"""Layouts of tiles that nothing but a memory access decides: wide accesses, neighbours in neighbouring threads."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod

from tilus.ir.target import Target
from tilus.layouts import RegisterLayout, auto_local_spatial, local, spatial


def coalesced(shape: Sequence[int], dim: int | None, width: int, num_threads: int) -> RegisterLayout:
    """Return a layout whose threads each take `width` neighbours along `dim`, threads side by side in memory.

    Parameters
    ----------
    shape : sequence of int
        Extents of the tile.
    dim : int or None
        The dimension that is contiguous in memory; None: the last.
    width : int
        Elements that a thread moves at once; made smaller until every thread has something to do.
    num_threads : int
        Threads of the block. Where the tile has fewer vectors than that, threads repeat one another.
    """
    if not shape:
        return auto_local_spatial(num_threads, shape)
    dim = len(shape) - 1 if dim is None else dim
    width = gcd(width, shape[dim])
    while width > 1 and prod(shape) // width < num_threads:
        width = width // 2 if width % 2 == 0 else 1
    return vectors_over_threads(shape, dim, width, num_threads)


def vectors_over_threads(shape: Sequence[int], dim: int, width: int, num_threads: int) -> RegisterLayout:
    """Return vectors of `width` neighbours along `dim`, dealt to threads side by side: first along `dim`."""
    rank = len(shape)
    order = [*(d for d in range(rank) if d != dim), dim]
    spread = auto_local_spatial(num_threads, [shape[d] // width if d == dim else shape[d] for d in order])
    return spread.permute([order.index(d) for d in range(rank)]).local(*(width if d == dim else 1 for d in range(rank)))


def vector_width(nbits: int, target: Target) -> int:
    """Return how many elements a thread should move at once: 16 bytes; on a CPU one, since lanes are the vector."""
    return 1 if target.kind == "cpu" else max(128 // nbits, 1)


def rows_to_warps(shape: Sequence[int], dim: int, width: int, num_threads: int, lanes: int) -> RegisterLayout | None:
    """Return a layout that keeps each row along `dim` within one warp, so that reducing it takes shuffles only.

    None where the other dimensions have no row for every warp, or a row has too few vectors for all lanes.
    """
    warps, width = num_threads // lanes, gcd(width, shape[dim])
    counts = [1] * len(shape)
    for d in reversed(range(len(shape))):
        if d != dim:
            counts[d] = gcd(shape[d], warps)
            warps //= counts[d]
    if warps > 1 or shape[dim] % (lanes * width):
        return None
    row = [lanes if d == dim else 1 for d in range(len(shape))]
    vector = [width if d == dim else 1 for d in range(len(shape))]
    rest = [n // (c * r * v) for n, c, r, v in zip(shape, counts, row, vector, strict=True)]
    return spatial(*counts) * local(*rest) * spatial(*row) * local(*vector)
