"""The trip of a tile through shared memory, for conversions that cross warps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd

from tilus.errors import LayoutError
from tilus.layouts.banks import Access, best_swizzle
from tilus.layouts.register import RegisterLayout
from tilus.layouts.shared import SharedLayout

_WIDEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Scratch:
    """How a tile goes from one register layout to another through shared memory.

    Attributes
    ----------
    layout : SharedLayout
        Where the elements lie in between.
    store_bytes, load_bytes : int
        Bytes that a lane stores and loads at once.
    cost : int
        Wavefronts and warp-wide instructions of both ways, for the whole tile.
    """

    layout: SharedLayout
    store_bytes: int
    load_bytes: int
    cost: int


@lru_cache(maxsize=256)
def plan_scratch(src: RegisterLayout, dst: RegisterLayout, elem_bytes: int) -> Scratch:
    """Return the cheapest trip: vectors along one dimension or single elements, in the best swizzle for both ways.

    Parameters
    ----------
    src, dst : RegisterLayout
        Layouts of one tensor.
    elem_bytes : int
        Bytes of an element: 1, 2, 4, 8 or 16.
    """
    widths = {(elem_bytes, elem_bytes)}
    for dim in range(src.rank):
        runs = src.contiguous_run(dim), dst.contiguous_run(dim)
        store, load = (max(gcd(run * elem_bytes, _WIDEST_BYTES), elem_bytes) for run in runs)
        widths |= {(store, load), (store, elem_bytes), (elem_bytes, load)}
    trips = []
    for store, load in sorted(widths, reverse=True):
        accesses = Access(src, store), Access(dst, load)
        try:
            layout = best_swizzle(src.shape, elem_bytes, accesses)
        except LayoutError:
            continue  # vectors along different dimensions: narrower ones are among the widths
        reports = [access.report(layout, elem_bytes * 8) for access in accesses]
        cost = sum(report.wavefronts + report.accesses for report in reports)
        trips.append(Scratch(layout, store, load, cost))
    return min(trips, key=lambda trip: trip.cost)
