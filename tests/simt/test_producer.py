"""Kernels whose copies one warp starts for the others, as the PTX that ships: right, clean, and needing every wait."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilus
from tests.agreement.machines import examples, on_vm
from tests.simt.library import bits, compiled, on_simt
from tilus import i32, u32
from tilus.lang import (
    alloc_shared,
    block_id,
    cdiv,
    commit_group,
    copy_async,
    global_view,
    launch,
    load_global,
    load_shared,
    ptr,
    store_global,
    store_shared,
    sync,
    wait_group,
    zeros,
)


@tilus.inline
def start(stages, views, t, stage):
    """Start copying the tile and the factors of a trip, as one group."""
    (tiles, factors), (x, f), SLICES = stages, views, stages[0].shape[1]
    place, row = (block_id(0), t * SLICES, 0), (block_id(0), t * SLICES)
    copy_async(tiles, x, src_offset=place, dst_offset=(stage, 0, 0), shape=(SLICES, 128))
    copy_async(factors, f, src_offset=row, dst_offset=(stage, 0), shape=(1, SLICES))
    commit_group()


@tilus.kernel
def add_tiles(
    x: ptr[u32], f: ptr[u32], y: ptr[u32], n: i32, *, SLICES: int, STAGES: int, WARPS: int = 4, WRITTEN: bool = False
):
    """Add up tiles of [SLICES, 128] of each block's rows [n, 128], times factors [n], through stages."""
    launch(blocks=(2,), warps=WARPS, producer=True)
    views = global_view(x, shape=(2, n, 128)), global_view(f, shape=(2, n))
    stages = alloc_shared(u32, (STAGES, SLICES, 128)), alloc_shared(u32, (STAGES, SLICES))
    if WRITTEN:  # by threads, before copies write the same bytes
        store_shared(stages[0], zeros((SLICES, 128), u32), offset=(0, 0, 0), dims=(1, 2))
        sync()
    for s in tilus.static_range(STAGES - 1):
        start(stages, views, s, s)
    total = zeros((SLICES, 128), u32)
    for t in range(cdiv(n, SLICES)):
        wait_group(STAGES - 2)
        sync()
        start(stages, views, t + (STAGES - 1), (t + (STAGES - 1)) % STAGES)
        tile = load_shared(stages[0], offset=(t % STAGES, 0, 0), shape=(SLICES, 128), dims=(1, 2))
        factor = load_shared(stages[1], offset=(t % STAGES, 0), shape=(1, SLICES))
        total = total + tile * factor.reshape((SLICES, 1))
    store_global(global_view(y, shape=(2, SLICES, 128)), total, offset=(block_id(0), 0, 0), dims=(1, 2))


PROMISES = {"x": 16, "f": 16, "y": 16}
SHAPES = [
    (8, 4, 41),
    (8, 4, 0),
    (8, 2, 8),
    (2, 5, 31),
    (4, 3, 6),
    (2, 2, 64),
]  # slices, stages, rows: ragged ones, none


def launch_of(slices: int, stages: int, n: int, **options: Any) -> tuple[Any, list[Any]]:
    draw = np.random.default_rng(n)
    x, f = (draw.integers(0, 1000, shape).astype(np.uint32) for shape in ((2, n, 128), (2, n)))
    program = add_tiles.program(PROMISES, SLICES=slices, STAGES=stages, **options)
    return program, [x, f, np.full((2, slices, 128), 7, np.uint32), n]


