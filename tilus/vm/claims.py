"""What selection claims about an access, checked against the addresses of the running program.

`Selected.unmasked`: no element leaves the view in these dimensions. `Selected.width`: so many consecutive local
elements are consecutive in memory, begin at a multiple of their number, and are inside or outside of the view together.
"""

from __future__ import annotations

import numpy as np

from tilus.ir.stmt import Selected
from tilus.layouts import RegisterLayout, gather
from tilus.vm.fault import Fault
from tilus.vm.values import Array

_VECTORS = ("ld.global", "st.global", "ld.shared", "st.shared")


def check_unmasked(selected: Selected | None, inside_by_dim: list[Array]) -> None:
    """Raise `Fault` if an access leaves the view in a dimension that is claimed to need no bounds test."""
    for dim in selected.unmasked if selected is not None else ():
        if not np.all(inside_by_dim[dim]):
            raise Fault(f"the access leaves the view in dimension {dim}, which was proved to need no bounds test")


def check_width(selected: Selected | None, layout: RegisterLayout | None, index: Array, inside: Array | None) -> None:
    """Raise `Fault` unless groups of `width` local elements are vectors in memory.

    Parameters
    ----------
    selected : Selected or None
    layout : RegisterLayout or None
        Of the tile; without one nothing is claimed.
    index : array of the tile's shape
        Place of every element, counted in elements.
    inside : array of bool, of the tile's shape, or None
        Which elements are accessed at all.
    """
    if selected is None or layout is None or selected.width == 1 or selected.atom not in _VECTORS:
        return
    width = selected.width
    places = gather(layout, np.broadcast_to(index, layout.shape))
    if places.shape[1] % width:
        raise Fault(f"vectors of {width} elements do not divide the {places.shape[1]} elements of a thread")
    vectors = places.reshape(len(places), -1, width)
    active = np.ones(vectors.shape, np.bool_) if inside is None else gather(layout, inside).reshape(vectors.shape)
    if np.any(active.any(axis=-1) != active.all(axis=-1)):
        raise Fault(f"a vector of {width} elements lies partly outside of the view")
    used = vectors[active.all(axis=-1)]
    if np.any(used != used[:, :1] + np.arange(width)):
        raise Fault(f"{width} elements that were proved to be consecutive in memory are not")
    if np.any(used[:, 0] % width):
        raise Fault(f"a vector of {width} elements begins at element {int(used[used[:, 0] % width != 0][0, 0])}")
