"""A few lines that run IR without memory: enough to compare the front end's control flow with Python's.

Scalars are Python numbers, tiles NumPy arrays of their shape. This is no oracle for instructions: `tilus.vm` is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilus.ir.expr import CastExpr, Const, Expr, Op, Tensor
from tilus.ir.instructions import Copy, Elementwise, Full, LoadElement, Print
from tilus.ir.operators import OPERATORS
from tilus.ir.program import Program
from tilus.ir.stmt import Assign, Break, Continue, For, If, InstStmt, Let, Stmt, While


class _Leave(Exception):
    """Break or continue under way."""

    def __init__(self, kind: type[Stmt]) -> None:
        self.kind = kind


class Machine:
    """Runs one block; `printed` collects the text of every `print`."""

    def __init__(self, program: Program, args: Sequence[Any]) -> None:
        self.values: dict[Any, Any] = dict(zip((p.var for p in program.params), args, strict=True))
        self.printed: list[str] = []
        self.body(program.body)

    def body(self, body: Sequence[Stmt]) -> None:
        for stmt in body:
            self.statement(stmt)

    def statement(self, stmt: Stmt) -> None:
        match stmt:
            case Let(var=var, value=value) | Assign(var=var, value=value):
                self.values[var] = self.expr(value)
            case If(cond=cond, then=then, orelse=orelse):
                self.body(then if self.expr(cond) else orelse)
            case For(var=var):
                # Bounds are read in every turn, as a C compiler does it: the front end must not rely on reading once.
                i = self.expr(stmt.start)
                while i < self.expr(stmt.stop) if stmt.step > 0 else i > self.expr(stmt.stop):
                    self.values[var] = i
                    if not self.turn(stmt.body):
                        break
                    i += stmt.step
            case While(cond=cond, body=body):
                while self.expr(cond) and self.turn(body):
                    pass
            case Break() | Continue():
                raise _Leave(type(stmt))
            case InstStmt(out=out, inst=inst):
                self.values[out] = self.instruction(inst)

    def turn(self, body: Sequence[Stmt]) -> bool:
        try:
            self.body(body)
        except _Leave as leave:
            return leave.kind is Continue
        return True

    def expr(self, expr: Expr) -> Any:
        match expr:
            case Const(value=value):
                return value
            case Op(op=op, args=args):
                return np.asarray(OPERATORS[op].apply(*map(np.asarray, map(self.expr, args)))).item()
            case CastExpr(dtype=dtype, value=value):
                return int(self.expr(value)) if dtype.is_integer else float(self.expr(value))
            case _:
                return self.values[expr]

    def operand(self, x: Any) -> Any:
        return self.values[x] if isinstance(x, Tensor) else self.expr(x)

    def instruction(self, inst: Any) -> Any:
        match inst:
            case Full(value=value, shape=shape):
                return np.full(shape, self.expr(value))
            case Copy(x=x):
                return self.values[x].copy()
            case Elementwise(op=op, args=args):
                return OPERATORS[op].apply(*(self.operand(a) for a in args))
            case LoadElement(ptr=ptr, index=index):
                return self.values[ptr][self.expr(index)]
            case Print(args=args):
                self.printed.append(inst.format.format(*(np.asarray(self.operand(a)).tolist() for a in args)))
                return None
