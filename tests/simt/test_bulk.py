"""Copies of whole tiles by one thread, in the language and as the PTX that ships: right, clean, and needed to be waited for."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import tilus
from tests.agreement.machines import on_vm
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
    load_shared,
    ptr,
    store_global,
    store_shared,
    sync,
    wait_group,
    zeros,
)


@tilus.kernel
def add_tiles(x: ptr[u32], y: ptr[u32], n: i32, *, SLICES: int, STAGES: int, WRITTEN: bool = False):
    """Add up tiles of [SLICES, 128] of each block's rows [n, 128], through stages of shared memory."""
    launch(blocks=(2,), warps=4)
    rows = global_view(x, shape=(2, n, 128))
    stages = alloc_shared(u32, (STAGES, SLICES, 128))
    if WRITTEN:  # by threads, before copies write the same bytes
        store_shared(stages, zeros((SLICES, 128), u32), offset=(0, 0, 0), dims=(1, 2))
        sync()
    for s in tilus.static_range(STAGES - 1):
        at = (block_id(0), s * SLICES, 0)
        copy_async(stages, rows, src_offset=at, dst_offset=(s, 0, 0), shape=(SLICES, 128), bulk=True)
        commit_group()
    total = zeros((SLICES, 128), u32)
    for t in range(cdiv(n, SLICES)):
        wait_group(STAGES - 2)
        sync()
        ahead = t + (STAGES - 1)
        at = (block_id(0), ahead * SLICES, 0)
        copy_async(stages, rows, src_offset=at, dst_offset=(ahead % STAGES, 0, 0), shape=(SLICES, 128), bulk=True)
        commit_group()
        total = total + load_shared(stages, offset=(t % STAGES, 0, 0), shape=(SLICES, 128), dims=(1, 2))
    store_global(global_view(y, shape=(2, SLICES, 128)), total, offset=(block_id(0), 0, 0), dims=(1, 2))


PROMISES = {"x": 16, "y": 16}
SHAPES = [
    (8, 4, 41),
    (8, 4, 0),
    (8, 2, 8),
    (2, 5, 31),
    (4, 3, 6),
]  # slices, stages, rows: whole tiles, ragged ones, none


def launch_of(slices: int, stages: int, n: int, **options: Any) -> tuple[Any, list[Any]]:
    x = np.random.default_rng(n).integers(0, 1000, (2, n, 128)).astype(np.uint32)
    program = add_tiles.program(PROMISES, SLICES=slices, STAGES=stages, **options)
    return program, [x, np.full((2, slices, 128), 7, np.uint32), n]


@pytest.mark.parametrize("landing", ["early", "late"])
@pytest.mark.parametrize(("slices", "stages", "n"), SHAPES)
def test_tiles_arrive_whole(slices, stages, n, landing):
    program, args = launch_of(slices, stages, n)
    found, report = on_simt(program, args, "sm_90a", landing=landing)
    assert report.ok, str(report)
    np.testing.assert_array_equal(bits(found), bits(on_vm(program, args)))
    assert "cp.async.bulk" in compiled(program, "sm_90a").ptx


def test_memory_that_threads_have_written_is_fenced():
    for written in (False, True):
        program, args = launch_of(8, 4, 41, WRITTEN=written)
        found, report = on_simt(program, args, "sm_90a")
        assert report.ok, str(report)
        np.testing.assert_array_equal(bits(found), bits(on_vm(program, args)))
        before = re.findall(r"ptx_fence_proxy_async\(\);\s*ptx_mbarrier_expect", compiled(program, "sm_90a").source)
        assert bool(before) == written


@pytest.mark.parametrize(
    ("slices", "promises", "arch"), [(8, PROMISES, "sm_80"), (1, PROMISES, "sm_90a"), (8, {}, "sm_90a")]
)
def test_all_threads_copy_where_one_cannot(slices, promises, arch):
    """No such instruction, a tile of half a KiB, an address that may be anything."""
    ptx = compiled(add_tiles.program(promises, SLICES=slices, STAGES=3), arch).ptx
    assert "cp.async" in ptx
    assert "bulk" not in ptx


BREAKS = {  # which of the instructions of a kind, one of the loop; what stands in its place; what is found
    "wait": (-3, r"mbarrier.try_wait[^;]*;", "setp.eq.u32 p, 0, 0;", {"race", "pending"}),
    "bytes": (-1, r"mbarrier.expect_tx[^;]*;", "", {"barrier", "race", "pending"}),
    "arrival": (-1, r"mbarrier.arrive[^;]*;", "", {"deadlock"}),
    "initialisation that the warp knows of": (-1, r"bar.warp.sync[^;]*;", "", {"race"}),
    "fence after the initialisation": (-1, r"fence.mbarrier_init[^;]*;", "", {"proxy", "barrier"}),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_left_out_is_found(name):
    which, pattern, new, kinds = BREAKS[name]
    program, args = launch_of(8, 4, 41)
    line = re.findall(pattern, compiled(program, "sm_90a").ptx)[which]
    _, report = on_simt(program, args, "sm_90a", edit=(line, new))
    assert {finding.kind for finding in report.findings} & kinds, str(report)
