"""Types of scalars, pointers and tensors: values, compared by value. `str` is their text form."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from tilus.dtypes import Codebook, DataType, dtype
from tilus.errors import DTypeError
from tilus.layouts import RegisterLayout, SharedLayout


@cache
def dtype_text(t: DataType) -> str:
    """Return what the parser reads as this data type: its name, or a codebook's whole table if no name is known."""
    try:
        if dtype(t.name) == t:
            return t.name
    except DTypeError:
        pass
    if not isinstance(t, Codebook):
        raise DTypeError(f"{t.name} has no text form: it is neither a named type nor a codebook")
    return f"codebook({json.dumps(t.name)}, ({', '.join(map(repr, t.table))}), {t.spare})"


def _tile_text(t: SharedType | RegisterType) -> str:
    layout = "" if t.layout is None else f", {t.layout}"
    return f"{dtype_text(t.dtype)}, {t.shape}{layout}"


@dataclass(frozen=True, slots=True)
class ScalarType:
    """One value, the same in every thread of the block."""

    dtype: DataType

    def __str__(self) -> str:
        return dtype_text(self.dtype)


@dataclass(frozen=True, slots=True)
class PointerType:
    """The address of elements in global memory. Elements narrower than a byte are a little-endian bit stream."""

    dtype: DataType

    def __str__(self) -> str:
        return f"ptr[{dtype_text(self.dtype)}]"


@dataclass(frozen=True, slots=True)
class GlobalType:
    """A view of global memory. Its run-time extents and strides stand in the `global_view` that defines it."""

    dtype: DataType
    rank: int

    def __str__(self) -> str:
        return f"global[{dtype_text(self.dtype)}, {self.rank}]"


@dataclass(frozen=True, slots=True)
class SharedType:
    """A tile in shared memory; `layout` maps an index to an element offset (None until inferred)."""

    dtype: DataType
    shape: tuple[int, ...]
    layout: SharedLayout | None = None

    def __str__(self) -> str:
        return f"shared[{_tile_text(self)}]"


@dataclass(frozen=True, slots=True)
class RegisterType:
    """A tile spread over the registers of a block's threads; `layout` says how (None until inferred)."""

    dtype: DataType
    shape: tuple[int, ...]
    layout: RegisterLayout | None = None

    def __post_init__(self) -> None:
        if self.layout is not None and tuple(self.layout.shape) != self.shape:
            raise ValueError(f"layout {self.layout} has shape {self.layout.shape}, expected {self.shape}")

    def __str__(self) -> str:
        return f"register[{_tile_text(self)}]"

    @property
    def numel(self) -> int:
        """Number of elements of the tile."""
        return math.prod(self.shape)


TensorType: TypeAlias = GlobalType | SharedType | RegisterType
Type: TypeAlias = ScalarType | PointerType | TensorType
