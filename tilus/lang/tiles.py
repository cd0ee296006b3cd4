"""Functions on register tiles: making, changing shape, reducing, multiplying, and the elementwise operators."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from tilus.dtypes import DataType, f32, i32
from tilus.errors import TilusError
from tilus.ir.instructions import (
    Arange,
    ConvertLayout,
    Dot,
    Full,
    Reduce,
    Reshape,
    Slice,
    Transpose,
    View,
    result_type,
)
from tilus.ir.operators import OPERATORS
from tilus.lang.arguments import (
    ArgumentError,
    a_bit_layout,
    a_dim,
    a_dtype,
    a_flag,
    a_layout,
    a_sequence,
    a_shape,
    a_tile,
    an_element_dtype,
    an_int,
    an_integer,
    expected,
)
from tilus.lang.arithmetic import cast_expression, compute, convert, default_dtype, literal, operate
from tilus.lang.builder import Builder
from tilus.lang.primitives import LangFunction, function
from tilus.lang.values import NUMBER, Scalar, Tile, Value
from tilus.layouts import RegisterLayout


@function()
def full(b: Builder, shape: Value, value: Value, dtype: Value = None) -> Tile:
    """Make a tile with every element equal to a number or scalar, converted to `dtype`."""
    if not isinstance(value, (*NUMBER, Scalar)):
        raise expected("value", "a number or a scalar", value)
    kind = (
        (value.dtype if isinstance(value, Scalar) else default_dtype(value))
        if dtype is None
        else an_element_dtype(dtype, "dtype")
    )
    expr = cast_expression(value.expr, value.dtype, kind) if isinstance(value, Scalar) else literal(value, kind)
    return b.tile(Full(expr, a_shape(shape), loc=b.loc))


@function()
def zeros(b: Builder, shape: Value, dtype: Value) -> Tile:
    """Make a tile of zeros."""
    return zeros_tile(b, a_shape(shape), a_dtype(dtype, "dtype"))


def zeros_tile(b: Builder, shape: tuple[int, ...], dtype: DataType) -> Tile:
    """Append `full(0)`."""
    return b.tile(Full(literal(False if dtype.is_boolean else 0, dtype), shape, loc=b.loc))


@function()
def arange(b: Builder, shape_or_n: Value, dim: Value = 0, start: Value = 0) -> Tile:
    """Make a tile whose elements count along `dim`: `start + index[dim]`, in the type of `start` (i32 for a number)."""
    shape = a_shape(shape_or_n, "shape_or_n")
    first = an_integer(start, "start")
    return b.tile(Arange(first, shape, a_dim(dim, len(shape)), loc=b.loc))


@function()
def dot(build: Builder, a: Value, b: Value, acc: Value = None, acc_dtype: Value = None) -> Tile:
    """Multiply matrices: `a @ b + acc`.

    Parameters
    ----------
    a, b : tiles of one type, shapes (m, k) and (k, n), or (batch, m, k) and (batch, k, n)
    acc : tile (m, n) or (batch, m, n), optional
        Zeros by default.
    acc_dtype : data type
        Type of the zeros; by default i32 for integers and f32 for the others.
    """
    left, right = a_tile(a, "a"), a_tile(b, "b")
    if not 2 <= len(left.shape) == len(right.shape) <= 3 or left.shape[-1] != right.shape[-2]:
        message = f"dot multiplies (m, k) by (k, n), got shapes {left.shape} and {right.shape}"
        raise ArgumentError("b", message, "x.T transposes, x.reshape(...) changes the number of dimensions")
    if left.shape[:-2] != right.shape[:-2]:
        raise ArgumentError("b", f"batches differ: got shapes {left.shape} and {right.shape}")
    if left.dtype != right.dtype:
        message = f"dot multiplies tiles of one type, got {left.dtype} and {right.dtype}"
        raise ArgumentError("b", message, "convert one of them with .to(...)")
    if acc is not None:
        total = a_tile(acc, "acc")
        if acc_dtype is not None and acc_dtype != total.dtype:
            raise ArgumentError("acc_dtype", f"acc_dtype is {acc_dtype}, but acc is a tile of {total.dtype}")
    else:
        kind = (i32 if left.dtype.is_integer else f32) if acc_dtype is None else a_dtype(acc_dtype, "acc_dtype")
        total = zeros_tile(build, (*left.shape[:-1], right.shape[-1]), kind)
    return build.tile(Dot(left.tensor, right.tensor, total.tensor, loc=build.loc))


def _reduction(op: Literal["sum", "max", "min"], doc: str, elementwise: str) -> LangFunction:
    def reduce(b: Builder, x: Value, dim: Value, keepdims: Value = False) -> Tile:
        if isinstance(x, (*NUMBER, Scalar)):
            raise expected("x", "a tile", x, elementwise)
        tile = a_tile(x, "x")
        return b.tile(Reduce(tile.tensor, op, a_dim(dim, len(tile.shape)), a_flag(keepdims, "keepdims"), loc=b.loc))

    reduce.__doc__ = doc
    return LangFunction(reduce, op)


sum_ = _reduction("sum", "Add the elements along a dimension.", "one sums a tile along a dimension")
max_ = _reduction("max", "Take the maximum along a dimension.", "for the larger of two values use maximum(a, b)")
min_ = _reduction("min", "Take the minimum along a dimension.", "for the smaller of two values use minimum(a, b)")


@function()
def transpose(b: Builder, x: Value, perm: Value = None) -> Tile:
    """Reorder dimensions: dimension d of the result is dimension `perm[d]` of `x`; by default in reverse."""
    tile = a_tile(x, "x")
    rank = len(tile.shape)
    order = tuple(reversed(range(rank))) if perm is None else tuple(an_int(p, "perm") for p in a_sequence(perm))
    return b.tile(Transpose(tile.tensor, order, loc=b.loc))


def matrix_transpose(b: Builder, x: Tile) -> Tile:
    """Exchange the last two dimensions: of every matrix in a batch."""
    rank = len(x.shape)
    if rank < 2:
        raise TilusError(f"mT transposes matrices, got shape {x.shape}")
    return b.tile(Transpose(x.tensor, (*range(rank - 2), rank - 1, rank - 2), loc=b.loc))


@function()
def reshape(b: Builder, x: Value, shape: Value) -> Tile:
    """Give the elements, in row-major order, another shape; one extent may be -1."""
    tile = a_tile(x, "x")
    extents = tuple(an_int(n, "shape") for n in a_sequence(shape))
    if extents.count(-1) == 1:
        rest = -math.prod(extents)
        if rest <= 0 or tile.type.numel % rest:
            raise ArgumentError(
                "shape", f"cannot reshape {tile.shape} to {extents}: {tile.type.numel} elements do not divide"
            )
        extents = tuple(tile.type.numel // rest if n == -1 else n for n in extents)
    if math.prod(a_shape(extents)) != tile.type.numel:
        message = f"cannot reshape {tile.shape} to {extents}: {tile.type.numel} elements are not {math.prod(extents)}"
        raise ArgumentError("shape", message, "one extent may be -1: it is computed")
    return b.tile(Reshape(tile.tensor, extents, loc=b.loc))


@function()
def slice_tile(b: Builder, x: Value, offset: Value, shape: Value) -> Tile:
    """Take the part of a tile at a compile-time offset; `x[a:b, c:d]` is the same."""
    tile = a_tile(x, "x")
    where, extents = tuple(an_int(o, "offset") for o in a_sequence(offset)), a_shape(shape)
    if not len(where) == len(extents) == len(tile.shape):
        raise TilusError(
            f"a slice of a tile of shape {tile.shape} needs as many offsets and extents, got {where} and {extents}"
        )
    if not all(o >= 0 and o + n <= e for o, n, e in zip(where, extents, tile.shape, strict=True)):
        raise TilusError(f"the slice at {where} of shape {extents} leaves the tile of shape {tile.shape}")
    return b.tile(Slice(tile.tensor, where, extents, loc=b.loc))


@function()
def view(b: Builder, x: Value, dtype: Value, layout: Value, bits: Value = None) -> Tile:
    """Reinterpret each thread's bits as elements of another type in another layout: free.

    Local element i of n bits is bits [i*n, (i+1)*n), or lies where a bit layout says.
    """
    tile, kind, new = a_tile(x, "x"), an_element_dtype(dtype, "dtype"), a_layout(layout, "layout")
    places = None if bits is None else a_bit_layout(bits, "bits")
    old = b.layouts.get(tile.tensor)
    if old is not None:
        # `annotate` came after the definition: check as if it had not.
        known = replace(tile.tensor, type=replace(tile.type, layout=old))
        result_type(View(known, kind, new, places))
    return b.tile(View(tile.tensor, kind, new, places, loc=b.loc), new)


@function()
def convert_layout(b: Builder, x: Value, layout: Value) -> Tile:
    """Move elements between threads and registers so that the tile has another layout; values stay."""
    tile, new = a_tile(x, "x"), a_layout(layout, "layout")
    return b.tile(ConvertLayout(tile.tensor, new, loc=b.loc), new)


@function()
def annotate(b: Builder, x: Value, layout: Value) -> Tile:
    """Fix the layout of the variable that holds a tile, instead of leaving it to the compiler; returns the tile."""
    tile, wanted = a_tile(x, "x"), a_layout(layout, "layout")
    if tuple(wanted.shape) != tile.shape:
        raise ArgumentError("layout", f"the layout has shape {tuple(wanted.shape)}, the tile {tile.shape}")
    known = tile.type.layout or b.layouts.get(tile.tensor)
    if known is not None and known != wanted:
        raise ArgumentError(
            "layout",
            f"the tile has the layout {known} already",
            "convert_layout(x, layout) makes a tile with another one",
        )
    return tile if known is not None else _annotated(b, tile, wanted)


def _annotated(b: Builder, tile: Tile, layout: RegisterLayout) -> Tile:
    new = replace(tile.tensor, type=replace(tile.type, layout=layout))
    if tile.tensor in b.fresh and b.replace_result(tile.tensor, new) is not None:
        b.fresh.discard(tile.tensor)
        b.fresh.add(new)
        return Tile(new)
    b.layouts[tile.tensor] = layout
    return tile


def _elementwise(op: str, doc: str) -> LangFunction:
    if OPERATORS[op].arity == 1:

        def unary(b: Builder, x: Value) -> Value:
            return apply(b, op, x)

        unary.__doc__ = doc
        return LangFunction(unary, op)

    def binary(b: Builder, x: Value, y: Value) -> Value:
        return apply(b, op, x, y)

    binary.__doc__ = doc
    return LangFunction(binary, {"min": "minimum", "max": "maximum"}.get(op, op))


def apply(b: Builder, op: str, *values: Value) -> Value:
    """Apply an operator; compile-time numbers give a compile-time number."""
    if all(isinstance(v, NUMBER) for v in values):
        numbers = [float(v) if OPERATORS[op].domain == "float" else v for v in values]
        return compute(op, *numbers)
    return operate(b, op, *values)


exp = _elementwise("exp", "Raise e to the power x.")
exp2 = _elementwise("exp2", "Raise 2 to the power x.")
log = _elementwise("log", "Take the natural logarithm.")
log2 = _elementwise("log2", "Take the logarithm to base 2.")
sqrt = _elementwise("sqrt", "Take the square root.")
rsqrt = _elementwise("rsqrt", "Take the reciprocal of the square root.")
sin = _elementwise("sin", "Take the sine of an angle in radians.")
cos = _elementwise("cos", "Take the cosine of an angle in radians.")
tanh = _elementwise("tanh", "Take the hyperbolic tangent.")
erf = _elementwise("erf", "Take the error function.")
floor = _elementwise("floor", "Round down to an integer of the same float type.")
ceil = _elementwise("ceil", "Round up to an integer of the same float type.")
round_ = _elementwise("round", "Round to the nearest integer of the same float type, ties to even.")
abs_ = _elementwise("abs", "Take the absolute value.")
maximum = _elementwise("max", "Take the larger of two values, element by element.")
minimum = _elementwise("min", "Take the smaller of two values, element by element.")


@function()
def where(b: Builder, condition: Value, x: Value, y: Value) -> Value:
    """Take `x` where the condition holds and `y` elsewhere."""
    if isinstance(condition, bool):
        return x if condition else y
    return operate(b, "where", condition, x, y)


@function()
def sigmoid(b: Builder, x: Value) -> Value:
    """Compute 1 / (1 + exp(-x))."""
    if isinstance(x, NUMBER):
        return 1.0 / (1.0 + math.exp(-float(x)))
    return operate(b, "div", 1.0, operate(b, "add", 1.0, operate(b, "exp", operate(b, "neg", x))))


def _cdiv_numbers(a: int, b: int) -> int:
    return -(-a // b)


@function(outside=_cdiv_numbers)
def cdiv(build: Builder, a: Value, b: Value) -> Value:
    """Divide integers and round up; works on plain integers outside kernels too."""
    for name, value in (("a", a), ("b", b)):
        an_integer(value, name)
    if isinstance(b, int) and b == 0:
        raise ArgumentError("b", "cdiv by zero")
    if isinstance(a, int) and isinstance(b, int):
        return _cdiv_numbers(a, b)
    above = (
        operate(build, "add", a, b - 1) if isinstance(b, int) else operate(build, "sub", operate(build, "add", a, b), 1)
    )
    return operate(build, "floordiv", above, b)


@function()
def to(b: Builder, x: Value, dtype: Value) -> Value:
    """Convert to another type.

    To a float: nearest even. Float to integer: towards zero. Integer to integer: the low bits.
    """
    return convert(b, x, an_element_dtype(dtype, "dtype"))
