"""Scalar expressions made smaller: constants folded, identities applied, what ranges prove put in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from tilus.dtypes import DataType, boolean, f32, f64
from tilus.ir.expr import CastExpr, Const, Expr, Op, dtype_of
from tilus.ir.operators import OPERATORS
from tilus.passes.analyze import Analysis

# Operations whose floating-point result is the same on every machine.
_EXACT = {"add", "sub", "mul", "div", "neg", "abs", "min", "max", "lt", "le", "eq", "ne", "floor", "ceil", "where"}
_FLOATS = {f32: np.float32, f64: np.float64}

Rule: TypeAlias = Callable[..., Expr | None]


def fold(expr: Expr, analysis: Analysis) -> Expr | None:
    """Return a smaller expression with the same value; None where there is none. Its operands are folded already."""
    match expr:
        case Op(op=op, args=args):
            if all(isinstance(a, Const) for a in args):
                return _evaluated(expr)
            proved = _proved(expr, analysis)
            if proved is not None:
                return proved
            return _IDENTITIES[op](expr, *args) if op in _IDENTITIES else None
        case CastExpr(dtype=dtype, value=value):
            if dtype_of(value) == dtype:
                return value
            return _cast_const(value, dtype) if isinstance(value, Const) else None
        case _:
            return None


def _literal(value: int, dtype: DataType) -> Const:
    """Return an integer or boolean literal, wrapped to its type."""
    if dtype.is_boolean:
        return Const(bool(value), dtype)
    low = value & ((1 << dtype.nbits) - 1)
    negative = dtype.is_signed and low >> (dtype.nbits - 1)
    return Const(low - (1 << dtype.nbits) if negative else low, dtype)


def _evaluated(expr: Op) -> Const | None:
    values = [a.value for a in expr.args if isinstance(a, Const)]
    operand, result = dtype_of(expr.args[-1]), dtype_of(expr)
    if operand.is_boolean:
        return Const(bool(OPERATORS[expr.op].apply(*(np.bool_(v) for v in values))), boolean)
    if operand.is_integer:
        return _integer(expr.op, [int(v) for v in values], result)
    if expr.op not in _EXACT or operand not in _FLOATS:
        return None
    make = _FLOATS[operand]
    with np.errstate(all="ignore"):
        value = OPERATORS[expr.op].apply(*(np.bool_(v) if isinstance(v, bool) else make(v) for v in values))
    return Const(bool(value), result) if result.is_boolean else Const(float(value), result)


def _integer(op: str, values: list[int], result: DataType) -> Const | None:
    if op in ("floordiv", "mod") and values[1] == 0:
        return None
    if op in ("shl", "shr") and not 0 <= values[1] < result.nbits:
        return None
    # NumPy's operators on Python's unbounded integers, wrapped once at the end, are the operators on words.
    value = OPERATORS[op].apply(*(np.array(v, dtype=object) for v in values))
    return _literal(int(value), result)


def _cast_const(value: Const, dtype: DataType) -> Const | None:
    source = value.dtype
    if (source.is_integer or source.is_boolean) and dtype.is_integer:
        return _literal(int(value.value), dtype)
    whole = source.is_integer or source.is_boolean
    if dtype in _FLOATS and (source in _FLOATS or (whole and abs(int(value.value)) < 1 << 24)):
        with np.errstate(all="ignore"):
            return Const(float(_FLOATS[dtype](value.value)), dtype)
    return None


def _proved(expr: Op, analysis: Analysis) -> Const | None:
    """Return the only value an integer or boolean expression can have."""
    dtype = dtype_of(expr)
    if not (dtype.is_integer or dtype.is_boolean):
        return None
    known = analysis.of(expr).constant
    return None if known is None else _literal(known, dtype)


# --- identities -----------------------------------------------------------------------------------------------------


def _is(expr: Expr, value: int) -> bool:
    return isinstance(expr, Const) and not expr.dtype.is_float and expr.value == value


def _same(a: Expr, b: Expr) -> bool:
    """Whether two expressions, which are evaluated at one moment, have one form and so one value; NaN is not itself."""
    return a == b and not dtype_of(a).is_float


def _add(expr: Op, a: Expr, b: Expr) -> Expr | None:
    if _is(a, 0):
        return b
    if _is(b, 0):
        return a
    if isinstance(a, Const) and not isinstance(b, Const) and dtype_of(a).is_integer:
        return Op("add", (b, a), loc=expr.loc)  # constants to the right, so that they meet
    match a, b:
        case Op(op="add", args=(x, Const() as c)), Const() as d if c.dtype.is_integer:
            return Op("add", (x, _literal(int(c.value) + int(d.value), c.dtype)), loc=expr.loc)
        case Op(op="sub", args=(x, Const() as c)), Const() as d if c.dtype.is_integer:
            return Op("add", (x, _literal(int(d.value) - int(c.value), c.dtype)), loc=expr.loc)
        case _:
            return None


def _sub(expr: Op, a: Expr, b: Expr) -> Expr | None:
    if _is(b, 0):
        return a
    if _same(a, b):
        return _literal(0, dtype_of(expr))
    match a, b:
        case Op(op="add", args=(x, Const() as c)), Const() as d if c.dtype.is_integer:
            return Op("add", (x, _literal(int(c.value) - int(d.value), c.dtype)), loc=expr.loc)
        case _:
            return None


def _mul(expr: Op, a: Expr, b: Expr) -> Expr | None:
    if _is(a, 0) or _is(b, 0):
        return _literal(0, dtype_of(expr))
    if _is(a, 1):
        return b
    if _is(b, 1):
        return a
    match a, b:
        case Op(op="mul", args=(x, Const() as c)), Const() as d if c.dtype.is_integer:
            return Op("mul", (x, _literal(int(c.value) * int(d.value), c.dtype)), loc=expr.loc)
        case _:
            return None


def _floordiv(expr: Op, a: Expr, b: Expr) -> Expr | None:
    return a if _is(b, 1) else None


def _min_max(expr: Op, a: Expr, b: Expr) -> Expr | None:
    return a if _same(a, b) else None


def _and(expr: Op, a: Expr, b: Expr) -> Expr | None:
    if _is(a, 0) or _is(b, 0):
        return _literal(0, dtype_of(expr))
    if dtype_of(expr).is_boolean and (_is(a, 1) or _is(b, 1)):
        return b if _is(a, 1) else a
    return a if _same(a, b) else None


def _or(expr: Op, a: Expr, b: Expr) -> Expr | None:
    if _is(a, 0) or _is(b, 0):
        return b if _is(a, 0) else a
    if dtype_of(expr).is_boolean and (_is(a, 1) or _is(b, 1)):
        return _literal(1, boolean)
    return a if _same(a, b) else None


def _not(expr: Op, a: Expr) -> Expr | None:
    match a:
        case Op(op="not", args=(x,)):
            return x
        case _:
            return None


def _where(expr: Op, cond: Expr, a: Expr, b: Expr) -> Expr | None:
    return (a if cond.value else b) if isinstance(cond, Const) else None


_IDENTITIES: dict[str, Rule] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "floordiv": _floordiv,
    "min": _min_max,
    "max": _min_max,
    "and": _and,
    "or": _or,
    "not": _not,
    "where": _where,
}
