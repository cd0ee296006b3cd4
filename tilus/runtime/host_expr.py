"""Scalar expressions of a program as Python text, for what is evaluated on the host at a launch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tilus.errors import LaunchError, assert_never
from tilus.ir.expr import BlockId, CastExpr, Const, Expr, Op, Var
from tilus.ir.operators import OPERATORS

_CALLS = ("min", "max", "abs")  # operators that Python has as functions
_WORDS = {"neg": "(-{0})", "where": "({1} if {0} else {2})"}


class NotOnHostError(LaunchError):
    """An expression depends on what only a block knows."""


def python_text(expr: Expr, names: Mapping[Var, str], lets: Mapping[Var, Expr] | None = None) -> str:
    """Return Python text for an expression over parameters.

    Parameters
    ----------
    expr : Expr
    names : mapping
        Text of the variables that the host knows.
    lets : mapping, optional
        Definitions of variables that have exactly one.

    Raises
    ------
    NotOnHostError
        If it depends on anything else, or uses an operator that the host does not evaluate.
    """
    match expr:
        case Var():
            if expr in names:
                return names[expr]
            if lets and expr in lets:
                return python_text(lets[expr], names, lets)
            raise NotOnHostError(f"{expr.name!r} is known only while a block runs")
        case Const(value=value):
            if not math.isfinite(value):
                raise NotOnHostError(f"{value} is not evaluated on the host")
            return repr(value) if value >= 0 else f"({value!r})"
        case CastExpr(dtype=dtype, value=value):
            kind = "int" if dtype.is_integer else "bool" if dtype.is_boolean else "float"
            return f"{kind}({python_text(value, names, lets)})"
        case Op(op=op, args=args):
            return _operation(op, [python_text(a, names, lets) for a in args])
        case BlockId():
            raise NotOnHostError("a block index is known only while a block runs")
        case _:
            assert_never(expr)


def _operation(op: str, texts: list[str]) -> str:
    symbol = OPERATORS[op].symbol
    if symbol is not None:
        return f"({texts[0]} {symbol} {texts[1]})"
    if op in _WORDS:
        return _WORDS[op].format(*texts)
    if op in _CALLS:
        return f"{op}({', '.join(texts)})"
    raise NotOnHostError(f"{op} is not evaluated on the host")
