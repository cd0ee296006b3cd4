"""Conversions between layouts, where an instruction needs a tile in another layout than the one it has.

A tile is converted once per layout and definition. A conversion moves out of the loops that do not redefine the tile:
it is pure, and the definition stands before the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tilus.errors import assert_never
from tilus.ir.expr import Tensor, Var
from tilus.ir.instructions import ConvertLayout
from tilus.ir.program import Program
from tilus.ir.stmt import Assign, Break, Continue, For, If, InstStmt, Let, Stmt, While
from tilus.ir.types import RegisterType
from tilus.layouts import RegisterLayout
from tilus.passes.layout_rules import LAYOUT_RULES, Choice, Machine, cheapest
from tilus.passes.tensors import defined_in, layout_of, register_operands, register_type, with_operands


def insert_conversions(program: Program, machine: Machine) -> Program:
    """Make every instruction's layouts legal; the same program where they are."""
    return _Inserter(machine).program(program)


@dataclass(slots=True)
class _Scope:
    """A body under construction.

    `redefined` holds what the loop defines that this is the body of; None for a body that is no loop's: nothing moves
    out of it. `converted` maps (tensor, layout) to a converted tile that is valid here.
    """

    redefined: set[Tensor | Var] | None
    statements: list[Stmt] = field(default_factory=list)
    converted: dict[tuple[Tensor, RegisterLayout], Tensor] = field(default_factory=dict)


class _Inserter:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.scopes: list[_Scope] = []

    def program(self, program: Program) -> Program:
        body = self.body(program.body, None, {})
        return program if body is program.body else replace(program, body=body)

    def body(
        self,
        body: tuple[Stmt, ...],
        redefined: set[Tensor | Var] | None,
        converted: dict[tuple[Tensor, RegisterLayout], Tensor],
    ) -> tuple[Stmt, ...]:
        scope = _Scope(redefined, converted=dict(converted))
        self.scopes.append(scope)
        for stmt in body:
            scope.statements.append(self.statement(stmt))
            self.forget(scope, defined_in([stmt]))
        self.scopes.pop()
        same = len(scope.statements) == len(body) and all(a is b for a, b in zip(scope.statements, body, strict=True))
        return body if same else tuple(scope.statements)

    def forget(self, scope: _Scope, defined: set[Tensor | Var]) -> None:
        for key in [key for key in scope.converted if key[0] in defined]:
            del scope.converted[key]

    def statement(self, stmt: Stmt) -> Stmt:
        match stmt:
            case InstStmt():
                return self.instruction(stmt)
            case If(then=then, orelse=orelse):
                valid = self.scopes[-1].converted
                new_then, new_orelse = self.body(then, None, valid), self.body(orelse, None, valid)
                same = new_then is then and new_orelse is orelse
                return stmt if same else replace(stmt, then=new_then, orelse=new_orelse)
            case For(body=body) | While(body=body):
                defined = defined_in([stmt])
                valid = {key: t for key, t in self.scopes[-1].converted.items() if key[0] not in defined}
                new = self.body(body, defined, valid)
                return stmt if new is body else replace(stmt, body=new)
            case Let() | Assign() | Break() | Continue():
                return stmt
            case _:
                assert_never(stmt)

    def instruction(self, stmt: InstStmt) -> InstStmt:
        operands = register_operands(stmt.inst)
        out = stmt.out if isinstance(stmt.out, Tensor) and isinstance(stmt.out.type, RegisterType) else None
        have = [layout_of(x) for x in operands]
        choice = self.choose(stmt, operands, have, out)
        if any(x != y for x, y in zip(have, choice.operands, strict=True)):
            new = [self.converted(x, layout) for x, layout in zip(operands, choice.operands, strict=True)]
            stmt = replace(stmt, inst=with_operands(stmt.inst, new))
        if out is None or choice.out is None or choice.out == layout_of(out):
            return stmt
        raw = Tensor(out.name, replace(register_type(out), layout=choice.out), loc=out.loc)
        self.scopes[-1].statements.append(replace(stmt, out=raw))
        return InstStmt(out, ConvertLayout(raw, layout_of(out), loc=stmt.inst.loc), loc=stmt.loc)

    def choose(
        self, stmt: InstStmt, operands: Sequence[Tensor], have: Sequence[RegisterLayout], out: Tensor | None
    ) -> Choice:
        result = None if out is None else layout_of(out)
        choices = LAYOUT_RULES[type(stmt.inst)].choices(stmt.inst, have, result, self.machine)
        if len(choices) == 1:
            return choices[0]
        nbits = [register_type(x).dtype.nbits for x in operands]

        def moving(choice: Choice) -> float:
            moved = sum(self.machine.cost(x, y, n) for x, y, n in zip(have, choice.operands, nbits, strict=True))
            if out is not None and result is not None and choice.out is not None:
                moved += self.machine.cost(choice.out, result, register_type(out).dtype.nbits)
            return moved

        return cheapest(choices, moving)

    def converted(self, x: Tensor, layout: RegisterLayout) -> Tensor:
        """Return the tile in another layout: converted before, or now, as far out as its value is the same."""
        if layout == layout_of(x):
            return x
        known = self.scopes[-1].converted.get((x, layout))
        if known is not None:
            return known
        level = len(self.scopes) - 1
        while self.scopes[level].redefined is not None and x not in (self.scopes[level].redefined or ()):
            level -= 1
        new = Tensor(x.name, replace(register_type(x), layout=layout), loc=x.loc)
        self.scopes[level].statements.append(InstStmt(new, ConvertLayout(x, layout, loc=x.loc), loc=x.loc))
        for scope in self.scopes[level:]:
            scope.converted[x, layout] = new
        return new
