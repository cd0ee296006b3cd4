"""Copies between register tensors that are not needed: the front end makes one for every `name = expression`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from tilus.ir.expr import Tensor
from tilus.ir.instructions import Cast, Copy, Instruction, Reshape, Slice, Transpose
from tilus.ir.node import Node, children, rewrite, substitute
from tilus.ir.program import Program
from tilus.ir.stmt import Assign, For, If, InstStmt, Let, Stmt, While, inst_stmts
from tilus.ir.types import RegisterType
from tilus.passes.tensors import register_operands, register_type


def coalesce_copies(program: Program) -> Program:
    """Define variables directly instead of by copies of temporaries, and read originals instead of copies."""
    program = _defined_directly(program)
    return _read_directly(program)


def as_copy(inst: Instruction) -> Instruction:
    """Return a plain copy for an instruction that changes nothing about its tile, other instructions as they are."""
    match inst:
        case Cast(x=x, dtype=dtype) if register_type(x).dtype == dtype:
            return Copy(x, loc=inst.loc)
        case Reshape(x=x, shape=shape) | Slice(x=x, shape=shape) if register_type(x).shape == shape:
            return Copy(x, loc=inst.loc)
        case Transpose(x=x, perm=perm) if perm == tuple(range(len(perm))):
            return Copy(x, loc=inst.loc)
        case _:
            return inst


def _counts(program: Program) -> tuple[Counter[Tensor], Counter[Tensor]]:
    """Return how many statements define, and how many operands read, each register tensor."""
    defined: Counter[Tensor] = Counter()
    read: Counter[Tensor] = Counter()
    for stmt in inst_stmts(program):
        if isinstance(stmt.out, Tensor):
            defined[stmt.out] += 1
        read.update(register_operands(stmt.inst))
    return defined, read


def _fits(temporary: Tensor, variable: Tensor) -> bool:
    """Whether a variable can stand for a temporary: no layout of the author's would be lost."""
    a, b = temporary.type, variable.type
    return isinstance(a, RegisterType) and isinstance(b, RegisterType) and a.layout in (None, b.layout)


def _defined_directly(program: Program) -> Program:
    """`t = inst; ...; v = copy(t)` becomes `v = inst; ...` where t has no other use and nothing between mentions v."""
    defined, read = _counts(program)

    def temporary(stmt: Stmt) -> Tensor | None:
        if isinstance(stmt, InstStmt) and isinstance(stmt.inst, Copy) and isinstance(stmt.out, Tensor):
            x = stmt.inst.x
            if defined[x] == 1 == read[x] and _fits(x, stmt.out):
                return x
        return None

    def merged(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        new: list[Stmt] = []
        for stmt in body:
            tmp = temporary(stmt)
            place = None if tmp is None else _definition(new, tmp, stmt)
            if place is None:
                new.append(stmt)
            else:
                assert isinstance(stmt, InstStmt)
                made = new[place]
                assert isinstance(made, InstStmt)
                new[place] = replace(made, out=stmt.out)
        return body if len(new) == len(body) else tuple(new)

    return _bodies(program, merged)


def _definition(before: list[Stmt], tmp: Tensor, copy: Stmt) -> int | None:
    """Return where `tmp` is defined, if only plain instructions that do not mention the copy's variable follow."""
    assert isinstance(copy, InstStmt)
    for place in reversed(range(len(before))):
        stmt = before[place]
        if isinstance(stmt, Let | Assign):
            continue  # scalars: no tensor is mentioned
        if not isinstance(stmt, InstStmt):
            return None
        if stmt.out is tmp:
            return place
        if stmt.out is copy.out or any(child is copy.out for child in children(stmt.inst)):
            return None
    return None


def _bodies(program: Program, f: Callable[[tuple[Stmt, ...]], tuple[Stmt, ...]]) -> Program:
    """Apply `f` to every body of a program, inner ones first."""

    def rule(node: Node) -> Node | None:
        match node:
            case Program(body=body) | For(body=body) | While(body=body):
                new = f(body)
                return None if new is body else replace(node, body=new)
            case If(then=then, orelse=orelse):
                new_then, new_orelse = f(then), f(orelse)
                same = new_then is then and new_orelse is orelse
                return None if same else replace(node, then=new_then, orelse=new_orelse)
            case _:
                return None

    new: Program = rewrite(program, rule)
    return new


def _read_directly(program: Program) -> Program:
    """Read x for v where `v = copy(x)` and each has this one definition; the copy is then dead."""
    defined, _ = _counts(program)
    table: dict[Tensor, Tensor] = {}
    for stmt in inst_stmts(program):
        if isinstance(stmt.inst, Copy) and isinstance(stmt.out, Tensor):
            x, v = stmt.inst.x, stmt.out
            if defined[x] == 1 == defined[v] and _fits(v, x):
                table[v] = table.get(x, x)
    if not table:
        return program

    def drop(node: Node) -> Node | tuple[Node, ...] | None:
        own = isinstance(node, InstStmt) and isinstance(node.inst, Copy) and node.inst.x is node.out
        return () if own else None

    new: Program = rewrite(substitute(program, table), drop)
    return new
