"""Scalar operators and expressions; operators work on vectors too, so elementwise instructions share them."""

from __future__ import annotations

from tilus.codegen.llvm import casts
from tilus.codegen.llvm.builder import Builder, Value, constant, lanes_of, vector
from tilus.codegen.llvm.context import Context
from tilus.codegen.llvm.math import exp2, library
from tilus.codegen.llvm.types import compute, storage
from tilus.dtypes import DataType
from tilus.errors import assert_never
from tilus.ir.expr import BlockId, CastExpr, Const, Expr, Op, Var, dtype_of

_FLOAT = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_INTEGER = {"add": "add", "sub": "sub", "mul": "mul", "and": "and", "or": "or", "xor": "xor", "shl": "shl"}
MODULAR = frozenset({"add", "sub", "mul", "and", "or", "xor"})  # low bits of a result depend on low bits alone
_COMPARE = {
    "lt": ("olt", "slt", "ult"),
    "le": ("ole", "sle", "ule"),
    "eq": ("oeq", "eq", "eq"),
    "ne": ("une", "ne", "ne"),
}
_ROUND = {"floor": "floor", "ceil": "ceil", "round": "rint", "sqrt": "sqrt"}


def apply(b: Builder, op: str, dtype: DataType, args: list[Value]) -> Value:
    """Apply an operator to operands of the compute type of `dtype`; the result is of that type or i1, not wrapped."""
    if op == "where":
        return b.select(args[0], args[1], args[2])
    if op in _COMPARE:
        ordered, signed, unsigned = _COMPARE[op]
        integer = signed if dtype.is_signed else unsigned
        return b.compare(f"fcmp {ordered}" if dtype.is_float else f"icmp {integer}", *args)
    if dtype.is_float:
        return _float(b, op, args)
    return _boolean_or_integer(b, op, dtype, args)


def _float(b: Builder, op: str, args: list[Value]) -> Value:
    x = args[0]
    if op in _FLOAT:
        return b.op(_FLOAT[op], x, args[1])
    match op:
        case "min" | "max":
            return _extremum(b, op, x, args[1])
        case "neg":
            return b.value(x.type, f"fneg {x}")
        case "abs":
            return b.call(x.type, "fabs", x)
        case "rsqrt":
            return b.op("fdiv", constant(x.type, 1.0), b.call(x.type, "sqrt", x))
        case "exp":
            return exp2(b, x, natural=True)
        case "exp2":
            return exp2(b, x, natural=False)
    if op in _ROUND:
        return b.call(x.type, _ROUND[op], x)
    return library(b, op, x)


def _extremum(b: Builder, op: str, x: Value, y: Value) -> Value:
    """Minimum or maximum where a NaN operand gives NaN, as in NumPy and torch."""
    better = b.compare("fcmp ult" if op == "min" else "fcmp ugt", x, y)
    return b.select(b.compare("fcmp uno", y, y), y, b.select(better, x, y))


def _boolean_or_integer(b: Builder, op: str, dtype: DataType, args: list[Value]) -> Value:
    x = args[0]
    if op in _INTEGER:
        return b.op(_INTEGER[op], x, args[1])
    match op:
        case "shr":
            return b.op("ashr" if dtype.is_signed else "lshr", x, args[1])
        case "floordiv" | "mod":
            return _divide(b, op, dtype, x, args[1])
        case "min" | "max":
            return b.call(x.type, ("s" if dtype.is_signed else "u") + op, x, args[1])
        case "neg":
            return b.op("sub", constant(x.type, 0), x)
        case "not":
            return b.op("xor", x, -1 if not dtype.is_boolean else 1)
        case _:
            return b.call(x.type, "smax", x, b.op("sub", constant(x.type, 0), x)) if dtype.is_signed else x


def _divide(b: Builder, op: str, dtype: DataType, x: Value, y: Value) -> Value:
    """Divide rounding towards minus infinity. Division by zero, undefined in LLVM, divides by one."""
    y = b.select(b.compare("icmp eq", y, 0), constant(y.type, 1), y)
    if not dtype.is_signed:
        return b.op("udiv" if op == "floordiv" else "urem", x, y)
    rest = b.op("srem", x, y)
    wrong = b.op("and", b.compare("icmp ne", rest, 0), b.compare("icmp slt", b.op("xor", rest, y), 0))
    if op == "mod":
        return b.op("add", rest, b.select(wrong, y, 0))
    return b.op("add", b.op("sdiv", x, y), b.convert("sext", wrong, x.type))


def wrap(b: Builder, dtype: DataType, value: Value) -> Value:
    """Bring a computed value back to storage and so to the range and precision of its type."""
    if lanes_of(value.type)[1] == "i1":
        return value
    return casts.encode(b, dtype, value)


def scalar(c: Context, expr: Expr) -> Value:
    """Return a scalar expression as a stored element of its type."""
    b = c.b
    match expr:
        case Var():
            return b.load(storage(expr.type.dtype), c.scalars[expr])
        case Const(value=value, dtype=dtype):
            return constant(storage(dtype), int(dtype.encode(value)) if _as_code(dtype) else value)
        case BlockId(axis=axis):
            return c.block_ids[axis]
        case CastExpr(dtype=dtype, value=value):
            return casts.cast(b, dtype_of(value), dtype, scalar(c, value))
        case Op(op=op, args=args):
            dtype = dtype_of(args[-1])
            values = [casts.decode(b, dtype_of(a), scalar(c, a)) for a in args]
            return wrap(b, dtype, apply(b, op, dtype, values))
        case _:
            assert_never(expr)


def _as_code(dtype: DataType) -> bool:
    """Whether constants of a type are spelt by their code: floats that LLVM has no type for."""
    return (dtype.is_float or dtype.is_codebook) and storage(dtype).startswith("i")


def index(c: Context, expr: Expr) -> Value:
    """Return an integer expression as an i64."""
    value = scalar(c, expr)
    return c.b.convert("sext" if dtype_of(expr).is_signed else "zext", value, "i64")


def condition(c: Context, expr: Expr) -> Value:
    """Return a boolean expression as an i1."""
    return scalar(c, expr)


def splat(c: Context, expr: Expr, lanes: int) -> Value:
    """Return a scalar expression in its compute type, in every lane."""
    dtype = dtype_of(expr)
    value = casts.decode(c.b, dtype, scalar(c, expr))
    if value.name.startswith("%"):
        return c.b.splat(value)
    assert value.type == compute(dtype)
    return Value(vector(lanes, value.type), "<" + ", ".join([str(value)] * lanes) + ">")
