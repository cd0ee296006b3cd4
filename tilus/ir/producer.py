"""Programs whose copies a warp of its own starts: which these are, and the two programs that such a one is made of.

A *producer* does nothing but copy. Its copies can run ahead of the other warps, the *consumers*, which wait for data
but not for each other. The author asks for it (`launch(..., producer=True)`); a program gets one where the target is a
GPU and the program a pipeline: groups of copies, then one loop, a trip of which is a wait for the oldest group, a
barrier, and a group of copies more. The barrier says that all threads have left the stage that those copies
fill. So consumers need not wait at it, only tell the producer that they have come there, unless they write to memory
themselves while the loop runs or before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from tilus.ir.expr import Const, Op, Var, dtype_of
from tilus.ir.instructions import (
    AllocShared,
    AtomicAdd,
    CommitGroup,
    CopyAsync,
    GlobalView,
    GridDependencyWait,
    Instruction,
    LaunchDependents,
    LoadGlobal,
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
_PRODUCED = (*_CONSUMED, GlobalView, AllocShared, GridDependencyWait, LaunchDependents, Sync)


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
    if not program.producer or target.capability < PRODUCER_CAPABILITY or program.num_warps >= MAX_WARPS:
        return None
    waits = [number for number, stmt in enumerate(program.body) if _has(stmt, WaitGroup)]
    if len(waits) != 1:
        return None
    [place] = waits
    before, loop, after = program.body[:place], program.body[place], program.body[place + 1 :]
    pending = _pending(loop)
    if pending is None or any(_has(stmt, Sync, *_WRITES) for stmt in before) or any(_has(s, *_CONSUMED) for s in after):
        return None
    groups = sum(_is(stmt, CommitGroup) for stmt in before)
    inside = sum(_count(stmt, CommitGroup) for stmt in before)
    if not groups == inside == pending + 1 or not _computable([*before, loop]):
        return None
    return Pipeline(place, pending + 2)


def _pending(loop: Stmt) -> int | None:
    """Return how many groups a trip of a pipeline's loop leaves under way; None if it is no such loop."""
    if not isinstance(loop, For) or _has(loop, *_WRITES) or any(isinstance(s, Break | Continue) for s in walk(loop)):
        return None
    insts = [stmt.inst if isinstance(stmt, InstStmt) else None for stmt in loop.body]
    kinds = [type(inst) for inst in insts]
    if any(kinds.count(kind) != 1 or _count(loop, kind) != 1 for kind in (WaitGroup, Sync, CommitGroup)):
        return None
    wait, barrier, commit = (kinds.index(kind) for kind in (WaitGroup, Sync, CommitGroup))
    copies = [number for number, stmt in enumerate(loop.body) if _has(stmt, CopyAsync)]
    if barrier != wait + 1 or not all(barrier < copy < commit for copy in copies):
        return None
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

    Where a trip reads global memory, a barrier stands behind the loop: what comes there may write to what the slowest
    of them still reads. Shared memory that they read is the copies' own.
    """
    before, loop, after = _parts(program, pipeline)
    barrier = [InstStmt(None, Sync(loc=loop.loc), loc=loop.loc)] if _has(loop, LoadGlobal) else []
    trip = [*_without(loop.body, (*_CONSUMED, Sync)), *(stmt for stmt in loop.body if _is(stmt, CommitGroup))]
    kept = [*_without(before, _CONSUMED), replace(loop, body=tuple(trip)), *barrier, *after]
    return replace(program, body=tuple(kept))


def producer_of(program: Program, pipeline: Pipeline) -> Program:
    """Return what the producer runs, which ends with the loop: at `Sync` it waits until a stage has been left.

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
