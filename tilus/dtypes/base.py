"""What every data type can do: name itself, decode codes to values, encode values to codes, pack codes to bytes.

A *code* is the unsigned integer that the bits of one element spell. A *value* is the number that it stands for.
Values are float64 or int64 here, because both hold every value of every type of up to 32 bits exactly: this package
is the definition that compiled casts are compared with, so it must not round twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilus.dtypes.packing import pack_bits, packed_nbytes, unpack_bits
from tilus.errors import DTypeError


@dataclass(frozen=True, slots=True, repr=False)
class DataType(ABC):
    """A type of one element. Compared by value, printed by name.

    Attributes
    ----------
    name : str
        The short name: ``u3``, ``f4e2m1``, ``nf4``.
    nbits : int
        Width of one code, in bits.
    """

    name: str
    nbits: int

    is_integer: ClassVar[bool] = False  # two's complement or unsigned binary
    is_float: ClassVar[bool] = False  # sign, exponent, mantissa
    is_codebook: ClassVar[bool] = False  # a table of values
    is_boolean: ClassVar[bool] = False
    is_bit_packed: ClassVar[bool] = True  # packed as a bit stream of nbits per element

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name

    @property
    @abstractmethod
    def is_signed(self) -> bool:
        """Whether some code stands for a negative value."""

    @property
    @abstractmethod
    def min_value(self) -> float | int:
        """The least finite value."""

    @property
    @abstractmethod
    def max_value(self) -> float | int:
        """The greatest finite value."""

    @abstractmethod
    def _decode(self, codes: NDArray[Any]) -> NDArray[Any]: ...

    @abstractmethod
    def _encode(self, values: NDArray[Any]) -> NDArray[Any]: ...

    @property
    def numpy_dtype(self) -> np.dtype[Any] | None:
        """The NumPy (or ml_dtypes) type whose items have exactly these bits, or None.

        None for every type of less than a byte: NumPy cannot store those packed.
        """
        return None

    @property
    def code_dtype(self) -> np.dtype[Any]:
        """The smallest unsigned NumPy integer that holds a code."""
        return np.dtype(f"u{max(1, self.nbits // 8)}")

    @property
    def num_codes(self) -> int:
        """How many codes there are: all below it are legal."""
        return 1 << self.nbits

    @property
    def bits_per_element(self) -> Fraction:
        """Bits of storage per packed element: `nbits`, but for types that are not a bit stream."""
        return Fraction(self.nbits)

    def decode(self, codes: ArrayLike) -> NDArray[Any]:
        """Return the values of codes.

        Parameters
        ----------
        codes : integers, any shape
            Each in [0, num_codes).

        Returns
        -------
        int64 for integer types (uint64 for ``u64``), bool for ``bool``, else float64; the shape of `codes`

        Raises
        ------
        DTypeError : if `codes` are not integers, or one is out of range.
        """
        return self._decode(self.check_codes(codes))

    def encode(self, values: ArrayLike) -> NDArray[Any]:
        """Return the codes of the nearest representable values.

        Ties go to the even code, among subnormals too; what is out of range takes the nearest end of the range.
        The classes say where they differ: wide floats overflow to infinity, codebooks break ties downwards.

        Parameters
        ----------
        values : real numbers, any shape
            Integers are taken as they are, everything else as float64.

        Returns
        -------
        unsigned integers of `code_dtype`, the shape of `values`

        Raises
        ------
        DTypeError : if `values` are not real numbers, or one is NaN and the type has no NaN.
        """
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            array = self._to_float64(array)
        return self._encode(array)

    def _to_float64(self, array: NDArray[Any]) -> NDArray[Any]:
        # The types of ml_dtypes are of kind V, and know how to become float64; object and complex arrays stop here.
        if array.dtype.kind in "V" and array.dtype.fields is None:
            return array.astype(np.float64)
        raise DTypeError(
            f"cannot encode values of NumPy type {array.dtype} as {self.name}: expected real numbers",
            hint="convert the values to float64, float32 or an integer type first",
        )

    def check_codes(self, codes: ArrayLike) -> NDArray[Any]:
        """Return codes as an array of `code_dtype`, or raise `DTypeError` if they are not codes of this type."""
        array = np.asarray(codes)
        if array.dtype.kind not in "biu" and array.size:
            raise DTypeError(
                f"codes of {self.name} are unsigned integers, got NumPy type {array.dtype}",
                hint=f"to convert values to codes, call {self.name}.encode(values)",
            )
        if array.size and (int(array.min()) < 0 or int(array.max()) >= self.num_codes):
            raise DTypeError(
                f"codes of {self.name} lie in [0, {self.num_codes}), got {int(array.min())} to {int(array.max())}"
            )
        return array.astype(self.code_dtype)

    def nbytes(self, count: int) -> int:
        """Return how many bytes `count` packed elements take."""
        return packed_nbytes(count, self.nbits)

    def pack(self, codes: ArrayLike) -> NDArray[np.uint8]:
        """Pack codes, read in row-major order, into a little-endian bit stream of `nbytes(codes.size)` bytes.

        Raises
        ------
        DTypeError : if something is not a code of this type.
        """
        return pack_bits(self.check_codes(codes), self.nbits)

    def unpack(self, data: NDArray[np.uint8] | bytes, count: int) -> NDArray[Any]:
        """Return `count` codes, shape (count,), from the bytes that `pack` made.

        Raises
        ------
        DTypeError : if there are not exactly `nbytes(count)` bytes.
        """
        return unpack_bits(self.check_bytes(data, count), self.nbits, count)

    def check_bytes(self, data: NDArray[np.uint8] | bytes, count: int) -> NDArray[np.uint8]:
        """Return `data` as a flat uint8 array, or raise `DTypeError` if it cannot hold exactly `count` elements."""
        array = np.frombuffer(data, np.uint8) if isinstance(data, bytes | bytearray | memoryview) else np.asarray(data)
        if array.dtype != np.uint8:
            raise DTypeError(f"packed {self.name} is an array of uint8, got NumPy type {array.dtype}")
        if count < 0 or array.size != self.nbytes(count):
            raise DTypeError(
                f"{count} elements of {self.name} take {self.nbytes(max(count, 0))} bytes, got {array.size}"
            )
        return array.reshape(-1)


def reject_nan(dtype: DataType, values: NDArray[Any]) -> None:
    """Raise `DTypeError` if some value is NaN, which `dtype` cannot say."""
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise DTypeError(
            f"cannot encode NaN as {dtype.name}, which has no NaN (first at flat index {np.isnan(values).argmax()})",
            hint="replace NaN by a number before encoding: numpy.nan_to_num does",
        )
