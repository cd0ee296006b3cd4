"""Operators on numbers, scalars and tiles: which types meet, and what instruction comes of it.

Compile-time numbers take the type of the other operand. Scalars of different types are promoted: integers to the wider
one, integer with float to the float, floats to the wider one. Tiles are never converted behind the author's back: two
tiles, or a tile and a scalar, must have one type, except that an integer scalar widens to the type of an integer tile.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilus.dtypes import DataType, bf16, boolean, f16, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64
from tilus.errors import TilusError
from tilus.ir.expr import CastExpr, Const, Expr, Op, Tensor, add, mul
from tilus.ir.instructions import Cast, Elementwise
from tilus.ir.instructions.register import broadcast_shapes, check_domain
from tilus.ir.operators import OPERATORS
from tilus.lang.builder import Builder
from tilus.lang.values import NUMBER, RUNTIME, Number, Scalar, Tile, Value, describe

# Types that arithmetic is done in. Others are for storage: they are converted first.
COMPUTED = frozenset((boolean, i8, i16, i32, i64, u8, u16, u32, u64, f16, bf16, f32, f64))


# The IR has < and <= only: the others are these with their operands exchanged.
EXCHANGED = {"gt": "lt", "ge": "le"}
_WRITTEN = {"gt": ">", "ge": ">=", "neg": "-", "not": "~"}


def symbol(op: str) -> str:
    """Return what the user wrote for an operator."""
    return _WRITTEN.get(op) or OPERATORS[op].symbol or op


def default_dtype(value: Number) -> DataType:
    """Return the type of a Python number that nothing else gives a type."""
    return boolean if isinstance(value, bool) else i32 if isinstance(value, int) else f32


def literal(value: Number, dtype: DataType) -> Const:
    """Return a compile-time number in a type, or raise if it does not fit."""
    if dtype.is_boolean:
        if not isinstance(value, bool):
            raise TilusError(f"expected a boolean, got the number {value!r}", hint="compare it: x != 0")
        return Const(value, dtype)
    if dtype.is_integer:
        if isinstance(value, float):
            raise TilusError(
                f"{value!r} is no {dtype}", hint="convert the other operand with .to(f32), or write an integer"
            )
        if not dtype.min_value <= value <= dtype.max_value:
            raise TilusError(
                f"{value!r} does not fit {dtype} ({dtype.min_value} to {dtype.max_value})",
                hint=f"use a number in that range, or a wider type than {dtype}",
            )
        return Const(int(value), dtype)
    number = float(value)
    if np.isfinite(number) and abs(number) > dtype.max_value:
        raise TilusError(f"{value!r} does not fit {dtype}, whose largest value is {dtype.max_value}")
    return Const(number, dtype)


def with_type(value: Any) -> str:
    """Return a Python value with the name of its type, as an error shows it."""
    name = type(value).__name__
    return f"{value!r}, {'an' if name[0] in 'aeiou' else 'a'} {name}"


def number_as(kind: DataType | type, value: Any) -> Number:
    """Return a compile-time number as an annotation says: a Python type, or a data type that it must fit.

    It stays a compile-time number: a `float` for a float type, an `int` for an integer type.
    """
    exact = kind is int or (isinstance(kind, DataType) and kind.is_integer)
    wanted = bool if kind is bool or kind == boolean else int if exact else float
    # A bool is an int to Python, but never meant as one.
    flag = isinstance(value, bool) and wanted is not bool
    if flag or not isinstance(value, (int, float) if wanted is float else wanted):
        name = kind.__name__ if isinstance(kind, type) else str(kind)
        raise TilusError(f"must be {name}, got {with_type(value)}")
    number: Number = wanted(value)
    if isinstance(kind, DataType) and not kind.is_boolean:
        literal(number, kind)
    return number


def expression(value: Value, dtype: DataType | None = None) -> Expr:
    """Return the IR expression of a scalar or number.

    Without a dtype a number becomes a bool, an i32 (an i64 if it does not fit) or an f32.
    """
    if isinstance(value, Scalar):
        return value.expr
    if dtype is None:
        dtype = default_dtype(value)
        if dtype == i32 and not i32.min_value <= value <= i32.max_value:
            dtype = i64
    return literal(value, dtype)


def cast_expression(expr: Expr, source: DataType, dtype: DataType) -> Expr:
    """Return a scalar expression in another type."""
    if source == dtype:
        return expr
    # Exact for every literal: an integer stays one, a float that is asked for was meant.
    if isinstance(expr, Const) and dtype.is_float and not source.is_boolean:
        return literal(expr.value, dtype)
    return CastExpr(dtype, expr)


def convert(b: Builder, value: Value, dtype: DataType) -> Value:
    """Return a scalar, tile or number converted to a type."""
    if isinstance(value, Tile):
        return value if value.dtype == dtype else b.tile(Cast(value.tensor, dtype, loc=b.loc))
    if isinstance(value, Scalar):
        return Scalar(cast_expression(value.expr, value.dtype, dtype))
    return Scalar(literal(value, dtype))


def promote(a: DataType, b: DataType) -> DataType | None:
    """Return the type in which scalars of two types meet; None if there is none."""
    if a == b:
        return a
    if a.is_integer and b.is_integer:
        wide, narrow = (a, b) if a.nbits >= b.nbits else (b, a)
        if wide.is_signed == narrow.is_signed or (wide.is_signed and wide.nbits > narrow.nbits):
            return wide
        return None
    if a.is_float and b.is_float:
        return f32 if a.nbits == b.nbits else (a if a.nbits > b.nbits else b)
    if a.is_float or b.is_float:
        floating, other = (a, b) if a.is_float else (b, a)
        return floating if other.is_integer else None
    return None


def operate(b: Builder, op: str, *values: Value) -> Value:
    """Apply a row of `OPERATORS` to numbers, scalars and tiles, and return a value of the same kinds."""
    for value in values:
        if not isinstance(value, (*NUMBER, Scalar, Tile)):
            raise TilusError(
                f"{symbol(op)} takes numbers, scalars and tiles, not {describe(value)}", hint=_how_to_load(value)
            )
    operands = values[1:] if op == "where" else values
    dtype = meet(op, operands)
    _check_number(op, operands[-1], dtype)
    _check(op, dtype, [v for v in operands if not isinstance(v, NUMBER)] or [dtype])
    if op in EXCHANGED:
        op, operands = EXCHANGED[op], operands[::-1]
    condition = (_condition(values[0]),) if op == "where" else ()
    if any(isinstance(v, Tile) for v in values):
        _check_shapes([v.shape for v in values if isinstance(v, Tile)])
        args = (*condition, *(_tile_operand(v, dtype) for v in operands))
        return b.tile(Elementwise(op, args, loc=b.loc))
    args_ = (*condition, *(_scalar_operand(v, dtype) for v in operands))
    return fold(op, args_, b)


def _check_number(op: str, value: Value, dtype: DataType) -> None:
    """Check a compile-time divisor or shift."""
    if not isinstance(value, NUMBER):
        return
    if op in ("floordiv", "mod") and value == 0:
        raise TilusError(f"{symbol(op)} by zero")
    if op in ("shl", "shr") and not 0 <= value < dtype.nbits:
        raise TilusError(f"a shift of {dtype} is by 0 to {dtype.nbits - 1} bits, got {value!r}")


def fold(op: str, args: tuple[Any, ...], b: Builder) -> Value:
    """Return a scalar operator's result, with what is trivial computed now."""
    match op, args:
        case ("add", (x, y)):
            expr = add(x, y)
        case ("mul", (x, y)):
            expr = mul(x, y)
        case _:
            expr = Op(op, args)
    return Scalar(expr if not isinstance(expr, Op) else Op(expr.op, expr.args, loc=b.loc))


