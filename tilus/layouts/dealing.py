"""Which thread copies what: the layout of asynchronous copies, on which passes and emitters agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import gcd

from tilus.layouts.register import RegisterLayout, local, replicated, spatial

WARP = 32


def dealt_vectors(num_threads: int, shape: Sequence[int], dim: int, width: int) -> RegisterLayout:
    """Deal a tile's vectors of `width` neighbours along `dim` to threads.

    The lanes of a warp take vectors side by side, first along `dim`. Every warp has a part of its own, so that a
    thread's vectors are near together and reached from few addresses. Of spare threads, replicas, the first copies.
    """
    order = [*(d for d in range(len(shape)) if d != dim), dim]
    vectors = [shape[d] // width if d == dim else shape[d] for d in order]
    lanes, idle = _shares(gcd(num_threads, WARP), reversed(vectors))
    groups = [n // lane for n, lane in zip(vectors, reversed(lanes), strict=True)]
    warps, spare = _shares(num_threads // gcd(num_threads, WARP), groups)
    steps = [n // warp for n, warp in zip(groups, warps, strict=True)]
    rank = len(shape)
    spread = (
        replicated(spare, rank) * spatial(*warps) * local(*steps) * replicated(idle, rank) * spatial(*reversed(lanes))
    )
    return spread.permute([order.index(d) for d in range(rank)]).local(*(width if d == dim else 1 for d in range(rank)))


def _shares(threads: int, extents: Iterable[int]) -> tuple[list[int], int]:
    """Return how many of the threads go to each extent, one after the other, and how many are left."""
    shares = []
    for extent in extents:
        shares.append(gcd(threads, extent))
        threads //= shares[-1]
    return shares, threads
