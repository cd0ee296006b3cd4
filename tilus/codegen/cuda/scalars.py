"""Scalar expressions of the IR as C++."""

from __future__ import annotations

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.context import Context
from tilus.codegen.cuda.cpp import Expr, Name
from tilus.codegen.cuda.operators import apply
from tilus.codegen.cuda.types import literal, signed
from tilus.codegen.cuda.values import convert_value, decode, encode
from tilus.dtypes import DataType
from tilus.errors import assert_never
from tilus.ir.expr import BlockId, CastExpr, Const, Op, Var, dtype_of
from tilus.ir.expr import Expr as ScalarExpr
from tilus.ir.node import walk
from tilus.ir.operators import OPERATORS
from tilus.ir.program import Program
from tilus.ir.stmt import Assign, For, Let

_AXES = "xyz"


def scalar(ctx: Context, expr: ScalarExpr) -> Expr:
    """Return a scalar expression as C++, held as values of its type are."""
    match expr:
        case Var():
            return ctx.name(expr)
        case Const(value=value, dtype=dtype):
            return literal(dtype, value)
        case BlockId(axis=axis):
            return Name(f"blockIdx.{_AXES[axis]}")
        case CastExpr(dtype=dtype, value=value):
            return convert_value(ctx, dtype, scalar(ctx, value), dtype_of(value))
        case Op(op=op, args=args):
            return _op(ctx, op, args)
        case _:
            assert_never(expr)


def _op(ctx: Context, op: str, args: tuple[ScalarExpr, ...]) -> Expr:
    dtype = dtype_of(args[-1])
    positive = op in ("floordiv", "mod") and all(is_not_negative(a, ctx.not_negative) for a in args)
    value = apply(ctx, op, dtype, *(scalar(ctx, a) for a in args), positive=positive)
    if isinstance(value, cpp.Int):
        return literal(dtype, dtype.decode(value.value % dtype.num_codes).item())
    return value if OPERATORS[op].result == "bool" or not _is_rounded(dtype) else _narrowed(ctx, dtype, value)


def _is_rounded(dtype: DataType) -> bool:
    """Whether a result computed in the C++ type may not be a value of the type."""
    return (dtype.nbits < 32 and not dtype.is_boolean) or dtype.name == "tf32"


def _narrowed(ctx: Context, dtype: DataType, value: Expr) -> Expr:
    return decode(ctx, dtype, encode(ctx, dtype, value, dtype))


def wide(ctx: Context, expr: ScalarExpr) -> Expr:
    """Return an integer expression as an i64."""
    if isinstance(expr, Const):
        return cpp.Int(int(expr.value))
    dtype, value = dtype_of(expr), scalar(ctx, expr)
    return cpp.convert("i64", signed(dtype, value))


def not_negative_variables(program: Program) -> frozenset[Var]:
    """Return the variables that never hold a negative number: loops that count up from there, and what follows.

    Indices are taken not to overflow their type.
    """
    loops: dict[Var, list[For]] = {}
    lets: dict[Var, list[ScalarExpr]] = {}
    assigned: set[Var] = set()
    for node in walk(program):
        match node:
            case For(var=var):
                loops.setdefault(var, []).append(node)
            case Let(var=var, value=value):
                lets.setdefault(var, []).append(value)
            case Assign(var=var):
                assigned.add(var)
            case _:
                pass
    known: frozenset[Var] = frozenset()
    while True:
        more = {v for v, found in loops.items() if all(f.step > 0 and is_not_negative(f.start, known) for f in found)}
        more |= {v for v, found in lets.items() if v not in assigned and all(is_not_negative(x, known) for x in found)}
        if more <= known:
            return known
        known |= more


def is_not_negative(expr: ScalarExpr, known: frozenset[Var]) -> bool:
    """Whether an integer expression is plainly not negative."""
    match expr:
        case Const(value=value):
            return value >= 0
        case BlockId():
            return True
        case Var():
            return expr in known or (not dtype_of(expr).is_signed and dtype_of(expr).is_integer)
        case Op(op="add" | "mul" | "min" | "floordiv" | "shr" | "and", args=args):
            return all(is_not_negative(a, known) for a in args)
        case Op(op="max", args=args):
            return any(is_not_negative(a, known) for a in args)
        case Op(op="mod", args=(_, divisor)):
            return is_not_negative(divisor, known)
        case CastExpr(dtype=dtype, value=value) if dtype.is_integer and dtype_of(value).is_integer:
            return dtype.nbits >= dtype_of(value).nbits and is_not_negative(value, known)
        case _:
            return False
