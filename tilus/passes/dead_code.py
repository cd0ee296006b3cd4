"""Code that nothing needs: found by marking from what has an effect, so that a variable fed only to itself goes too."""

from __future__ import annotations

from collections.abc import Iterator

from tilus.ir.expr import Tensor, Var
from tilus.ir.instructions import (
    Assert,
    AtomicAdd,
    CommitGroup,
    CopyAsync,
    GridDependencyWait,
    Instruction,
    LaunchDependents,
    Prefetch,
    Print,
    StoreGlobal,
    StoreShared,
    Sync,
    WaitGroup,
)
from tilus.ir.node import Node, rewrite, walk
from tilus.ir.program import Program
from tilus.ir.stmt import Assign, For, If, InstStmt, Let, Stmt, While

# What is done for its own sake. Writing to a shared tensor is, here: whether it is read is not asked.
EFFECTS: tuple[type[Instruction], ...] = (
    StoreGlobal,
    AtomicAdd,
    StoreShared,
    CopyAsync,
    CommitGroup,
    WaitGroup,
    Sync,
    Print,
    Assert,
    Prefetch,
    GridDependencyWait,
    LaunchDependents,
)


def remove_dead(program: Program) -> Program:
    """Remove statements whose results nothing needs, and loops and branches that have become empty."""
    needed = _needed(program)

    def rule(node: Node) -> Node | tuple[Stmt, ...] | None:
        match node:
            case Let(var=var) | Assign(var=var) if var not in needed:
                return ()
            case InstStmt(inst=inst, out=out) if not isinstance(inst, EFFECTS) and out not in needed:
                return ()
            case If(then=(), orelse=()) | For(body=()):
                return ()
            case _:
                return None

    new: Program = rewrite(program, rule)
    return new


def _needed(program: Program) -> set[Node]:
    """Return the variables and tensors on which an effect, a condition or a bound depends."""
    feeds: dict[Node, list[Node]] = {}
    needed: set[Node] = set()
    queue: list[Node] = []
    for roots, out in _dependences(program):
        if out is None:
            queue += roots
        else:
            feeds.setdefault(out, []).extend(roots)
    while queue:
        node = queue.pop()
        if node not in needed:
            needed.add(node)
            queue += feeds.get(node, ())
    return needed


def _dependences(program: Program) -> Iterator[tuple[list[Node], Node | None]]:
    """Yield (what is read, what is defined by it); None for what is needed in any case."""
    for node in walk(program):
        match node:
            case Let(var=var, value=value) | Assign(var=var, value=value):
                yield _names([value]), var
            case InstStmt(inst=inst, out=out):
                yield _names([inst]), None if isinstance(inst, EFFECTS) else out
            case If(cond=cond) | While(cond=cond):
                yield _names([cond]), None
            case For(start=start, stop=stop):
                yield _names([start, stop]), None
            case _:
                pass


def _names(nodes: list[Node]) -> list[Node]:
    return [n for node in nodes for n in walk(node) if isinstance(n, Var | Tensor)]
