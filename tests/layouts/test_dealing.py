"""How vectors of a tile are dealt to the threads that copy them."""

from __future__ import annotations

from math import gcd, prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tilus.layouts import dealt_vectors, index_table


@given(st.sampled_from([1, 8, 32, 64, 96, 128]), st.lists(st.sampled_from([1, 2, 3, 4, 8, 16]), min_size=1, max_size=4),
       st.data())  # fmt: skip
def test_every_vector_is_dealt_and_lanes_are_side_by_side(threads: int, shape: list[int], data: st.DataObject) -> None:
    dim = data.draw(st.integers(0, len(shape) - 1))
    width = data.draw(st.sampled_from([w for w in (1, 2, 4, 8) if shape[dim] % w == 0]))
    layout = dealt_vectors(threads, shape, dim, width)
    assert layout.shape == tuple(shape)
    assert layout.num_threads == threads
    table = index_table(layout)
    flat = np.ravel_multi_index(tuple(np.moveaxis(table, -1, 0)), shape)
    assert set(flat.ravel().tolist()) == set(range(prod(shape)))
    vectors = table.reshape(threads, -1, width, len(shape))
    steps = vectors - vectors[:, :, :1]
    assert (steps[..., dim] == np.arange(width)).all()
    # In the order of addresses, the contiguous dimension last, the lanes that take part have neighbouring vectors.
    order = [*(d for d in range(len(shape)) if d != dim), dim]
    extents = [shape[d] // width if d == dim else shape[d] for d in order]
    first = vectors[: gcd(threads, 32), 0, 0][:, order] // [*(1 for _ in order[1:]), width]
    places = np.ravel_multi_index(tuple(first.T), extents)
    if prod(extents) % 32 == 0 and all(n & (n - 1) == 0 for n in extents):
        assert (places == np.arange(len(places))).all()


def test_a_warp_copies_one_part() -> None:
    """Eight tiles of 32 vectors, two warps: each has four in a row, and not every other one."""
    table = index_table(dealt_vectors(64, (8, 128), 1, 4))
    assert [set(table[warp * 32 : warp * 32 + 32, :, 0].ravel().tolist()) for warp in (0, 1)] == [
        {0, 1, 2, 3},
        {4, 5, 6, 7},
    ]