def _check_shapes(shapes: list[tuple[int, ...]]) -> None:
    try:
        broadcast_shapes(*shapes)
    except TilusError as error:
        raise TilusError(error.message, hint="aligned at the last dimension, extents must be equal or 1") from None


def _how_to_load(value: Value) -> str | None:
    hints = {
        "Pointer": "read one element with p[i], or a tile with load_global(global_view(p, shape=...), ...)",
        "View": "load a tile of it with load_global(view, offset=..., shape=...)",
        "SharedTile": "load a tile of it with load_shared(s)",
    }
    return hints.get(type(value).__name__)


def _condition(value: Value) -> Tensor | Expr:
    if isinstance(value, bool):
        return Const(value, boolean)
    if not isinstance(value, Scalar | Tile) or value.dtype != boolean:
        raise TilusError(f"the condition must be boolean, got {describe(value)}", hint="compare it: x != 0")
    return value.tensor if isinstance(value, Tile) else value.expr


def _check(op: str, dtype: DataType, operands: list[Any]) -> None:
    """Check that an operator is defined on a type."""
    if op == "div" and dtype.is_integer:
        raise TilusError(
            f"/ of {_both(operands)} has no integer result",
            hint="use // to round down, or convert the operands with .to(f32)",
        )
    row = OPERATORS[EXCHANGED.get(op, op)]
    if row.domain != "any" and dtype not in COMPUTED:
        raise TilusError(
            f"{symbol(op)} is not defined on {dtype}, which is a type for storage",
            hint="convert with .to(f16) or .to(f32) first",
        )
    try:
        check_domain(row.name, dtype)
    except TilusError:
        wanted = {
            "float": "floats",
            "integer": "integers",
            "bits": "integers and booleans",
            "number": "numbers",
            "any": "values",
        }
        domain = row.domain
        hint = "convert with .to(f32)" if domain == "float" else "convert with .to(i32)"
        raise TilusError(f"{symbol(op)} takes {wanted[domain]}, not {dtype}", hint=hint) from None


