"""Functions that round an f32 to a narrow type: to nearest even, also among subnormals, saturating.

They are the formula of `tilus.dtypes.floats` in integer arithmetic. Above the least normal number of the type the bits
of the f32 are rounded in place; below it, adding 2^23 quanta of the type in f32 makes the hardware round to one.
"""

from __future__ import annotations

import numpy as np

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.context import Context
from tilus.codegen.cuda.cpp import Expr, Name, Stmt, call
from tilus.dtypes import Codebook, Float, PackedTernary, f32

_SIGN, _INFINITY = cpp.bits(1 << 31), cpp.bits(0x7F800000)
_VALUE, _MAGNITUDE = Name("value"), Name("u")
_SEARCH_TABLE = 16  # more codes than this are searched by halving


def _magnitude() -> Stmt:
    return cpp.Declare("u32", "u", call("__float_as_uint", _VALUE) & cpp.bits(0x7FFFFFFF))


def _pattern(value: float) -> cpp.Int:
    return cpp.bits(int(f32.encode(value)))


def encode_float(ctx: Context, dtype: Float) -> str:
    """Return the function for a float of at most 8 bits. NaN becomes the type's NaN, else its greatest value."""
    name = f"encode_{dtype.name}"
    if name in ctx.functions:
        return name
    u, m, fraction = _MAGNITUDE, Name("m"), 23 - dtype.mantissa_bits
    is_nan = cpp.binary(">", u, _INFINITY)
    quantum = 2.0 ** (1 - dtype.bias - dtype.mantissa_bits)
    offset = 2.0**23 * quantum
    below = call("__float_as_uint", cpp.Binary("+", call("__uint_as_float", u), cpp.float_literal(offset)))
    half = 1 << (fraction - 1)
    # Without mantissa bits every significand is 1 and odd: a tie goes up (see `tilus.dtypes.floats`).
    tie: Expr = u + cpp.bits(half) if dtype.mantissa_bits == 0 else u + cpp.bits(half - 1) + ((u >> fraction) & 1)
    normal = cpp.binary("-", tie >> fraction, cpp.bits((127 - dtype.bias) << dtype.mantissa_bits))
    least = _pattern(2.0 ** (1 - dtype.bias))
    sign: Expr = call("__float_as_uint", _VALUE) >> 31
    body: list[Stmt] = [_magnitude()]
    if dtype.nan_code is None:
        sign = cpp.Conditional(is_nan, cpp.bits(0), sign)
    body.append(cpp.Declare("u32", "s", sign, constant=True))
    if dtype.nan_code is not None:
        body.append(cpp.Declare("bool", "nan", is_nan, constant=True))
    body.append(cpp.Set(u, call("min", u, _pattern(dtype.max_value))))
    rounded = cpp.Conditional(cpp.binary("<", u, least), below - _pattern(offset), normal)
    body.append(cpp.Declare("u32", "m", rounded, constant=True))
    magnitude: Expr = m
    if dtype.nan_code is not None:
        magnitude = cpp.Conditional(Name("nan"), cpp.bits(dtype.nan_code), m)
    body.append(cpp.Jump("return", magnitude | (Name("s") << (dtype.nbits - 1))))
    return ctx.add_function(cpp.Function(name, "u32", ("float value",), tuple(body)))


def encode_tf32(ctx: Context) -> str:
    """Return the function that rounds to the 10 mantissa bits of tf32; it overflows to infinity."""
    u, sign = _MAGNITUDE, call("__float_as_uint", _VALUE) & _SIGN
    rounded = (u + cpp.bits(0xFFF) + ((u >> 13) & 1)) & cpp.bits(0xFFFFE000)
    quiet = cpp.Conditional(cpp.binary(">", u, _INFINITY), cpp.bits(0x7FC00000), rounded)
    body = (_magnitude(), cpp.Jump("return", sign | quiet))
    return ctx.add_function(cpp.Function("encode_tf32", "u32", ("float value",), body))


