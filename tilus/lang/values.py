"""The values a kernel's names are bound to while its text is evaluated.

A *compile-time* value is any Python object: numbers, data types, layouts, functions. A *run-time* value is one of the
classes below: it stands for something that a block computes. Tuples may hold both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from tilus.dtypes import DataType
from tilus.ir.expr import Expr, Tensor, Var, dtype_of
from tilus.ir.types import RegisterType, SharedType

Value: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number known when the kernel runs, the same in every thread of a block."""

    expr: Expr

    @property
    def dtype(self) -> DataType:
        """Type of the number."""
        return dtype_of(self.expr)


@dataclass(frozen=True, slots=True)
class Pointer:
    """A parameter annotated `ptr[...]`."""

    var: Var

    @property
    def dtype(self) -> DataType:
        """Type of the elements it points at."""
        return self.var.type.dtype


@dataclass(frozen=True, slots=True)
class Tile:
    """A register tensor."""

    tensor: Tensor

    @property
    def type(self) -> RegisterType:
        """Its type; the layout is None unless the author fixed it."""
        assert isinstance(self.tensor.type, RegisterType)
        return self.tensor.type

    @property
    def dtype(self) -> DataType:
        """Type of the elements."""
        return self.type.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents."""
        return self.type.shape


@dataclass(frozen=True, slots=True)
class View:
    """A view of global memory, with the extents and strides it was made with."""

    tensor: Tensor
    shape: tuple[Value, ...]
    strides: tuple[Value, ...]

    @property
    def dtype(self) -> DataType:
        """Type of the elements."""
        return self.tensor.type.dtype


@dataclass(frozen=True, slots=True)
class SharedTile:
    """A tensor in shared memory."""

    tensor: Tensor

    @property
    def dtype(self) -> DataType:
        """Type of the elements."""
        return self.tensor.type.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents."""
        assert isinstance(self.tensor.type, SharedType)
        return self.tensor.type.shape


@dataclass(frozen=True, slots=True)
class Range:
    """What `range` and `tilus.range` make in a kernel: the bounds of a loop that the block runs."""

    start: Value
    stop: Value
    step: int
    unroll: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """An f-string with run-time values: a format with `{}` slots. Only `print` takes it."""

    format: str
    args: tuple[Value, ...]


RUNTIME = (Scalar, Pointer, Tile, View, SharedTile, Range, Text)
Number: TypeAlias = int | float
NUMBER = (bool, int, float)


def plain(value: Value) -> Value:
    """Return a NumPy number as a Python number, and anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def is_runtime(value: Value) -> bool:
    """Whether a value, or something inside a tuple, is known only when the kernel runs."""
    if isinstance(value, tuple):
        return any(is_runtime(item) for item in value)
    return isinstance(value, RUNTIME)


_DESCRIPTIONS: dict[type, Callable[[Any], str]] = {
    Scalar: lambda v: f"a run-time {v.dtype}",
    Pointer: lambda v: f"a pointer to {v.dtype}",
    Tile: lambda v: f"a tile of {v.dtype} with shape {v.shape}",
    View: lambda v: f"a {len(v.shape)}-dimensional global view of {v.dtype}",
    SharedTile: lambda v: f"a shared tensor of {v.dtype} with shape {v.shape}",
    Range: lambda v: "a range with run-time bounds",
    Text: lambda v: "an f-string with run-time values",
    type(None): lambda v: "None",
}


def describe(value: Value) -> str:
    """Return what a value is, for messages."""
    if type(value) in _DESCRIPTIONS:
        return _DESCRIPTIONS[type(value)](value)
    if isinstance(value, DataType):
        return f"the data type {value}"
    if isinstance(value, tuple) and is_runtime(value):
        return f"a tuple of {len(value)} values"
    text = repr(value)
    return f"the {type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
