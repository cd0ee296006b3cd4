"""Types of scalars, pointers and tensors: values, compared by value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from tilus.dtypes import DataType
from tilus.layouts import RegisterLayout, SharedLayout


@dataclass(frozen=True, slots=True)
class ScalarType:
    """One value, the same in every thread of the block."""

    dtype: DataType


@dataclass(frozen=True, slots=True)
class PointerType:
    """The address of elements in global memory. Elements narrower than a byte are a little-endian bit stream."""

    dtype: DataType


@dataclass(frozen=True, slots=True)
class GlobalType:
    """A view of global memory. Its run-time extents and strides stand in the `global_view` that defines it."""

    dtype: DataType
    rank: int


@dataclass(frozen=True, slots=True)
class SharedType:
    """A tile in shared memory; `layout` maps an index to an element offset (None until inferred)."""

    dtype: DataType
    shape: tuple[int, ...]
    layout: SharedLayout | None = None


@dataclass(frozen=True, slots=True)
class RegisterType:
    """A tile spread over the registers of a block's threads; `layout` says how (None until inferred)."""

    dtype: DataType
    shape: tuple[int, ...]
    layout: RegisterLayout | None = None

    def __post_init__(self) -> None:
        if self.layout is not None and tuple(self.layout.shape) != self.shape:
            raise ValueError(f"layout {self.layout} has shape {self.layout.shape}, expected {self.shape}")

    @property
    def numel(self) -> int:
        """Number of elements of the tile."""
        return math.prod(self.shape)


TensorType: TypeAlias = GlobalType | SharedType | RegisterType
Type: TypeAlias = ScalarType | PointerType | TensorType
