"""Programs whose copies a warp of its own starts: which these are, and the two programs that such a one is made of.

A *producer* does nothing but copy. The other warps, the *consumers*, wait for data but not for each other. The author
asks for it (`launch(..., producer=True)`); a program gets one where the target is a GPU and the program a pipeline:
groups of copies, then one loop, a trip of which is a wait for the oldest group, a barrier, and a group of copies more.
The barrier says that all threads have left the stage that those copies fill. So consumers need not wait at it, only
tell the producer that they have come there, since they neither write to memory while the loop runs, or before, nor read
shared memory in a trip before it waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from tilus.ir.expr import Const, Op, Var, dtype_of
from tilus.ir.instructions import (
    AllocShared,
    AtomicAdd,
    ClusterSum,
    CommitGroup,
    CopyAsync,
    GlobalView,
    GridDependencyWait,
    Instruction,
    LaunchDependents,
    LoadGlobal,
    LoadShared,
    Prefetch,
    StoreGlobal,
    StoreShared,
    Sync,
    WaitGroup,
)
from tilus.ir.node import Node, rewrite, walk
from tilus.ir.program import Program
from tilus.ir.stmt import Break, Continue, For, InstStmt, Stmt, inst_stmts
from tilus.ir.target import MAX_WARPS, Target

BULK_CAPABILITY = 90
PRODUCER_CAPABILITY = 80  # that of barriers in memory
_WRITES = (StoreShared, StoreGlobal, AtomicAdd)
_CONSUMED = (CopyAsync, CommitGroup, Prefetch)  # what consumers leave to the producer
_PRODUCED = (*_CONSUMED, GlobalView, AllocShared, GridDependencyWait, LaunchDependents, Sync, WaitGroup)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Copies that run ahead of a loop.

    Attributes
    ----------
    place : int
        The loop's number among the statements of the program.
    stages : int
        Groups that are under way or in use at most: trip t waits for group t and starts group t + stages - 1.
    """

    place: int
    stages: int


def find_pipeline(program: Program, target: Target) -> Pipeline | None:
    """Return the pipeline of a program that may have a producer, None for any other."""
    found = examine(program, target) if program.producer else ""
    return found if isinstance(found, Pipeline) else None


def examine(program: Program, target: Target) -> Pipeline | str:
    """Return the pipeline of a program, or why it is none that a producer could serve."""
    if target.capability < PRODUCER_CAPABILITY:
        return f"{target.name} has no barriers in memory"
    if program.num_warps >= MAX_WARPS:
        return f"the block has {program.num_warps} warps, there is no room for one more"
    waits = [number for number, stmt in enumerate(program.body) if _has(stmt, WaitGroup)]
    if len(waits) != 1:
        return f"{len(waits)} statements of the kernel wait for groups of copies, one loop is to do that"
    [place] = waits
    before, loop, after = program.body[:place], program.body[place], program.body[place + 1 :]
    pending = _pending(loop)
    if isinstance(pending, str):
        return pending
    if any(_has(stmt, Sync, ClusterSum, *_WRITES) for stmt in before):
        return "before the loop threads write to memory, or wait for each other"
    if any(_has(stmt, *_CONSUMED) for stmt in after):
        return "copies are started behind the loop"
    commits = [number for number, stmt in enumerate(before) if _is(stmt, CommitGroup)]
    if not len(commits) == sum(_count(stmt, CommitGroup) for stmt in before) == pending + 1:
        return f"{pending + 1} groups of copies were expected before the loop, none of them in a loop or branch"
    if any(_has(stmt, CopyAsync) for stmt in before[commits[-1] :]):
        return "a copy before the loop belongs to no group before it"
    if not _computable([*before, loop]):
        return "a scalar is loaded from memory, which the producer does not do"
    return Pipeline(place, pending + 2)


