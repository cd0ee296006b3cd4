"""Blocks that add up tiles with the others of their cluster: on the reference machine and as PTX."""

from __future__ import annotations

import re

import numpy as np
import pytest

import tilus
from tests.agreement.machines import on_vm
from tests.simt.library import bits, compiled, on_simt
from tilus import DataType, f32, i32
from tilus.errors import LaunchError, PassError, TilusError, VerifyError, VMError
from tilus.ir.parser import parse
from tilus.ir.target import TARGETS
from tilus.lang import block_id, cluster_sum, global_view, launch, load_global, ptr, store_global
from tilus.passes.pipeline import lower


@tilus.kernel
def add_parts(
    x: ptr[T], y: ptr[T], parts: i32, *,  # noqa: F821 - T is a compile-time constant
    T: DataType, SHAPE: tuple, CLUSTER: tuple, WARPS: int = 2, TURNS: int = 1,
):  # fmt: skip
    """Add up tiles [parts, 2, 2, *SHAPE] over the blocks of each cluster, and store the sum by each block."""
    launch(blocks=(2, 2, parts), warps=WARPS, cluster=CLUSTER)
    i, j, part = block_id(0), block_id(1), block_id(2)
    view = global_view(x, shape=(parts, 2, 2, *SHAPE))
    tile = load_global(view, offset=(part, i, j, 0, 0), shape=SHAPE, dims=(3, 4))
    for _ in range(TURNS):
        tile = cluster_sum(tile)
    store_global(global_view(y, shape=(parts, 2, 2, *SHAPE)), tile, offset=(part, i, j, 0, 0), dims=(3, 4))


def launch_of(kind, shape, cluster, parts, **options):
    t = np.float32 if kind == f32 else np.int32
    rng = np.random.default_rng(parts)
    x = (rng.normal(size=(parts, 2, 2, *shape)) * 100).astype(t)
    return add_parts.program(T=kind, SHAPE=shape, CLUSTER=cluster, **options), [x, np.full_like(x, 7), parts]


CASES = [  # type, shape, cluster, parts: vectors of four words, of two, of one; axes of a cluster; several trips
    (f32, (16, 32), (1, 1, 4), 4, {}),
    (f32, (8, 12), (2, 1, 3), 6, {"WARPS": 1}),
    (i32, (32, 6), (2, 2, 1), 3, {}),
    (f32, (64, 96), (1, 1, 2), 4, {"TURNS": 3}),
]


def summed(x, cluster):
    """Return what every block [part, i, j] is to have after one sum, added up rank by rank."""
    blocks = np.moveaxis(x, 0, 2).copy()  # [i, j, part, ...]
    for corner in np.ndindex(*(n // c for n, c in zip(blocks.shape[:3], cluster, strict=True))):
        place = tuple(slice(a * c, a * c + c) for a, c in zip(corner, cluster, strict=True))
        total, *others = blocks[place].transpose(2, 1, 0, 3, 4).reshape(-1, *x.shape[3:]).copy()
        for tile in others:
            total = total + tile
        blocks[place] = total
    return np.moveaxis(blocks, 2, 0)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{c[1]}-{c[2]}")
def test_all_blocks_get_the_sum_in_the_order_of_ranks(case):
    cluster, options = case[2], case[4]
    program, args = launch_of(*case[:4], **options)
    wanted, found = args[0], on_vm(program, args)
    for _ in range(options.get("TURNS", 1)):
        wanted = summed(wanted, cluster)
    np.testing.assert_array_equal(found[1], wanted)
    run, report = on_simt(program, args, "sm_90a", metrics=True)
    assert report.ok, str(report)
    assert report.wavefronts[0] == report.wavefronts[1]
    np.testing.assert_array_equal(bits(run), bits(found))


@pytest.mark.parametrize("which", [0, 1])
def test_a_meeting_that_is_left_out_is_found(which):
    program, args = launch_of(f32, (16, 32), (1, 1, 4), 4, TURNS=2)
    text = compiled(program, "sm_90a").ptx
    meeting = re.findall(r"barrier.cluster.arrive.release.aligned;.*?barrier.cluster.wait.acquire.aligned;", text, re.S)
    assert len(meeting) >= 2
    _, report = on_simt(program, args, "sm_90a", edit=(meeting[which], ""))
    assert {finding.kind for finding in report.findings} & {"race", "barrier", "exit"}, str(report)


@pytest.mark.parametrize("target", ["sm_80", "sm_89", "cpu"])
def test_other_targets_have_no_clusters(target):
    program, _ = launch_of(f32, (16, 32), (1, 1, 4), 4)
    with pytest.raises(PassError, match=f"{target} has no clusters of blocks") as caught:
        lower(program, TARGETS[target])
    assert "sm_90a" in caught.value.hint


def test_a_grid_is_made_of_whole_clusters():
    program, args = launch_of(f32, (16, 32), (1, 1, 4), 6)
    with pytest.raises(VMError, match="not made of whole clusters"):
        on_vm(program, args)
    kernel = add_parts.bind(T=f32, SHAPE=(16, 32), CLUSTER=(1, 1, 4))
    with pytest.raises(LaunchError, match="no whole number of clusters"), tilus.knobs.scope(target="simt:sm_90a"):
        kernel(*args)


@tilus.kernel
def some_add(x: ptr[f32], *, ALONE: bool):
    """Blocks of a cluster of which one adds up more often than the other."""
    launch(blocks=(2,), warps=1, cluster=(2,))
    view = global_view(x, shape=(2, 32))
    tile = load_global(view, offset=(block_id(0), 0), shape=(1, 32))
    if block_id(0) == 0 or not ALONE:
        tile = cluster_sum(tile)
    store_global(view, tile, offset=(block_id(0), 0))


def test_blocks_that_wait_in_vain_are_told():
    x = np.ones((2, 32), np.float32)
    assert (on_vm(some_add.program(ALONE=False), [x])[0] == 2).all()
    with pytest.raises(VMError, match="different numbers of cluster sums"):
        on_vm(some_add.program(ALONE=True), [x])


def test_mistakes():
    for cluster, message in (
        ((1, 4), "the grid has 3 axes, the cluster 2"),
        ((1, 1, 0), "a cluster has 1 to 8 blocks, got"),
        ((3, 3, 1), r"a cluster has 1 to 8 blocks, got \(3, 3, 1\): 9"),
    ):
        with pytest.raises(TilusError, match=message):
            add_parts.program(T=f32, SHAPE=(16, 32), CLUSTER=cluster)
    with pytest.raises(TilusError, match="the kernel's blocks are no clusters"):
        add_parts.program(T=f32, SHAPE=(16, 32), CLUSTER=())
    with pytest.raises(TilusError, match="a cluster adds up elements of 32 bits, not f16"):
        add_parts.program(T=tilus.f16, SHAPE=(16, 32), CLUSTER=(1, 1, 2))
    with pytest.raises(VerifyError, match="the blocks of the kernel have no cluster"):
        tilus.ir.verify.verify(
            parse("program p() {\n grid (1,)\n warps 1\n t: register[f32, (4,)] = full(value=0.0, shape=(4,))\n"
                  " t = cluster_sum(x=t)\n}")
        )  # fmt: skip
