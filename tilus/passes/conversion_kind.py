"""How far elements travel from one layout to another, without working out the trip.

`tilus.layouts.plan_conversion` makes the tables that carry a conversion out; to weigh hundreds of choices it is enough
to know its kind, which takes no more than comparing digits of thread numbers. Both agree (tested).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from tilus.layouts import Digit, RegisterLayout, classify_conversion, index_table
from tilus.layouts.conversion import Kind
from tilus.layouts.digits import cut
from tilus.layouts.maps import Table


@lru_cache(maxsize=4096)
def conversion_kind(src: RegisterLayout, dst: RegisterLayout, lanes: int) -> Kind:
    """Return the cheapest way from `src` to `dst`: ``same``, ``registers``, ``shuffle`` or ``shared``."""
    if src == dst:
        return "same"
    if not _warps_end_between_digits(src, lanes):
        return classify_conversion(src, dst, lanes)
    wanted = index_table(dst)
    thread = np.arange(dst.num_threads, dtype=np.int64)[:, None]
    in_thread = in_warp = True
    weight = 1
    for digit in reversed(src.spatial_digits):
        if digit.dim is not None:
            for low, part in _split(digit, weight, lanes):
                matches = bool(((wanted[:, :, digit.dim] // part.stride - thread // low) % part.size == 0).all())
                in_thread &= matches
                in_warp &= matches or low < lanes
        weight *= digit.size
    if in_thread:
        place = _local_number(src, wanted)
        if (place == place[0]).all():
            return "registers"
    return "shuffle" if in_warp else "shared"


def _warps_end_between_digits(layout: RegisterLayout, lanes: int) -> bool:
    """Whether the thread number can be cut into warp and lane; not so for three warps in one digit, say."""
    return cut(layout.spatial_digits, min(lanes, layout.num_threads)) is not None


def _split(digit: Digit, weight: int, lanes: int) -> list[tuple[int, Digit]]:
    """Cut a digit of a thread number where warps begin; return parts with their weights."""
    if weight >= lanes or weight * digit.size <= lanes:
        return [(weight, digit)]
    inside = lanes // weight
    outer = digit._replace(size=digit.size // inside, stride=digit.stride * inside)
    return [(weight, digit._replace(size=inside)), (lanes, outer)]


def _local_number(layout: RegisterLayout, index: Table) -> Table:
    """Return the local number of each index."""
    number = np.zeros(index.shape[:2], dtype=np.int64)
    for size, dim, stride in layout.local_digits:
        number = number * size + index[:, :, dim] // stride % size
    return number