def _pending(loop: Stmt) -> int | str:
    """Return how many groups a trip of a pipeline's loop leaves under way; or why it is no such loop."""
    if not isinstance(loop, For):
        return "the statement that waits is no `for` loop"
    if _has(loop, ClusterSum, *_WRITES) or any(isinstance(s, Break | Continue) for s in walk(loop)):
        return "in the loop threads write to memory, wait for other blocks, or leave a trip early"
    insts = [stmt.inst if isinstance(stmt, InstStmt) else None for stmt in loop.body]
    kinds = [type(inst) for inst in insts]
    if any(kinds.count(kind) != 1 or _count(loop, kind) != 1 for kind in (WaitGroup, Sync, CommitGroup)):
        return "a trip of the loop has not just one wait_group, one sync and one commit_group"
    wait, barrier, commit = (kinds.index(kind) for kind in (WaitGroup, Sync, CommitGroup))
    copies = [number for number, stmt in enumerate(loop.body) if _has(stmt, CopyAsync)]
    if barrier != wait + 1 or not all(barrier < copy < commit for copy in copies):
        return "a trip of the loop is not a wait_group, a sync, copies and their commit_group, in this order"
    if any(_has(stmt, LoadShared) for stmt in loop.body[:wait]):
        return "shared memory is read in a trip before the trip waits"
    inst = insts[wait]
    assert isinstance(inst, WaitGroup)
    return inst.pending


def _computable(body: Iterable[Stmt]) -> bool:
    """Whether all scalars are computed from others: what instructions make is not there for the producer."""
    return not any(isinstance(line.out, Var) for stmt in body for line in inst_stmts(stmt))


def _is(stmt: Stmt, kind: type[Instruction]) -> bool:
    return isinstance(stmt, InstStmt) and isinstance(stmt.inst, kind)


def _has(node: Node, *kinds: type[Instruction]) -> bool:
    return any(isinstance(line.inst, kinds) for line in inst_stmts(node))


def _count(node: Node, kind: type[Instruction]) -> int:
    return sum(isinstance(line.inst, kind) for line in inst_stmts(node))


def consumer_of(program: Program, pipeline: Pipeline) -> Program:
    """Return what the consumers run: a trip begins with `WaitGroup` and ends with `CommitGroup`, which leaves a stage.

    Behind the loop stands a barrier if what comes there writes to memory that the slowest of them may still read.
    """
    before, loop, after = _parts(program, pipeline)
    reads = [(LoadGlobal, (StoreGlobal, AtomicAdd)), (LoadShared, (StoreShared,))]
    meets = any(
        any(_has(stmt, read) for stmt in (*before, loop)) and any(_has(stmt, *writes) for stmt in after)
        for read, writes in reads
    )
    barrier = [InstStmt(None, Sync(loc=loop.loc), loc=loop.loc)] if meets else []
    trip = [*_without(loop.body, (*_CONSUMED, Sync)), *(stmt for stmt in loop.body if _is(stmt, CommitGroup))]
    kept = [*_without(before, _CONSUMED), replace(loop, body=tuple(trip)), *barrier, *after]
    return replace(program, body=tuple(kept))


def producer_of(program: Program, pipeline: Pipeline) -> Program:
    """Return what the producer runs, which ends with the loop.

    At `WaitGroup` it waits, as all do, until a stage is full, at `Sync` until all have left the one that it fills next.
    No trip waits for the groups that the last ones would start, so the loop ends before.
    """
    before, loop, _ = _parts(program, pipeline)
    unwanted = {type(line.inst) for stmt in (*before, loop) for line in inst_stmts(stmt)} - set(_PRODUCED)
    if dtype_of(loop.var).is_signed:
        ahead = Const((pipeline.stages - 1) * loop.step, dtype_of(loop.stop))
        loop = replace(loop, stop=Op("sub", (loop.stop, ahead)))
    return replace(program, body=tuple(_without([*before, loop], tuple(unwanted))))


def _parts(program: Program, pipeline: Pipeline) -> tuple[tuple[Stmt, ...], For, tuple[Stmt, ...]]:
    body, place = program.body, pipeline.place
    loop = body[place]
    assert isinstance(loop, For)
    return body[:place], loop, body[place + 1 :]


def _without(body: Iterable[Stmt], kinds: tuple[type[Instruction], ...]) -> Iterator[Stmt]:
    """Yield statements without the instructions of some kinds."""

    def drop(node: Node) -> tuple[Node, ...] | None:
        return () if isinstance(node, InstStmt) and isinstance(node.inst, kinds) else None

    for stmt in body:
        kept = rewrite(stmt, drop)
        if kept != ():
            yield kept
