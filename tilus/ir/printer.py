"""The text form of programs. `tilus.ir.parser` reads it back: `parse(to_text(p)) == p`.

The text is deterministic: it holds no addresses, and a variable is named as its author did, with a number where two
would have the same name. A tensor or scalar shows its type where it first stands on the left of `=`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from tilus.dtypes import DataType, boolean, f32, i32
from tilus.errors import assert_never
from tilus.ir.expr import EXPR_CLASSES, BlockId, CastExpr, Const, Expr, Op, Tensor, Var
from tilus.ir.instructions import INSTRUCTIONS, Instruction
from tilus.ir.operators import OPERATORS
from tilus.ir.schema import field_kinds
from tilus.ir.stmt import Assign, Break, Continue, For, If, InstStmt, Let, Selected, Stmt, While
from tilus.ir.types import dtype_text
from tilus.ir.words import DOTTED, NAME, RESERVED

if TYPE_CHECKING:
    from tilus.ir.program import Param, Program

    Printable: TypeAlias = Program | Stmt | Instruction | Expr | Tensor

_STATEMENTS = (Let, Assign, If, For, While, Break, Continue, InstStmt)
_INDENT = "  "


class Names:
    """Gives every variable of one text its own name.

    Parameters
    ----------
    numbered : bool
        Call them v0, v1, ... in order of appearance: two programs that differ only in names then have one text.
    """

    def __init__(self, numbered: bool = False) -> None:
        self._numbered = numbered
        self._names: dict[Var | Tensor, str] = {}
        self._taken: set[str] = set()
        self._counts: dict[str, int] = {}
        self._typed: set[Var | Tensor] = set()

    def __getitem__(self, var: Var | Tensor) -> str:
        if var not in self._names:
            self._names[var] = self._fresh(var.name)
        return self._names[var]

    def _fresh(self, wanted: str) -> str:
        if self._numbered:
            return f"v{len(self._names)}"
        base = wanted if NAME.fullmatch(wanted) else "v"
        if RESERVED.fullmatch(base):
            base = f"v_{base}"
        name, count = base, self._counts.get(base, 0)
        while name in self._taken:
            count += 1
            name = f"{base}_{count}"
        self._counts[base] = count
        self._taken.add(name)
        return name

    def show_types(self) -> None:
        """Show the type of every variable again where it is next defined."""
        self._typed.clear()

    def declare(self, var: Var | Tensor) -> str:
        """Return `name: type` the first time, `name` from then on."""
        if var in self._typed:
            return self[var]
        self._typed.add(var)
        return f"{self[var]}: {var.type}"


def to_text(node: Printable, names: Names | None = None) -> str:
    """Return the text form of a program, statement, instruction or expression.

    Parameters
    ----------
    node : node
    names : Names, optional
        Names given so far; without it the text stands alone.
    """
    names = Names() if names is None else names
    if isinstance(node, EXPR_CLASSES):
        return expr_text(node, names)
    if isinstance(node, Tensor):
        return names[node]
    if isinstance(node, Instruction):
        return inst_text(node, names)
    lines = _statement(node, names) if isinstance(node, _STATEMENTS) else _program(node, names)
    return "\n".join(lines)


def _program(p: Program, names: Names) -> Iterator[str]:
    yield f"program {p.name}({', '.join(_param(param, names) for param in p.params)}) {{"
    yield f"{_INDENT}grid {value_text(p.grid, names)}"
    yield f"{_INDENT}warps {p.num_warps}{' producer' if p.producer else ''}"
    if p.cluster:
        yield f"{_INDENT}cluster {p.cluster}"
    if p.num_threads is not None:
        yield f"{_INDENT}threads {p.num_threads}"
    if p.shared_bytes is not None:
        yield f"{_INDENT}shared {p.shared_bytes}"
    yield from _body(p.body, names)
    yield "}"


def _param(param: Param, names: Names) -> str:
    promise = "" if param.multiple == 1 else f" % {param.multiple}"
    return names.declare(param.var) + promise


def _body(body: tuple[Stmt, ...], names: Names) -> Iterator[str]:
    for stmt in body:
        for line in _statement(stmt, names):
            yield _INDENT + line


def _statement(stmt: Stmt, names: Names) -> Iterator[str]:
    match stmt:
        case Let(var=var, value=value):
            text = expr_text(value, names)
            # A second declaration of the same variable (in the other branch) keeps its type: it is no assignment.
            yield f"{names[var]}: {var.type} = {text}"
            names.declare(var)
        case Assign(var=var, value=value):
            yield f"{names[var]} = {expr_text(value, names)}"
        case If():
            yield from _if(stmt, names)
        case For():
            yield from _for(stmt, names)
        case While(cond=cond, body=body):
            yield f"while {expr_text(cond, names)} {{"
            yield from _body(body, names)
            yield "}"
        case Break():
            yield "break"
        case Continue():
            yield "continue"
        case InstStmt(out=out, inst=inst, selected=selected):
            text = inst_text(inst, names)
            left = "" if out is None else f"{names.declare(out)} = "
            yield left + text + ("" if selected is None else f" : {_selected(selected)}")
        case _:
            assert_never(stmt)


def _if(stmt: If, names: Names) -> Iterator[str]:
    yield f"if {expr_text(stmt.cond, names)} {{"
    yield from _body(stmt.then, names)
    if stmt.orelse:
        yield "} else {"
        yield from _body(stmt.orelse, names)
    yield "}"


def _for(stmt: For, names: Names) -> Iterator[str]:
    bounds = ", ".join((expr_text(stmt.start, names), expr_text(stmt.stop, names), str(int(stmt.step))))
    plain = stmt.var.type.dtype == i32
    var = names[stmt.var] if plain else f"{names[stmt.var]}: {stmt.var.type}"
    yield f"for {var} in range({bounds}){' unroll' if stmt.unroll else ''} {{"
    yield from _body(stmt.body, names)
    yield "}"


def _selected(selected: Selected) -> str:
    atom = selected.atom if DOTTED.fullmatch(selected.atom) else json.dumps(selected.atom)
    width = "" if selected.width == 1 else f" width={selected.width}"
    unmasked = f" unmasked={value_text(selected.unmasked, Names())}" if selected.unmasked else ""
    note = f" {json.dumps(selected.note)}" if selected.note else ""
    return atom + width + unmasked + note


def inst_text(inst: Instruction, names: Names) -> str:
    """Return `name(field=value, ...)`, without fields that are None."""
    given = ((name, kind, getattr(inst, name)) for name, kind in field_kinds(type(inst)).items())
    fields = (
        f"{name}={value_text(float(value) if kind is float else value, names)}"
        for name, kind, value in given
        if value is not None
    )
    return f"{INSTRUCTIONS[type(inst)].name}({', '.join(fields)})"


def value_text(value: Any, names: Names) -> str:
    """Return the text of an operand or attribute."""
    match value:
        case Tensor():
            return names[value]
        case tuple():
            items = [value_text(item, names) for item in value]
            return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
        case bool():
            return "true" if value else "false"
        case float():
            return repr(float(value))
        case str():
            return json.dumps(value)
        case DataType():
            return dtype_text(value)
        case _ if isinstance(value, EXPR_CLASSES):
            return expr_text(value, names)
        case _:
            return str(value)  # an int, a layout or None


def expr_text(expr: Expr, names: Names) -> str:
    """Return the text of an expression, with no more parentheses than reading it back takes."""
    match expr:
        case Var():
            return names[expr]
        case Const(value=value, dtype=dtype):
            return literal_text(value, dtype)
        case BlockId(axis=axis):
            return f"block_id({axis})"
        case CastExpr(dtype=dtype, value=inner):
            return f"{dtype_text(dtype)}({expr_text(inner, names)})"
        case Op(op=op, args=args):
            return _op_text(op, args, names)
        case _:
            assert_never(expr)


def _op_text(op: str, args: tuple[Expr, ...], names: Names) -> str:
    row = OPERATORS[op]
    if row.symbol is None:
        return f"{op}({', '.join(expr_text(arg, names) for arg in args)})"
    # Left-associative, so the right operand needs parentheses at equal strength; comparisons never chain.
    chains = row.result != "bool"
    left = _operand(args[0], row.precedence if chains else row.precedence + 1, names)
    right = _operand(args[1], row.precedence + 1, names)
    return f"{left} {row.symbol} {right}"


def _operand(expr: Expr, least: int, names: Names) -> str:
    text = expr_text(expr, names)
    weak = isinstance(expr, Op) and OPERATORS[expr.op].symbol and OPERATORS[expr.op].precedence < least
    return f"({text})" if weak else text


def literal_text(value: float | bool, dtype: DataType) -> str:
    """Return a literal: bare for boolean, i32 and f32, else with the type as suffix (`5_i64`, `inf_f16`)."""
    if dtype == boolean:
        return "true" if value else "false"
    text = str(int(value)) if dtype.is_integer else repr(float(value))
    return text if dtype in (i32, f32) else f"{text}_{dtype_text(dtype)}"
