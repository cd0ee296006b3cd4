"""Requires a verified program; ensures the same meaning with less to do: constants computed, nothing unused."""

from __future__ import annotations

from dataclasses import replace

from tilus.ir.expr import EXPR_CLASSES, Const, Var
from tilus.ir.node import Node, rewrite, substitute, walk
from tilus.ir.program import Program
from tilus.ir.stmt import Assign, Break, Continue, For, If, InstStmt, Let, Stmt, While
from tilus.ir.target import Target
from tilus.passes.analyze import Analysis, analyze
from tilus.passes.copies import as_copy, coalesce_copies
from tilus.passes.dead_code import remove_dead
from tilus.passes.fold import fold

_MAX_ROUNDS = 20  # each round makes the program smaller; the limit only bounds what a rare one costs


def simplify(program: Program, target: Target) -> Program:
    """Fold, coalesce copies and remove what nothing needs, until nothing changes; the same object if nothing did."""
    for _ in range(_MAX_ROUNDS):
        before = program
        program = remove_dead(coalesce_copies(_folded(_constants_in_place(program))))
        if program is before:
            break
    return program


def _constants_in_place(program: Program) -> Program:
    """Read the literal where a variable is declared to be one and never changes; its declaration is dropped."""
    values: dict[Node, list[Node]] = {}
    for node in walk(program):
        if isinstance(node, Let | Assign):
            values.setdefault(node.var, []).append(node.value)
    table = {var: v[0] for var, v in values.items() if len(v) == 1 and isinstance(v[0], Const)}
    if not table:
        return program

    def drop(node: Node) -> tuple[Stmt, ...] | None:
        return () if isinstance(node, Let) and node.var in table else None

    kept: Program = rewrite(program, drop)
    return substitute(kept, table)


def _folded(program: Program) -> Program:
    analysis = analyze(program)

    def rule(node: Node) -> Node | tuple[Stmt, ...] | None:
        match node:
            case If() | For() | While():
                return _control(node, analysis)
            case InstStmt(inst=inst):
                plain = as_copy(inst)
                return None if plain is inst else replace(node, inst=plain)
            case _ if isinstance(node, EXPR_CLASSES):
                return fold(node, analysis)
            case _:
                return None

    new: Program = rewrite(program, rule)
    return new


def _control(node: If | For | While, analysis: Analysis) -> tuple[Stmt, ...] | None:
    """Return what remains of a branch whose condition is known, and of a loop that runs never or once."""
    match node:
        case If(cond=Const(value=value), then=then, orelse=orelse):
            return then if value else orelse
        case While(cond=Const(value=False)):
            return ()
        case For(var=var, start=start, stop=stop, step=step, body=body):
            first, last = analysis.of(start), analysis.of(stop)
            if first.lo >= last.hi if step > 0 else first.hi <= last.lo:
                return ()
            if first.constant is None or last.constant is None or _leaves(body):
                return None
            once = len(range(first.constant, last.constant, step)) == 1
            # Another loop may count with the same variable: what was a loop's becomes a variable of its own.
            own = Var(var.name, var.type, loc=var.loc)
            return (Let(own, start), *(substitute(stmt, {var: own}) for stmt in body)) if once else None
        case _:
            return None


def _leaves(body: tuple[Stmt, ...]) -> bool:
    """Whether a `break` or `continue` of this loop stands in its body."""
    for stmt in body:
        match stmt:
            case Break() | Continue():
                return True
            case If(then=then, orelse=orelse):
                if _leaves(then) or _leaves(orelse):
                    return True
            case _:
                pass
    return False