@pytest.mark.parametrize("landing", ["early", "late"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(("slices", "stages", "n"), SHAPES)
def test_tiles_arrive_whole(slices, stages, n, arch, landing):
    program, args = launch_of(slices, stages, n)
    found, report = on_simt(program, args, arch, landing=landing)
    assert report.ok, str(report)
    np.testing.assert_array_equal(bits(found), bits(on_vm(program, args)))
    ptx = compiled(program, arch).ptx
    assert ("cp.async.bulk" in ptx) == (arch == "sm_90a")
    assert "cp.async.mbarrier.arrive" in ptx, "factors are no piece that a bulk copy could move"
    assert ".maxntid 160" in ptx


@examples(0.12)
@given(
    st.sampled_from([2, 3, 4, 8, 16]), st.integers(2, 6), st.integers(0, 70), st.sampled_from([1, 2, 3, 8]),
    st.sampled_from(["sm_80", "sm_90a"]), st.sampled_from(["early", "late"]),
)  # fmt: skip
def test_random_pipelines(slices, stages, n, warps, arch, landing):
    program, args = launch_of(slices, stages, n, WARPS=warps)
    found, report = on_simt(program, args, arch, landing=landing)
    assert report.ok, str(report)
    np.testing.assert_array_equal(bits(found), bits(on_vm(program, args)))
    assert f".maxntid {32 * warps + 32}" in compiled(program, arch).ptx


@pytest.mark.parametrize(
    ("slices", "promises", "options", "produced"),
    [
        (1, PROMISES, {}, True),  # tiles of half a KiB
        (8, {}, {}, True),  # addresses that may be anything
        (8, PROMISES, {"WRITTEN": True}, False),  # threads write, too
    ],
)
def test_what_is_no_bulk_copy(slices, promises, options, produced):
    program, args = launch_of(slices, 3, 41, **options)
    if promises != PROMISES:
        program = add_tiles.program(promises, SLICES=slices, STAGES=3)
    found, report = on_simt(program, args, "sm_90a")
    assert report.ok, str(report)
    np.testing.assert_array_equal(bits(found), bits(on_vm(program, args)))
    ptx = compiled(program, "sm_90a").ptx
    assert "cp.async" in ptx
    assert "cp.async.bulk" not in ptx
    assert ("mbarrier" in ptx) == produced == (".maxntid 160" in ptx)


@tilus.inline
def fetch(stages, rows, t):
    """Copy a row to its stage."""
    copy_async(stages, rows, src_offset=(t, 0), dst_offset=(t % stages.shape[0], 0), shape=(1, 1024))


@tilus.kernel
def add_rows(
    x: ptr[u32], y: ptr[u32], n: i32, *, STAGES: int, TABLE: bool = False, FIRST: bool = False, LAST: bool = False
):
    """Add up rows [n, 1024], and do what only the order of the program makes right.

    TABLE: a tensor is copied again when the first group has landed; FIRST: results are stored, shifted, where another
    thread has read before the loop; LAST: stages are written to behind the loop.
    """
    launch(blocks=1, warps=4, producer=True)
    rows, other = global_view(x, shape=(n, 1024)), global_view(y, shape=(1, 1028))
    stages, table = alloc_shared(u32, (STAGES, 1024)), alloc_shared(u32, (1, 1024))
    total = load_global(other, offset=(0, 4), shape=(1, 1024)) if FIRST else zeros((1, 1024), u32)
    if TABLE:
        copy_async(table, rows, src_offset=(0, 0))
    for s in tilus.static_range(STAGES - 1):
        fetch(stages, rows, s)
        commit_group()
    for t in range(n):
        wait_group(STAGES - 2)
        sync()
        fetch(stages, rows, t + (STAGES - 1))
        if TABLE and t == 0:
            copy_async(table, rows, src_offset=(n - 1, 0))
        commit_group()
        total += load_shared(stages, offset=(t % STAGES, 0), shape=(1, 1024))
        if TABLE and t >= STAGES - 1:
            total += load_shared(table, offset=(0, 0), shape=(1, 1024))
    if LAST:
        spare = alloc_shared(u32, (1, 1024))
        store_shared(spare, total, offset=(0, 0))
        sync()
        total += load_shared(spare, offset=(0, 0), shape=(1, 1024)).reshape((8, 128)).T.reshape((1, 1024))
    store_global(other, total, offset=(0, 0))


@pytest.mark.parametrize("what", ["TABLE", "FIRST", "LAST"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(("stages", "n"), [(2, 7), (3, 1), (3, 3), (4, 9)])
def test_the_order_of_the_program_is_kept(stages, n, arch, what):
    """With no more trips than stages, too: then consumers have never waited for one another by way of the producer."""
    program = add_rows.program({"x": 16, "y": 16}, STAGES=stages, **{what: True})
    x = np.random.default_rng(n).integers(0, 1000, (n, 1024)).astype(np.uint32)
    args = [x, np.arange(1028, dtype=np.uint32), n]
    assert ".maxntid 160" in compiled(program, arch).ptx
    for landing in ("early", "late"):
        found, report = on_simt(program, args, arch, landing=landing)
        assert report.ok, str(report)
        np.testing.assert_array_equal(bits(found), bits(on_vm(program, args)))


# What is left out: which of the lines of a kind, what stands in their place, what is found. The loop's lines come
# before those behind it, and consumers' before the producer's.
BULK = {"bytes", "fence after the initialisation"}  # what bulk copies alone need
NEVER, ALWAYS = "setp.eq.u32 p, 0, 1;", "setp.eq.u32 p, 0, 0;"
BREAKS = {
    "wait for a full stage": (0, r"mbarrier.t\w+_wait[^;]*;", ALWAYS, {"race", "pending"}),
    "wait for a free stage": (2, r"mbarrier.t\w+_wait[^;]*;", ALWAYS, {"race", "pending"}),
    "wait at the end": (-1, r"mbarrier.t\w+_wait[^;]*;", ALWAYS, {"pending"}),
    "bytes": (-1, r"mbarrier.expect_tx[^;]*;", "", {"barrier", "deadlock"}),
    "a free stage": (0, r"(?<!async.)mbarrier.arrive.shared[^;]*;", "", {"deadlock"}),
    "a full stage": (-1, r"(?<!async.)mbarrier.arrive.shared[^;]*;", "", {"deadlock"}),
    "copies by lanes": (-1, r"cp.async.mbarrier.arrive[^;]*;", "", {"deadlock"}),
    "fence after the initialisation": (-1, r"fence.mbarrier_init[^;]*;", "", {"proxy", "barrier"}),
    "initialisation that all know of": (0, r"bar.sync[ \t]+0;", "", {"race", "barrier"}),
}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("name", BREAKS)
def test_what_is_left_out_is_found(name, arch):
    which, pattern, new, kinds = BREAKS[name]
    lines = re.findall(pattern, compiled(launch_of(8, 4, 41)[0], arch).ptx)
    if arch == "sm_80" and name in BULK:
        assert not lines
        return
    found = set()
    for landing, rows in product(("early", "late"), (41, 8)):  # more trips than stages, and fewer
        program, args = launch_of(8, 4, rows)
        _, report = on_simt(program, args, arch, edit=(lines[which], new), landing=landing)
        found |= {finding.kind for finding in report.findings}
    assert found & kinds, found
