"""Which tiles are one piece of memory, so that one thread moves or prefetches them by one instruction.

A packed tile of weights is such a piece. Where it may end outside of the view, in the dimension that is outermost in
memory, the part inside is a piece from its start on.
"""

from __future__ import annotations

from math import prod

import numpy as np

from tilus.layouts import SharedLayout, offset_table
from tilus.passes.access import GlobalAccess, unmasked_dims
from tilus.passes.analyze import Analysis
from tilus.passes.shared_access import SharedAccess, tile_layout

_UNIT = 16  # PTX ISA, "cp.async.bulk": addresses and sizes are multiples of 16 bytes
_LEAST = 1024  # smaller pieces are not worth the barrier's round trip


def is_bulk(source: GlobalAccess, to: SharedAccess, layout: SharedLayout, width: int, analysis: Analysis) -> bool:
    """Whether a copy is one piece on both sides.

    Parameters
    ----------
    source : GlobalAccess
    to : SharedAccess
    layout : SharedLayout
        Of the whole shared tensor.
    width : int
        Elements in a row that are proved to be aligned and contiguous on both sides.
    analysis : Analysis
    """
    large = prod(source.shape) * source.nbits // 8 >= _LEAST
    return large and is_piece(source, width, analysis) and _is_row(to, layout)


def is_piece(source: GlobalAccess, width: int, analysis: Analysis) -> bool:
    """Whether a tile, up to the end of its view, is one piece of memory made of aligned units of 16 bytes."""
    aligned = width * source.nbits == 8 * _UNIT
    return aligned and _is_dense(source, analysis) and _has_prefix_inside(source, analysis)


def outermost(shape: tuple[int, ...]) -> int:
    """Return the first dimension of a tile that has more than one element."""
    return next((d for d, extent in enumerate(shape) if extent > 1), 0)


def _is_dense(source: GlobalAccess, analysis: Analysis) -> bool:
    step = 1
    for at, extent in zip(reversed(source.dims), reversed(source.shape), strict=True):
        if extent > 1 and analysis.of(source.view.strides[at]).constant != step:
            return False
        step *= extent
    return True


def _has_prefix_inside(source: GlobalAccess, analysis: Analysis) -> bool:
    """Whether what lies inside of the view begins at the tile's first element and is whole slices."""
    inside = unmasked_dims(source, analysis)
    masked = [d for d, at in enumerate(source.dims) if source.shape[d] > 1 and at not in inside]
    if not masked:
        return True
    first = outermost(source.shape)
    start = source.offset[source.dims[first]]
    begins_inside = analysis.of(start).lo >= 0 or analysis.at_least_zero(analysis.sum_of(start))
    return masked == [first] and begins_inside and prod(source.shape[first + 1 :]) * source.nbits % (8 * _UNIT) == 0


def _is_row(to: SharedAccess, layout: SharedLayout) -> bool:
    tile = tile_layout(layout, to)
    if tile is None or tile.swizzle is not None or list(to.dims) != sorted(to.dims):
        return False
    table = offset_table(tile).reshape(-1)
    return bool((table == np.arange(table.size)).all())
