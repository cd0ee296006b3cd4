"""The rules of the IR. `verify` checks all of them, and collects every breach before it raises.

1. A variable is defined before it is used, on every path. A loop's body may not run: what it defines is gone after it.
2. `let` declares; a variable that is declared on the way is changed by `=` only. A loop variable is never assigned.
3. An instruction's operands fit it, and its result has the type of the variable it defines: element type and shape
   always, the layout where the instruction fixes one.
4. A global view or shared tensor is defined by one statement.
5. Expressions are well typed, conditions are boolean, bounds are integers of the loop variable's type; a pointer is an
   operand of instructions only.
6. The grid is made of parameters only.
7. `break` and `continue` stand in a loop.
8. All register layouts have one number of threads: `num_threads` where that is set.
9. A cluster has as many axes as the grid, and at most 8 blocks. Only blocks of a cluster exchange tiles.
10. `grid_dependency_wait` stands in no branch or loop, and what touches global memory comes behind the first one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import TypeAlias

from tilus.dtypes import boolean
from tilus.errors import TilusError, VerifyError, assert_never
from tilus.ir.expr import EXPR_CLASSES, BlockId, CastExpr, Const, Expr, Op, Tensor, Var, dtype_of
from tilus.ir.instructions import (
    AtomicAdd,
    ClusterSum,
    CopyAsync,
    GridDependencyWait,
    Instruction,
    LoadElement,
    LoadGlobal,
    StoreGlobal,
    result_type,
)
from tilus.ir.instructions.register import check_domain
from tilus.ir.node import Node, children, is_identity, walk
from tilus.ir.operators import OPERATORS
from tilus.ir.printer import Names, to_text, value_text
from tilus.ir.program import Program
from tilus.ir.stmt import Assign, Break, Continue, For, If, InstStmt, Let, Stmt, While
from tilus.ir.target import MAX_CLUSTER
from tilus.ir.types import PointerType, RegisterType, ScalarType, SharedType, Type

# What is defined at a point of the program; None where control never comes, and so everything is.
Defined: TypeAlias = frozenset[Var | Tensor] | None


_ON_GLOBAL_MEMORY = (LoadGlobal, StoreGlobal, AtomicAdd, LoadElement, CopyAsync)
_WAIT_FIRST = "an earlier kernel may still use it: only prefetch may come before the wait"


def verify(program: Program, after: str = "") -> None:
    """Check the rules of the IR.

    Parameters
    ----------
    program : Program
    after : str
        The pass that made the program, for the message.

    Raises
    ------
    VerifyError
        Names every breach with its place and the line of IR; `loc` is the first one's.
    """
    breaches = _Checker(program).run()
    if not breaches:
        return
    first, others = breaches[0], breaches[1:]
    where = f"after pass {after}: " if after else ""
    lines = [where + first.message, *first.context()]
    for breach in others:
        place = f"{breach.node.loc}: " if breach.node.loc else ""
        lines += [f"also: {place}{breach.message}", *breach.context()]
    raise VerifyError("\n".join(lines), loc=first.node.loc, hint=first.hint)


@dataclass(frozen=True, slots=True)
class _Breach:
    message: str
    node: Node
    line: str
    hint: str | None

    def context(self) -> list[str]:
        return [f"    in: {self.line}"] if self.line else []


@dataclass(slots=True)
class _Loop:
    """An open loop: its variable, and what was defined where it was left."""

    var: Var | None
    at_breaks: Defined = None


def _is(node: Node, *kinds: type[Instruction]) -> bool:
    """Whether a statement is an instruction of some kinds."""
    return isinstance(node, InstStmt) and isinstance(node.inst, kinds)


def _meet(a: Defined, b: Defined) -> Defined:
    """Return what is defined where two ways join."""
    if a is None or b is None:
        return b if a is None else a
    return a & b


class _Checker:
    """Walks a program once, in order, with what is defined so far."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.breaches: list[_Breach] = []
        self.loops: list[_Loop] = []
        self.once: set[Tensor] = set()  # global views and shared tensors that have their definition
        self.threads = program.num_threads
        self.at: Stmt | Program = program  # what is being checked
        self.at_grid = False

    def run(self) -> list[_Breach]:
        self.header()
        self.body(self.program.body, frozenset(p.var for p in self.program.params))
        self.dependency()
        return self.breaches

    def complain(self, message: str, node: Node, hint: str | None = None) -> None:
        # A variable's place is its declaration, and what a pass made has none: then the statement's is shown.
        placed = node if node.loc is not None and not is_identity(node) else self.at
        self.breaches.append(_Breach(message, placed, self.line(), hint))

    @cached_property
    def names(self) -> Names:
        """Names of variables: a line is printed with those it has in the whole program."""
        names = Names()
        to_text(self.program, names)
        return names

    def line(self) -> str:
        if self.at_grid:
            return f"grid {value_text(self.program.grid, self.names)}"
        if self.at is self.program:
            return ""
        self.names.show_types()
        return to_text(self.at, self.names).partition("\n")[0]

    def header(self) -> None:
        p = self.program
        variables = [param.var for param in p.params]
        if len(set(variables)) != len(variables):
            self.complain("a variable stands twice among the parameters", p)
        for param in p.params:
            if param.multiple < 1:
                self.complain(f"parameter {param.var.name!r} promises a multiple of {param.multiple}", param)
        if not 1 <= len(p.grid) <= 3:
            self.complain(f"a grid has 1 to 3 axes, got {len(p.grid)}", p)
        for name, value in (("num_warps", p.num_warps), ("num_threads", p.num_threads)):
            if value is not None and value < 1:
                self.complain(f"{name} must be positive, got {value}", p)
        if p.cluster and (len(p.cluster) != len(p.grid) or min(p.cluster) < 1 or prod(p.cluster) > MAX_CLUSTER):
            self.complain(f"a cluster of {p.cluster} blocks: one extent for each axis of the grid, 8 blocks at most", p)
        self.at_grid = True
        for extent in p.grid:
            self.extent(extent, frozenset(variables))
        self.at_grid = False

    def extent(self, extent: Expr, params: frozenset[Var]) -> None:
        strangers = [n for n in walk(extent) if isinstance(n, BlockId) or (isinstance(n, Var) and n not in params)]
        for node in strangers:
            self.complain(f"the grid may depend on parameters only, not on {to_text(node, self.names)}", extent)
        if not strangers and self.expr(extent, params) and not dtype_of(extent).is_integer:
            self.complain(f"an extent of the grid is an integer, got {dtype_of(extent)}", extent)

    def dependency(self) -> None:
        """Check rule 10."""
        body = self.program.body
        first = next((i for i, stmt in enumerate(body) if _is(stmt, GridDependencyWait)), len(body))
        for number, stmt in enumerate(body):
            for inner in walk(stmt):
                if not isinstance(inner, InstStmt):
                    continue
                self.at = inner
                if inner is not stmt and _is(inner, GridDependencyWait):
                    self.complain("grid_dependency_wait stands in a branch or loop", inner)
                elif number < first < len(body) and _is(inner, *_ON_GLOBAL_MEMORY):
                    self.complain("global memory is accessed before grid_dependency_wait", inner, _WAIT_FIRST)

    # Statements: each method returns what is defined after it

    def body(self, body: tuple[Stmt, ...], defined: Defined) -> Defined:
        for stmt in body:
            self.at = stmt
            defined = self.statement(stmt, defined)
        return defined

    def statement(self, stmt: Stmt, defined: Defined) -> Defined:
        match stmt:
            case Let() | Assign():
                return self.scalar(stmt, defined)
            case If(cond=cond):
                self.condition(cond, defined)
                return _meet(self.body(stmt.then, defined), self.body(stmt.orelse, defined))
            case For():
                return self.for_loop(stmt, defined)
            case While(cond=cond, body=body):
                self.condition(cond, defined)
                endless = isinstance(cond, Const) and bool(cond.value)
                return self.loop(_Loop(None), body, defined, None if endless else defined)
            case Break() | Continue():
                if not self.loops:
                    self.complain(f"{to_text(stmt)} stands in no loop", stmt)
                elif isinstance(stmt, Break):
                    self.loops[-1].at_breaks = _meet(self.loops[-1].at_breaks, defined)
                return None
            case InstStmt():
                self.instruction(stmt, defined)
                return self.define(stmt.out, defined)
            case _:
                assert_never(stmt)

    def define(self, var: Var | Tensor | None, defined: Defined) -> Defined:
        return defined if var is None or defined is None else defined | {var}

    def scalar(self, stmt: Let | Assign, defined: Defined) -> Defined:
        var = stmt.var
        self.changed(stmt, var)
        if not isinstance(var.type, ScalarType):
            self.complain(f"{self.names[var]!r} has type {var.type}, which no expression has", stmt)
        elif self.expr(stmt.value, defined) and dtype_of(stmt.value) != var.type.dtype:
            self.complain(f"{self.names[var]!r} has type {var.type}, its value {dtype_of(stmt.value)}", stmt)
        if isinstance(stmt, Let) and defined is not None and var in defined:
            self.complain(f"{self.names[var]!r} is declared already", stmt)
        if isinstance(stmt, Assign) and defined is not None and var not in defined:
            self.complain(f"{self.names[var]!r} is assigned before it is declared on every path", stmt)
        return self.define(var, defined)

    def changed(self, stmt: Stmt, var: Var | Tensor) -> None:
        if any(loop.var is var for loop in self.loops):
            self.complain(f"the loop variable {self.names[var]!r} is changed in its loop", stmt)

    def condition(self, cond: Expr, defined: Defined) -> None:
        if self.expr(cond, defined) and dtype_of(cond) != boolean:
            self.complain(f"a condition is boolean, this one is {dtype_of(cond)}", cond)

    def for_loop(self, stmt: For, defined: Defined) -> Defined:
        dtype = stmt.var.type.dtype
        if isinstance(stmt.var.type, PointerType) or not dtype.is_integer:
            self.complain(f"a loop variable is an integer, {self.names[stmt.var]!r} has type {stmt.var.type}", stmt)
        for bound in (stmt.start, stmt.stop):
            if self.expr(bound, defined) and dtype_of(bound) != dtype:
                self.complain(f"a bound has type {dtype_of(bound)}, the loop variable {dtype}", bound)
        if stmt.step == 0:
            self.complain("the step of a loop must not be 0", stmt)
        self.changed(stmt, stmt.var)
        self.loop(_Loop(stmt.var), stmt.body, self.define(stmt.var, defined), None)
        return None if defined is None else defined - {stmt.var}

    def loop(self, loop: _Loop, body: tuple[Stmt, ...], defined: Defined, when_done: Defined) -> Defined:
        self.loops.append(loop)
        self.body(body, defined)
        self.loops.pop()
        return _meet(when_done, loop.at_breaks)

    # Instructions and expressions

    def instruction(self, stmt: InstStmt, defined: Defined) -> None:
        operands_fit = all([self.operand(child, defined) for child in children(stmt.inst)])
        if stmt.out is not None:
            self.changed(stmt, stmt.out)
            self.layout_of(stmt, stmt.out)
            self.defined_once(stmt, stmt.out)
        if operands_fit:
            self.result(stmt)

    def operand(self, node: Node, defined: Defined) -> bool:
        """Check an operand: an expression, a tensor, or a pointer on its own."""
        if isinstance(node, Tensor) or (isinstance(node, Var) and isinstance(node.type, PointerType)):
            return self.use(node, defined)
        if isinstance(node, EXPR_CLASSES):
            return self.expr(node, defined)
        raise TypeError(f"no operand: {node!r}")

    def result(self, stmt: InstStmt) -> None:
        if _is(stmt, ClusterSum) and not self.program.cluster:
            self.complain("the blocks of the kernel have no cluster", stmt.inst, "launch(..., cluster=(1, 1, 4))")
        try:
            result = result_type(stmt.inst)
        except TilusError as error:
            self.complain(error.message, stmt.inst, error.hint)
            return
        out = stmt.out
        if result is None or out is None:
            if out is not None:
                self.complain("the instruction has no result", stmt)
            elif result is not None:
                self.complain("the result of the instruction is not named", stmt)
        elif _unlike(out.type, result):
            self.complain(f"{self.names[out]!r} has type {out.type}, the instruction gives {result}", stmt)

    def layout_of(self, stmt: InstStmt, out: Tensor | Var) -> None:
        if not isinstance(out.type, RegisterType) or out.type.layout is None:
            return
        threads = out.type.layout.num_threads
        self.threads = self.threads or threads
        if threads != self.threads:
            self.complain(f"{self.names[out]!r} is spread over {threads} threads, the block has {self.threads}", stmt)

    def defined_once(self, stmt: InstStmt, out: Tensor | Var) -> None:
        if not isinstance(out, Tensor) or isinstance(out.type, RegisterType):
            return
        if out in self.once:
            self.complain(f"{self.names[out]!r} is defined twice: only register tensors may be redefined", stmt)
        self.once.add(out)

    def use(self, var: Var | Tensor, defined: Defined) -> bool:
        if defined is not None and var not in defined:
            self.complain(f"{self.names[var]!r} is used before it is defined on every path", var)
            return False
        return True

    def expr(self, expr: Expr, defined: Defined) -> bool:
        """Whether an expression is well typed; complains where not."""
        match expr:
            case Var():
                if isinstance(expr.type, PointerType):
                    self.complain(f"the pointer {self.names[expr]!r} stands where a scalar is needed", expr)
                    return False
                return self.use(expr, defined)
            case Const():
                return self.literal(expr)
            case BlockId(axis=axis):
                if not 0 <= axis < len(self.program.grid):
                    self.complain(f"block_id({axis}) in a grid of {len(self.program.grid)} axes", expr)
                return True
            case CastExpr(value=value):
                return self.expr(value, defined)
            case Op(args=args):
                # A list, not a generator: every operand is to be checked.
                return all([self.expr(arg, defined) for arg in args]) and self.operator(expr)
            case _:
                assert_never(expr)

    def literal(self, const: Const) -> bool:
        dtype, value = const.dtype, const.value
        if dtype.is_integer:
            whole = isinstance(value, int) or value.is_integer()
            fits = whole and dtype.min_value <= value <= dtype.max_value
        else:
            fits = not dtype.is_boolean or value in (0, 1)
        if not fits:
            self.complain(f"{value} is no value of type {dtype}", const)
        return bool(fits)

    def operator(self, expr: Op) -> bool:
        dtypes = [dtype_of(arg) for arg in expr.args]
        if expr.op == "where" and dtypes[0] != boolean:
            self.complain(f"the condition of where is boolean, this one is {dtypes[0]}", expr)
            return False
        of_one_type = dtypes[1:] if expr.op == "where" else dtypes
        if len(set(of_one_type)) != 1:
            symbol = OPERATORS[expr.op].symbol or expr.op
            self.complain(f"operands of {symbol} have different types: {', '.join(map(str, of_one_type))}", expr)
            return False
        try:
            check_domain(expr.op, of_one_type[0])
        except VerifyError as error:
            self.complain(error.message, expr)
            return False
        return True


def _unlike(declared: Type, result: Type) -> bool:
    """Whether types differ in more than a layout that the instruction leaves open."""
    if isinstance(declared, RegisterType) and isinstance(result, RegisterType) and result.layout is None:
        declared = replace(declared, layout=None)
    if isinstance(declared, SharedType) and isinstance(result, SharedType) and result.layout is None:
        declared = replace(declared, layout=None)
    return declared != result
