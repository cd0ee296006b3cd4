"""The trip through shared memory: carried out on labelled registers, and free of conflicts where that is possible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from tests.layouts.test_conversion import pairs
from tilus.layouts import (
    Access,
    RegisterLayout,
    flat_index_table,
    index_table,
    offset_table,
    parse,
    plan_scratch,
    spatial,
)

C = "local(2,1) * spatial(8,4) * local(1,2)"


def through_memory(src: RegisterLayout, dst: RegisterLayout, elem_bytes: int) -> np.ndarray:
    """Store and load vector by vector; every vector is one run of addresses from its first element on."""
    plan = plan_scratch(src, dst, elem_bytes)
    memory = np.full(plan.layout.storage_size, -1, dtype=np.int64)
    offsets = offset_table(plan.layout)
    registers, result = flat_index_table(src), np.full((dst.num_threads, dst.local_size), -1, dtype=np.int64)
    for layout, vector, store in ((src, plan.store_bytes, True), (dst, plan.load_bytes, False)):
        width = vector // elem_bytes
        for thread in range(layout.num_threads):
            for i in range(0, layout.local_size, width):
                first = int(offsets[tuple(index_table(layout)[thread, i])])
                assert first % width == 0
                if store:
                    memory[first : first + width] = registers[thread, i : i + width]
                else:
                    result[thread, i : i + width] = memory[first : first + width]
    return result


@settings(max_examples=40)
@given(pairs())
def test_every_element_arrives(case: tuple[RegisterLayout, RegisterLayout, int]) -> None:
    src, dst, _ = case
    assert (through_memory(src, dst, 2) == flat_index_table(dst)).all()


@pytest.mark.parametrize(
    ("src", "dst", "elem_bytes", "store_bytes", "load_bytes"),
    [
        (f"spatial(2,2) * local(2,4) * {C}", "local(8,1) * spatial(8,16) * local(1,4)", 4, 8, 16),
        (f"spatial(2,2) * local(4,4) * {C}", "local(16,1) * spatial(8,16) * local(1,4)", 2, 4, 8),
        ("spatial(64,1) * local(1,64)", "spatial(1,64) * local(64,1)", 4, 16, 4),
    ],
)
def test_known_trips_have_no_conflicts(src: str, dst: str, elem_bytes: int, store_bytes: int, load_bytes: int) -> None:
    a, b = parse(src), parse(dst)
    plan = plan_scratch(a, b, elem_bytes)
    assert (plan.store_bytes, plan.load_bytes) in ((store_bytes, load_bytes), (load_bytes, store_bytes))
    for layout, vector in ((a, plan.store_bytes), (b, plan.load_bytes)):
        assert Access(layout, vector).report(plan.layout, elem_bytes * 8).conflicts == 0


def test_vectors_that_are_not_contiguous_together_get_narrower() -> None:
    src, dst = spatial(32, 1).local(1, 8), spatial(8, 4).local(4, 2)
    assert src.shape == dst.shape
    assert (through_memory(src, dst, 2) == flat_index_table(dst)).all()
