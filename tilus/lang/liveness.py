"""Which names a loop or branch assigns, and which of them somebody reads afterwards.

Only names that are read again must become variables of the loop or branch. This is the classical backward analysis,
over syntax: a name is *live* at a point if some path from there reads it before it is assigned.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

Names = frozenset[str]
NONE: Names = frozenset()


@dataclass(frozen=True, slots=True)
class Live:
    """Live names of a compound statement: at its head (of a loop: at the start of every turn) and after it."""

    head: Names
    out: Names


@dataclass(frozen=True, slots=True)
class _Exits:
    """What is live where `break` and `continue` lead."""

    on_break: Names = NONE
    on_continue: Names = NONE


_COMPREHENSIONS = (ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)


def assigned(nodes: Iterable[ast.AST]) -> Names:
    """Return the names that are assigned in some nodes; variables of comprehensions are not."""
    return frozenset(name.id for node in nodes for name in _stores(node))


def _stores(node: ast.AST) -> Iterator[ast.Name]:
    if isinstance(node, _COMPREHENSIONS):
        return
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _stores(child)


def reads(node: ast.AST | None) -> Names:
    """Return the names that are read in a node."""
    if node is None:
        return NONE
    return frozenset(n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))


def analyse(body: list[ast.stmt]) -> dict[ast.stmt, Live]:
    """Return what is live around every `if`, `for` and `while` of a function's body."""
    table: dict[ast.stmt, Live] = {}
    _block(body, NONE, _Exits(), table)
    return table


def _block(body: list[ast.stmt], out: Names, exits: _Exits, table: dict[ast.stmt, Live]) -> Names:
    for stmt in reversed(body):
        out = _statement(stmt, out, exits, table)
    return out


def _statement(stmt: ast.stmt, out: Names, exits: _Exits, table: dict[ast.stmt, Live]) -> Names:
    match stmt:
        case ast.If(test=test, body=body, orelse=orelse):
            head = reads(test) | _block(body, out, exits, table) | _block(orelse, out, exits, table)
            table[stmt] = Live(head, out)
            return head
        case ast.For(iter=bounds):
            return reads(bounds) | _loop(stmt, out, assigned([stmt.target]), NONE, table)
        case ast.While(test=test):
            return _loop(stmt, out, NONE, reads(test), table)
        case ast.Assign(targets=targets, value=value):
            return (out - assigned(targets)) | reads(value).union(*map(reads, targets))
        case ast.AugAssign(target=target, value=value):
            return out | reads(value) | assigned([target]) | reads(target)
        case ast.AnnAssign(target=target, value=value, annotation=annotation):
            return (out - assigned([target])) | reads(value) | reads(annotation)
        case ast.Break():
            return exits.on_break
        case ast.Continue():
            return exits.on_continue
        case ast.Return(value=value):
            return reads(value)
        case _:
            return out | reads(stmt)


def _loop(stmt: ast.For | ast.While, out: Names, target: Names, test: Names, table: dict[ast.stmt, Live]) -> Names:
    head = out | test
    while True:
        turn = _block(stmt.body, head, _Exits(out, head), table) - target
        if turn <= head:
            break
        head |= turn
    table[stmt] = Live(head, out)
    return head
