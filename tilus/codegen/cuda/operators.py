"""The operators of the IR on values, one element at a time: a table from (operator, kind of type) to C++.

Integers wrap; `floordiv` and `mod` round towards minus infinity; minimum and maximum keep NaN, as NumPy's do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.context import Context
from tilus.codegen.cuda.cpp import Expr, Name, call
from tilus.codegen.cuda.types import c_type, signed, unsigned
from tilus.dtypes import DataType
from tilus.errors import InternalError

Rule: TypeAlias = Callable[..., Expr]

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "xor": "^", "or": "|"}
# Sum and maximum of truth values are "any", the minimum is "all".
_LOGIC = {"and": "&", "xor": "^", "or": "|", "add": "|", "max": "|", "min": "&"}
_COMPARE = {"lt": "<", "le": "<="}
# Functions of the CUDA math library, without the `f` that marks single precision.
_MATH = {
    "exp": "exp", "exp2": "exp2", "log": "log", "log2": "log2", "sqrt": "sqrt", "rsqrt": "rsqrt", "sin": "sin",
    "cos": "cos", "tanh": "tanh", "erf": "erf", "floor": "floor", "ceil": "ceil", "round": "rint", "abs": "fabs",
}  # fmt: skip


def apply(ctx: Context, op: str, dtype: DataType, *args: Expr, positive: bool = False) -> Expr:
    """Return an operator applied to values of one type (`where`: a boolean and two of the type).

    Parameters
    ----------
    ctx : Context
    op : str
    dtype : DataType
        Of the operands; comparisons give a boolean.
    *args : Expr
        As values of the type are held. A result may have bits beyond those of a narrow type.
    positive : bool
        Both operands are known not to be negative.
    """
    if op in ("eq", "ne"):
        return cpp.Binary("==" if op == "eq" else "!=", *args)
    if op == "where":
        return cpp.Conditional(*args)
    if dtype.is_boolean:
        return _boolean(op, *args)
    if op in _COMPARE:
        return cpp.Binary(_COMPARE[op], *(signed(dtype, a) for a in args))
    if dtype.is_integer:
        return _integer(ctx, op, dtype, args, positive)
    return _float(ctx, op, c_type(dtype) == "double", *args)


def _boolean(op: str, *args: Expr) -> Expr:
    if op == "not":
        return cpp.Unary("!", *args)
    return cpp.Binary(_LOGIC[op], *args)


def _integer(ctx: Context, op: str, dtype: DataType, args: tuple[Expr, ...], positive: bool) -> Expr:
    a, b = args[0], args[-1]
    if op in ("floordiv", "mod"):
        return _division(ctx, op, dtype, a, b, positive)
    if op in ("shl", "shr"):
        return _shift(op, dtype, a, b)
    if op in ("add", "mul"):
        return a + b if op == "add" else a * b
    if op in _INFIX:
        return cpp.binary(_INFIX[op], a, b)
    match op:
        case "neg":
            return cpp.Unary("-", a)
        case "not":
            return cpp.Unary("~", a)
        case "abs":
            return cpp.Conditional(cpp.Binary("<", signed(dtype, a), cpp.ZERO), cpp.Unary("-", a), a)
        case "min" | "max":
            return unsigned(dtype, call(op, _same_type(dtype, a), _same_type(dtype, b)))
        case _:
            raise InternalError(f"no operator {op} of {dtype}")


def _shift(op: str, dtype: DataType, a: Expr, b: Expr) -> Expr:
    if op == "shr":
        return unsigned(dtype, signed(dtype, a) >> b)
    if dtype.nbits < 32 and dtype.is_signed:
        return cpp.convert("i32", cpp.convert("u32", a) << b)
    # A bare literal would be shifted as a signed int.
    return (cpp.convert(c_type(dtype), a) if isinstance(a, cpp.Int) else a) << b


def _same_type(dtype: DataType, value: Expr) -> Expr:
    """Return a signed or unsigned integer of exactly one C++ type, as overloads need it."""
    kind = f"{'i' if dtype.is_signed else 'u'}{max(dtype.nbits, 32)}"
    return cpp.convert(kind, value)


def _division(ctx: Context, op: str, dtype: DataType, a: Expr, b: Expr, positive: bool) -> Expr:
    """Divide towards minus infinity; by a power of two that is a shift or a mask for every sign."""
    if isinstance(b, cpp.Int) and b.value > 0 and b.value & (b.value - 1) == 0:
        shift = b.value.bit_length() - 1
        if op == "mod":
            return a & (b.value - 1)
        return a >> shift if positive else unsigned(dtype, signed(dtype, a) >> shift)
    if positive or not dtype.is_signed:
        return cpp.binary("/" if op == "floordiv" else "%", a, b)
    kind = f"i{max(dtype.nbits, 32)}"
    return unsigned(dtype, call(_floor_function(ctx, op, kind), signed(dtype, a), signed(dtype, b)))


def _floor_function(ctx: Context, op: str, kind: str) -> str:
    """Return the function that divides as Python does. C++ rounds towards zero."""
    name = f"floor_{'div' if op == 'floordiv' else 'mod'}_{kind}"
    if name not in ctx.functions:
        a, b, q, r = (Name(x) for x in "abqr")
        signs_differ = cpp.Binary("<", cpp.binary("^", r, b), cpp.ZERO)
        mend = cpp.Binary("&&", cpp.binary("!=", r, 0), signs_differ)
        result = cpp.Conditional(mend, q - 1, q) if op == "floordiv" else cpp.Conditional(mend, r + b, r)
        body: list[cpp.Stmt] = [cpp.Declare(kind, "r", a % b, constant=True)]
        if op == "floordiv":
            body.insert(0, cpp.Declare(kind, "q", a // b, constant=True))
        ctx.add_function(cpp.Function(name, kind, (f"{kind} a", f"{kind} b"), (*body, cpp.Jump("return", result))))
    return name


def _float(ctx: Context, op: str, double: bool, *args: Expr) -> Expr:
    a, b = args[0], args[-1]
    if op in _INFIX:
        return cpp.Binary(_INFIX[op], a, b)
    if op in _MATH:
        return call(_MATH[op] + ("" if double else "f"), a)
    if op == "neg":
        return cpp.Unary("-", a)
    if op in ("min", "max"):
        return call(_extreme_of_doubles(ctx, op), a, b) if double else ctx.ptx(f"{op}_f32", a, b)
    if op in ("floordiv", "mod"):
        raise InternalError(f"{op} takes integers")
    raise InternalError(f"no operator {op} of floats")


def _extreme_of_doubles(ctx: Context, op: str) -> str:
    name = f"extreme_{op}_f64"
    if name not in ctx.functions:
        a, b = Name("a"), Name("b")
        is_nan = cpp.binary("!=", a, a)
        keep = cpp.Binary("||", is_nan, cpp.Binary("<" if op == "min" else ">", a, b))
        # Where b is NaN the comparison fails and b is returned.
        body = (cpp.Jump("return", cpp.Conditional(keep, a, b)),)
        ctx.add_function(cpp.Function(name, "double", ("double a", "double b"), body))
    return name
