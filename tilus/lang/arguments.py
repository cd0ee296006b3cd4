"""Checks of what the functions of the language are called with. Errors name the parameter, so that a caret can too."""

from __future__ import annotations

import math
import operator
from typing import Any

from tilus.dtypes import DataType
from tilus.errors import DTypeError, TilusError
from tilus.ir.expr import Expr
from tilus.lang.arithmetic import expression
from tilus.lang.values import Pointer, Scalar, SharedTile, Tile, Value, View, describe, is_runtime
from tilus.layouts import BitLayout, RegisterLayout

MAX_ELEMENTS = 1 << 24  # far beyond what a block's registers or shared memory hold


class ArgumentError(TilusError):
    """One argument of a call is wrong; the call says where it stands."""

    def __init__(self, parameter: str, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.parameter = parameter


def expected(parameter: str, what: str, value: Value, hint: str | None = None) -> ArgumentError:
    """Return the error for an argument of the wrong kind."""
    return ArgumentError(parameter, f"{parameter} must be {what}, got {describe(value)}", hint)


def a_tile(value: Value, parameter: str) -> Tile:
    """Return the argument if it is a register tile."""
    if not isinstance(value, Tile):
        raise expected(parameter, "a register tile", value, _FROM_MEMORY.get(type(value)))
    return value


_FROM_MEMORY: dict[type, str] = {
    View: "load it first: load_global(view, offset=..., shape=...)",
    SharedTile: "load it first: load_shared(s)",
    Pointer: "load it first: load_global(global_view(p, shape=...), offset=..., shape=...)",
    Scalar: "make a tile of it with full(shape, value, dtype)",
}


def a_view(value: Value, parameter: str) -> View:
    """Return the argument if it is a global view."""
    if not isinstance(value, View):
        hint = "make one with global_view(pointer, shape=...)" if isinstance(value, Pointer) else None
        raise expected(parameter, "a global view", value, hint)
    return value


def a_shared(value: Value, parameter: str) -> SharedTile:
    """Return the argument if it is a shared tensor."""
    if not isinstance(value, SharedTile):
        raise expected(parameter, "a shared tensor", value, "make one with alloc_shared(dtype, shape)")
    return value


def a_pointer(value: Value, parameter: str) -> Pointer:
    """Return the argument if it is a pointer."""
    if not isinstance(value, Pointer):
        raise expected(parameter, "a pointer parameter", value)
    return value


def a_dtype(value: Value, parameter: str) -> DataType:
    """Return the argument if it is a data type that has elements."""
    if not isinstance(value, DataType):
        raise expected(parameter, "a data type", value, "for instance f16")
    return value


def an_element_dtype(value: Value, parameter: str) -> DataType:
    """Return the argument if it is a data type whose elements are bits on their own."""
    dtype = a_dtype(value, parameter)
    if not dtype.is_bit_packed:
        raise DTypeError(f"{dtype} has no elements of whole bits", hint="unpack it from u8")
    return dtype


def a_layout(value: Value, parameter: str) -> RegisterLayout:
    """Return the argument if it is a register layout."""
    if not isinstance(value, RegisterLayout):
        raise expected(parameter, "a register layout", value, "for instance spatial(8, 4).local(1, 2)")
    return value


def a_bit_layout(value: Value, parameter: str) -> BitLayout:
    """Return the argument if it is a bit layout."""
    if not isinstance(value, BitLayout):
        raise expected(parameter, "a bit layout", value, "for instance parse_bits('bits(8, 16, \"bbbbbbbbaaaaaaaa\")')")
    return value


def layout_for(value: Value, shape: tuple[int, ...]) -> RegisterLayout | None:
    """Return the argument `layout` if it is None or a layout of the shape."""
    if value is None:
        return None
    layout = a_layout(value, "layout")
    if tuple(layout.shape) != shape:
        raise ArgumentError("layout", f"the layout has shape {tuple(layout.shape)}, the tile {shape}")
    return layout


def an_int(value: Value, parameter: str) -> int:
    """Return the argument if it is a compile-time integer."""
    if is_runtime(value):
        raise expected(parameter, "a compile-time integer", value, "make it a keyword-only parameter of the kernel")
    try:
        return operator.index(value)
    except TypeError:
        raise expected(parameter, "an integer", value) from None


def a_flag(value: Value, parameter: str) -> bool:
    """Return the argument if it is True or False."""
    if not isinstance(value, bool):
        raise expected(parameter, "True or False at compile time", value)
    return value


def a_sequence(value: Value) -> tuple[Any, ...]:
    """Return a tuple or list as a tuple, and anything else as a tuple of one."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def a_shape(value: Value, parameter: str = "shape") -> tuple[int, ...]:
    """Return the argument if it is a shape of compile-time integers; one integer is a shape of one dimension."""
    shape = tuple(an_int(item, parameter) for item in a_sequence(value))
    if any(n <= 0 for n in shape):
        raise ArgumentError(parameter, f"extents must be positive, got {shape}")
    if math.prod(shape) > MAX_ELEMENTS:
        raise ArgumentError(parameter, f"{shape} is too large for one block: more than {MAX_ELEMENTS} elements")
    return shape


def integers(value: Value, parameter: str) -> tuple[Expr, ...]:
    """Return the expressions of run-time or compile-time integers, alone or in a tuple."""
    items = a_sequence(value)
    for item in items:
        whole = item.dtype.is_integer if isinstance(item, Scalar) else isinstance(item, int)
        if not whole:
            raise expected(parameter, "integers", item)
    return tuple(expression(item) for item in items)


def an_integer(value: Value, parameter: str) -> Expr:
    """Return the expression of one run-time or compile-time integer."""
    if isinstance(value, tuple | list):
        raise expected(parameter, "an integer", value)
    return integers(value, parameter)[0]


def ranked(value: Value, rank: int, parameter: str, what: str) -> tuple[Expr, ...]:
    """Return integers, one for each dimension of something."""
    exprs = integers(value, parameter)
    if len(exprs) != rank:
        raise ArgumentError(parameter, f"{what} has {rank} dimensions, but {parameter} has {len(exprs)}")
    return exprs


def a_dim(value: Value, rank: int, parameter: str = "dim") -> int:
    """Return a dimension, counted from the end if negative."""
    dim = an_int(value, parameter)
    if not -rank <= dim < rank:
        raise ArgumentError(parameter, f"{parameter} {dim} is outside a tile of {rank} dimensions")
    return dim % rank


def access_dims(value: Value, rank: int, tile_rank: int, parameter: str, what: str) -> tuple[int, ...]:
    """Return the dimensions of a tensor that a tile runs along; by default the last ones."""
    if value is None:
        if tile_rank > rank:
            raise ArgumentError("shape", f"{what} has {rank} dimensions, the tile {tile_rank}")
        return tuple(range(rank - tile_rank, rank))
    dims = tuple(an_int(item, parameter) for item in a_sequence(value))
    if len(dims) != tile_rank:
        raise ArgumentError(parameter, f"the tile has {tile_rank} dimensions, but {parameter} names {len(dims)}")
    if list(dims) != sorted(set(dims)) or not all(0 <= d < rank for d in dims):
        raise ArgumentError(parameter, f"{parameter} {dims} must increase within 0..{rank - 1}")
    return dims
