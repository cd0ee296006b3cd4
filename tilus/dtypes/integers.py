"""Integers of 1 to 8, 16, 32 and 64 bits, and the boolean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tilus.dtypes.base import DataType, reject_nan
from tilus.errors import DTypeError

WIDTHS = (*range(1, 9), 16, 32, 64)


@dataclass(frozen=True, slots=True, repr=False)
class Integer(DataType):
    """An unsigned or two's complement integer. One signed bit is {0, -1}.

    `encode` rounds to the nearest integer, ties to even, and saturates; NaN raises `DTypeError`.
    """

    signed: bool

    is_integer: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.nbits not in WIDTHS:
            raise DTypeError(f"integers have 1 to 8, 16, 32 or 64 bits, not {self.nbits}")

    @property
    def is_signed(self) -> bool:
        return self.signed

    @property
    def min_value(self) -> int:
        return -(1 << (self.nbits - 1)) if self.signed else 0

    @property
    def max_value(self) -> int:
        return (1 << (self.nbits - self.signed)) - 1

    @property
    def numpy_dtype(self) -> np.dtype[Any] | None:
        return np.dtype(f"{'i' if self.signed else 'u'}{self.nbits // 8}") if self.nbits >= 8 else None

    def _decode(self, codes: NDArray[Any]) -> NDArray[Any]:
        if not self.signed:
            return codes.astype(np.uint64 if self.nbits == 64 else np.int64)
        shift = 64 - self.nbits  # the sign bit goes to the top, and an arithmetic shift brings it back
        return (codes.astype(np.int64) << shift) >> shift

    def _encode(self, values: NDArray[Any]) -> NDArray[Any]:
        whole = self._round(values) if values.dtype.kind == "f" else self._clip(values)
        codes: NDArray[np.uint64] = whole.astype(np.uint64) & np.uint64(self.num_codes - 1)
        return codes.astype(self.code_dtype)

    def _clip(self, values: NDArray[Any]) -> NDArray[Any]:
        if values.dtype.kind == "b":
            values = values.astype(np.uint8)
        # NumPy refuses bounds that the array's own type cannot hold; such a bound cannot bind either.
        own = np.iinfo(values.dtype)
        clipped: NDArray[Any] = np.clip(values, max(self.min_value, own.min), min(self.max_value, own.max))
        return clipped

    def _round(self, values: NDArray[Any]) -> NDArray[Any]:
        reject_nan(self, values)
        limit = 2.0 ** (self.nbits - self.signed)  # one past max_value, which float64 may not hold
        whole = np.clip(np.rint(values.astype(np.float64)), float(self.min_value), limit)
        over = whole >= limit
        exact = np.where(over, 0.0, whole).astype(np.int64 if self.signed else np.uint64)
        return np.where(over, exact.dtype.type(self.max_value), exact)


@dataclass(frozen=True, slots=True, repr=False)
class Boolean(DataType):
    """A truth value in one byte, as C++, NumPy and torch store it.

    The one-bit number is ``u1``. Every code but 0 is true; `encode` gives 1 to every value but 0, NaN included.
    """

    is_boolean: ClassVar[bool] = True

    @property
    def is_signed(self) -> bool:
        return False

    @property
    def min_value(self) -> int:
        return 0

    @property
    def max_value(self) -> int:
        return 1

    @property
    def numpy_dtype(self) -> np.dtype[Any] | None:
        return np.dtype(np.bool_)

    def _decode(self, codes: NDArray[Any]) -> NDArray[Any]:
        return codes.astype(np.bool_)

    def _encode(self, values: NDArray[Any]) -> NDArray[Any]:
        return values.astype(np.bool_).astype(np.uint8)


def integer(nbits: int, signed: bool) -> Integer:
    """Return the integer type of a width."""
    return Integer(f"{'i' if signed else 'u'}{nbits}", nbits, signed)