def encode_exponent(ctx: Context) -> str:
    """Return the function for e8m0: the nearest power of two, ties up; magnitudes only."""
    u = _MAGNITUDE
    normal = call("min", (u + cpp.bits(1 << 22)) >> 23, cpp.bits(254))
    # Below 2^-126 lies only 2^-127; the border is 1.5 * 2^-127.
    subnormal = cpp.convert("u32", cpp.binary(">=", u, cpp.bits(3 << 21)))
    code = cpp.Conditional(cpp.binary("<", u, cpp.bits(1 << 23)), subnormal, normal)
    nan = cpp.Conditional(cpp.binary(">", u, _INFINITY), cpp.bits(255), Name("code"))
    body = (_magnitude(), cpp.Declare("u32", "code", code, constant=True), cpp.Jump("return", nan))
    return ctx.add_function(cpp.Function("encode_e8m0", "u32", ("float value",), body))


def _borders(dtype: Codebook | PackedTernary) -> tuple[np.ndarray, list[int]]:
    """Return the midpoints between neighbouring values, and the code below the first and above each."""
    spare = dtype.spare if isinstance(dtype, Codebook) else 0
    values, codes = np.unique(np.asarray(dtype.table[: len(dtype.table) - spare], np.float64), return_index=True)
    return values[:-1] + (values[1:] - values[:-1]) / 2, [int(c) for c in codes]


def _f32_below(values: np.ndarray) -> np.ndarray:
    """Return the greatest f32 that is not above each value: an f32 exceeds both or neither."""
    near = values.astype(np.float32)
    return np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near)


def encode_codebook(ctx: Context, dtype: Codebook | PackedTernary, identifier: str, type_: str) -> str:
    """Return the function that finds the nearest entry; a tie takes the smaller, NaN the greatest."""
    name = f"encode_{identifier}" + ("_f64" if type_ == "double" else "")
    if name in ctx.functions:
        return name
    borders, codes = _borders(dtype)
    limits = borders if type_ == "double" else _f32_below(borders)
    body = (
        _select_chain(limits, codes, type_) if len(codes) <= _SEARCH_TABLE else _search(ctx, limits, codes, type_, name)
    )
    return ctx.add_function(cpp.Function(name, "u32", (f"{type_} value",), tuple(body)))


def _literal(value: float, type_: str) -> Expr:
    return cpp.float_literal(float(value)) if type_ == "float" else cpp.double_literal(float(value))


def _select_chain(limits: np.ndarray, codes: list[int], type_: str) -> list[Stmt]:
    code = Name("code")
    body: list[Stmt] = [cpp.Declare("u32", "code", cpp.bits(codes[0]))]
    for limit, above in zip(limits, codes[1:], strict=True):
        not_above = cpp.binary("<=", _VALUE, _literal(limit, type_))  # false for NaN
        body.append(cpp.Set(code, cpp.Conditional(not_above, code, cpp.bits(above))))
    return [*body, cpp.Jump("return", code)]


def _search(ctx: Context, limits: np.ndarray, codes: list[int], type_: str, name: str) -> list[Stmt]:
    patterns = limits.astype(np.float32).view(np.uint32) if type_ == "float" else limits.view(np.uint64)
    borders = ctx.add_table(
        cpp.Table("u32" if type_ == "float" else "u64", f"table_{name}_borders", tuple(int(p) for p in patterns))
    )
    found = ctx.add_table(cpp.Table("u32", f"table_{name}_codes", tuple(codes)))
    at, step = Name("at"), 1 << (len(codes) - 1).bit_length()
    body: list[Stmt] = [cpp.Declare("u32", "at", cpp.bits(0))]
    while step > 1:
        step //= 2
        there = borders[at + (step - 1)]
        border = call("__uint_as_float", there) if type_ == "float" else call("__longlong_as_double", there)
        inside = cpp.binary("<=", at + step, cpp.bits(len(limits)))
        above = cpp.Binary("&&", inside, cpp.Unary("!", cpp.binary("<=", _VALUE, border)))
        body.append(cpp.If(above, (cpp.Set(at, at + step),)))
    return [*body, cpp.Jump("return", found[at])]