def _both(operands: list[Any]) -> str:
    return " and ".join(str(getattr(v, "dtype", v)) for v in operands)


def meet(op: str, values: tuple[Value, ...]) -> DataType:
    """Return the type in which operands meet, or raise."""
    tiles = [v for v in values if isinstance(v, Tile)]
    scalars = [v for v in values if isinstance(v, Scalar)]
    if tiles:
        return _meet_tiles(op, tiles, scalars)
    numbers = [v for v in values if not isinstance(v, Scalar)]
    if not scalars:
        kinds = {default_dtype(v) for v in numbers}
        return f32 if f32 in kinds else i32 if i32 in kinds else boolean
    dtype = scalars[0].dtype
    for other in scalars[1:]:
        both = promote(dtype, other.dtype)
        if both is None:
            raise _no_common_type(op, dtype, other.dtype)
        dtype = both
    wants_float = any(isinstance(v, float) for v in numbers) and dtype.is_integer
    return f32 if wants_float else dtype


def _meet_tiles(op: str, tiles: list[Tile], scalars: list[Scalar]) -> DataType:
    dtype = tiles[0].dtype
    for tile in tiles[1:]:
        if tile.dtype != dtype:
            raise _no_common_type(op, dtype, tile.dtype)
    for scalar in scalars:
        widens = scalar.dtype.is_integer and dtype.is_integer and promote(scalar.dtype, dtype) == dtype
        if scalar.dtype != dtype and not widens:
            raise _no_common_type(op, dtype, scalar.dtype)
    return dtype


def _no_common_type(op: str, a: DataType, b: DataType) -> TilusError:
    better = b if b.is_float and (not a.is_float or b.nbits > a.nbits) else a
    return TilusError(
        f"operands of {symbol(op)} have different types: {a} and {b}",
        hint=f"convert one of them, for instance with .to({better})",
    )


def _tile_operand(value: Value, dtype: DataType) -> Tensor | Expr:
    return value.tensor if isinstance(value, Tile) else _scalar_operand(value, dtype)


def _scalar_operand(value: Value, dtype: DataType) -> Expr:
    if isinstance(value, Scalar):
        return cast_expression(value.expr, value.dtype, dtype)
    return literal(value, dtype)


def compute(op: str, *values: Number) -> Number:
    """Apply an operator to compile-time numbers."""
    with np.errstate(all="ignore"):  # log(0) is -inf and no warning, as it is at run time
        result: Number = np.asarray(OPERATORS[op].apply(*map(np.asarray, values))).item()
    return result


def condition(value: Value, where: str) -> Expr | bool:
    """Return a compile-time truth value or a boolean expression, or raise."""
    if isinstance(value, Scalar):
        if value.dtype != boolean:
            raise TilusError(f"{where} must be boolean, got {describe(value)}", hint="compare it: x != 0")
        return bool(value.expr.value) if isinstance(value.expr, Const) else value.expr
    if isinstance(value, Tile):
        raise TilusError(
            f"{where} must be one boolean for the whole block, got {describe(value)}",
            hint="choose element by element with where(condition, a, b)",
        )
    if isinstance(value, RUNTIME):
        raise TilusError(f"{where} must be boolean, got {describe(value)}")
    return bool(value)
