"""Where in a program a variable must be declared: in the innermost body that holds all its occurrences."""

from __future__ import annotations

from collections.abc import Iterator

from tilus.ir.expr import Tensor, Var
from tilus.ir.node import Node, children, walk
from tilus.ir.program import Program
from tilus.ir.stmt import For, If, Stmt, While

# A place in a program: a pair (branch, statement number) for each level of nesting.
Place = tuple[tuple[int, int], ...]


def bodies_of(stmt: Stmt) -> tuple[tuple[Stmt, ...], ...]:
    """Return the bodies of a statement, in order of their branch numbers."""
    match stmt:
        case If(then=then, orelse=orelse):
            return then, orelse
        case For(body=body) | While(body=body):
            return (body,)
        case _:
            return ()


def declarations(program: Program) -> dict[Place, list[Var | Tensor]]:
    """Return, for the statements before which variables are to be declared, these variables in order of appearance.

    Parameters and loop variables are left out.
    """
    params = {param.var for param in program.params}
    found: dict[Var | Tensor, Place] = {}
    for place, stmt in _statements(program.body, ()):
        for node in _own_nodes(stmt):
            if isinstance(node, Var | Tensor) and node not in params:
                found[node] = _meet(found[node], place) if node in found else place
    loops = {node.var for node in walk(program) if isinstance(node, For)}
    result: dict[Place, list[Var | Tensor]] = {}
    for var, place in found.items():
        if var not in loops:
            result.setdefault(place, []).append(var)
    return result


def _statements(body: tuple[Stmt, ...], prefix: Place, branch: int = 0) -> Iterator[tuple[Place, Stmt]]:
    for number, stmt in enumerate(body):
        place = (*prefix, (branch, number))
        yield place, stmt
        for inner, statements in enumerate(bodies_of(stmt)):
            yield from _statements(statements, place, inner)


def _own_nodes(stmt: Stmt) -> Iterator[Node]:
    """Yield what stands in a statement itself, not in its bodies."""
    inside = {id(s) for body in bodies_of(stmt) for s in body}
    for child in children(stmt):
        if id(child) not in inside:
            yield from walk(child)


def _meet(a: Place, b: Place) -> Place:
    """Return the place of the first statement of the innermost body that holds both."""
    for level, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            # Two branches of one statement: the variable is declared before that statement.
            return (*a[:level], min(x, y)) if x[0] == y[0] else a[:level]
    return min(a, b, key=len)
