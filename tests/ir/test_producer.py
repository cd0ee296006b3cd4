"""Which programs leave their copies to a producer, and the two programs that such a one is made of."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

import tilus
from tilus import i32, u32
from tilus.cli import main
from tilus.errors import TilusError
from tilus.ir import instructions as I
from tilus.ir.expr import Op
from tilus.ir.producer import consumer_of, find_pipeline, producer_of
from tilus.ir.program import Program
from tilus.ir.stmt import For, InstStmt, inst_stmts
from tilus.ir.target import MAX_WARPS, TARGETS
from tilus.lang import (
    alloc_shared,
    cluster_sum,
    commit_group,
    copy_async,
    global_view,
    launch,
    load_global,
    load_shared,
    ptr,
    static_range,
    store_global,
    store_shared,
    sync,
    wait_group,
    zeros,
)
from tilus.passes.pipeline import lower

HOPPER = TARGETS["sm_90a"]


@tilus.inline
def fetch(stages, rows, t):
    """Copy a row to its stage."""
    copy_async(stages, rows, src_offset=(t, 0), dst_offset=(t % stages.shape[0], 0), shape=(1, 1024))


@tilus.inline
def before(stages, total, ODD):
    """Do what no pipeline does before its copies."""
    if ODD == "store before":
        store_shared(stages, total, offset=(0, 0))
    if ODD == "barrier before":
        sync()
    if ODD == "cluster before":
        total = cluster_sum(total)
    return total


@tilus.inline
def wait(other, total, PENDING, ODD):
    """Wait for a row, or for something else."""
    if ODD != "wait behind the barrier":
        wait_group(PENDING)
    if ODD == "between":
        total += load_global(other, offset=(1, 0), shape=(1, 1024))
    sync()
    if ODD == "wait behind the barrier":
        wait_group(PENDING)
    return total


@tilus.inline
def more(stages, rows, other, total, t, ODD):
    """Do in a trip what belongs there, or what does not."""
    if ODD == "copy behind its group":
        fetch(stages, rows, t)
    if ODD == "two groups":
        commit_group()
    if ODD == "two barriers":
        sync()
    if ODD == "store":
        store_global(other, total, offset=(0, 0))
    if ODD == "cluster":
        total = cluster_sum(total)
    if ODD == "load":
        total += load_global(other, offset=(1, 0), shape=(1, 1024))
    return total


@tilus.kernel
def add_rows(
    x: ptr[u32], first: ptr[i32], y: ptr[u32], n: i32, *, STAGES: int = 3, WARPS: int = 4, PRODUCER: bool = True,
    GROUPS: int = 2, ODD: str = "",
):  # fmt: skip
    """Add up rows [n, 1024]; ODD says what makes a program other than a plain pipeline."""
    launch(blocks=2, warps=WARPS, producer=PRODUCER, cluster=(2,) if ODD[:7] == "cluster" else ())
    rows, other = global_view(x, shape=(n, 1024)), global_view(y, shape=(2, 1024))
    stages = alloc_shared(u32, (STAGES, 1024))
    total = zeros((1, 1024), u32)
    total = before(stages, total, ODD)
    for s in static_range(GROUPS):
        fetch(stages, rows, s)
        commit_group()
    if ODD == "copy of no group":
        fetch(stages, rows, GROUPS)
    for t in range(first[0] if ODD == "scalar from memory" else 0, n):
        if ODD == "read before the wait":
            total += load_shared(stages, offset=(t % STAGES, 0), shape=(1, 1024))
        total = wait(other, total, STAGES - 2, ODD)
        fetch(stages, rows, t + GROUPS)
        commit_group()
        total = more(stages, rows, other, total, t, ODD)
        total += load_shared(stages, offset=(t % STAGES, 0), shape=(1, 1024))
        if ODD == "break":
            break
    if ODD == "wait behind":
        wait_group(0)
    if ODD == "once":
        copy_async(stages, rows, src_offset=(0, 0), dst_offset=(0, 0), shape=(1, 1024), once=3)
    if ODD == "copy behind":
        fetch(stages, rows, 0)
    store_global(other, total, offset=(0, 0))


def program_of(**constants: object) -> Program:
    return add_rows.program({"x": 16, "y": 16}, **constants)


def has_bulk_copies(program: Program, target: str = "sm_90a") -> bool:
    atoms = {s.selected.atom for s in inst_stmts(lower(program, TARGETS[target])) if isinstance(s.inst, I.CopyAsync)}
    assert len(atoms) == 1
    return atoms == {"cp.async.bulk"}


@pytest.mark.parametrize("stages", [2, 3, 5])
def test_a_pipeline_is_found(stages):
    found = find_pipeline(program_of(STAGES=stages, GROUPS=stages - 1), HOPPER)
    assert found is not None
    assert found.stages == stages
    assert has_bulk_copies(program_of(STAGES=stages, GROUPS=stages - 1))


ODD = [
    "scalar from memory", "store before", "barrier before", "wait behind the barrier", "between", "two groups",
    "two barriers", "copy behind its group", "store", "break", "wait behind", "copy behind", "cluster", "cluster before",
    "read before the wait", "copy of no group",
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_pipeline(odd):
    assert find_pipeline(program_of(ODD=odd), HOPPER) is None
    assert not has_bulk_copies(program_of(ODD=odd))


@pytest.mark.parametrize(
    "constants", [{"PRODUCER": False}, {"GROUPS": 1}, {"GROUPS": 3}, {"WARPS": MAX_WARPS}], ids=lambda c: next(iter(c))
)
def test_what_has_no_producer(constants):
    assert find_pipeline(program_of(**constants), HOPPER) is None


def test_what_has_a_producer_says_so():
    assert find_pipeline(program_of(), TARGETS["cpu"]) is None
    assert not lower(program_of(), TARGETS["cpu"]).producer
    for target in ("sm_80", "sm_89"):
        assert lower(program_of(), TARGETS[target]).producer
        assert not has_bulk_copies(program_of(), target)
    assert lower(program_of(), HOPPER).producer
    assert lower(add_rows.program({}), HOPPER).producer
    assert not has_bulk_copies(add_rows.program({})), "no copy is known to be aligned to 16 bytes"


def kinds(program: Program) -> list[type]:
    return [type(stmt.inst) for stmt in inst_stmts(program)]


def loop_of(program: Program) -> For:
    [loop] = [stmt for stmt in program.body if isinstance(stmt, For)]
    return loop


def test_each_side_has_its_part():
    program = lower(program_of(), HOPPER)
    pipeline = find_pipeline(program, HOPPER)
    consumer, producer = consumer_of(program, pipeline), producer_of(program, pipeline)
    copying = {I.CopyAsync, I.CommitGroup, I.WaitGroup, I.Sync, I.GlobalView, I.AllocShared}
    assert set(kinds(producer)) == copying
    assert I.CopyAsync not in kinds(consumer)
    assert I.Sync not in kinds(consumer)
    trip = [type(stmt.inst) for stmt in loop_of(consumer).body if isinstance(stmt, InstStmt)]
    assert trip[0] is I.WaitGroup
    assert trip[-1] is I.CommitGroup
    assert trip.count(I.CommitGroup) == 1
    assert isinstance(producer.body[-1], For)
    assert consumer.body[-1] == program.body[-1]


def test_the_producer_ends_two_trips_before_and_needs_no_bounds_there():
    program = lower(program_of(), HOPPER)
    loop = loop_of(producer_of(program, find_pipeline(program, HOPPER)))
    assert isinstance(loop.stop, Op)
    assert loop.stop.args[0] == loop_of(program).stop
    assert loop.stop.args[1].value == 2
    bodies = loop_of(lower(program_of(PRODUCER=False), HOPPER)), loop
    [before], [after] = ([s for s in inst_stmts(body) if isinstance(s.inst, I.CopyAsync)] for body in bodies)
    assert 0 not in before.selected.unmasked
    assert 0 in after.selected.unmasked


def test_a_barrier_stands_behind_a_loop_that_reads_global_memory():
    program = lower(program_of(ODD="load"), HOPPER)
    consumer = consumer_of(program, find_pipeline(program, HOPPER))
    assert kinds(consumer).count(I.Sync) == 1


def test_copies_that_no_instruction_can_start_stay_with_all_threads():
    unaligned = add_rows.program({}, ODD="")
    assert find_pipeline(unaligned, HOPPER) is not None
    assert not has_bulk_copies(unaligned)


def test_the_reason_is_told(tmp_path):
    """By `tilus compile`: of a kernel whose first copies stand in a loop."""
    (tmp_path / "kernels.py").write_text(
        "import tilus\nfrom tests.ir.test_producer import *\n\n\n@tilus.kernel\n"
        "def looped(x: ptr[u32], y: ptr[u32], n: i32):\n    launch(blocks=1, producer=True)\n"
        "    rows, stages = global_view(x, shape=(n, 1024)), alloc_shared(u32, (3, 1024))\n"
        "    for s in tilus.range(2):\n        fetch(stages, rows, s)\n        commit_group()\n"
        "    for t in tilus.range(n):\n        wait_group(1)\n        sync()\n        fetch(stages, rows, t + 2)\n"
        "        commit_group()\n"
    )
    place = f"{tmp_path / 'kernels.py'}:looped"
    result = CliRunner().invoke(main, ["compile", place, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert "no producer: 2 groups of copies were expected before the loop, none of them in a loop" in result.output
    result = CliRunner().invoke(main, ["compile", place, "--target", "cpu", "--out", str(tmp_path / "out")])
    assert "no producer: cpu has no barriers in memory" in result.output


def test_once_is_a_boolean():
    with pytest.raises(TilusError, match="once must be a boolean"):
        add_rows.program({}, ODD="once")
