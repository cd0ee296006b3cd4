"""Types that are a table of values: nf4, ternary, any table of 2^n numbers; and five ternary digits in a byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilus.dtypes.base import DataType, reject_nan
from tilus.errors import DTypeError


@dataclass(frozen=True, slots=True, repr=False)
class Codebook(DataType):
    """A type whose code c is the value ``table[c]``.

    `encode` takes the nearest entry; halfway between two, the smaller value; of equal entries, the first. (An
    even code means nothing in a table.) NaN raises `DTypeError`.

    Attributes
    ----------
    table : tuple of float
        2^nbits finite values, in any order.
    spare : int
        So many codes at the end are decoded, but never made by `encode`.
    """

    table: tuple[float, ...]
    spare: int = 0

    is_codebook: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.nbits <= 8 or len(self.table) != 1 << self.nbits:
            raise DTypeError(f"{self.name}: a codebook has 2, 4, 8, ... or 256 values, got {len(self.table)}")
        if not all(math.isfinite(value) for value in self.table):
            raise DTypeError(f"{self.name}: the values of a codebook are finite, got {self.table}")
        if not 0 <= self.spare < len(self.table):
            raise DTypeError(f"{self.name}: {self.spare} spare codes of {len(self.table)} leave nothing to encode")

    @property
    def is_signed(self) -> bool:
        return min(self.table) < 0

    @property
    def min_value(self) -> float:
        return min(self._encodable)

    @property
    def max_value(self) -> float:
        return max(self._encodable)

    @property
    def _encodable(self) -> tuple[float, ...]:
        return self.table[: len(self.table) - self.spare]

    def _decode(self, codes: NDArray[Any]) -> NDArray[Any]:
        return np.take(np.asarray(self.table, np.float64), codes)

    def _encode(self, values: NDArray[Any]) -> NDArray[Any]:
        reject_nan(self, values)
        borders, codes = _borders(self)
        return codes[np.searchsorted(borders, values.astype(np.float64), side="left")]


@cache
def _borders(dtype: Codebook) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Return the midpoints between neighbours of the sorted table, and the code below and above each."""
    values, codes = np.unique(np.asarray(dtype._encodable, np.float64), return_index=True)
    return values[:-1] + (values[1:] - values[:-1]) / 2, codes.astype(np.uint8)


def codebook(name: str, table: Sequence[float]) -> Codebook:
    """Return a type whose code c is ``table[c]``.

    Parameters
    ----------
    name : str
        What it is printed as. Two codebooks are equal if name and table are.
    table : sequence of 2, 4, 8, ... 256 finite numbers

    Raises
    ------
    DTypeError : if the table has another length, or holds infinity or NaN.
    """
    values = tuple(float(value) for value in table)
    return Codebook(name, max(len(values) - 1, 0).bit_length(), values)


# "NormalFloat" of QLoRA (Dettmers et al. 2023, appendix E): quantiles of the normal distribution scaled to [-1, 1],
# with an exact zero. These are the float32 values that checkpoints of that format were written with.
NF4 = codebook(
    "nf4",
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
)

# Value = code - 1, so that a kernel may treat it as u2 with zero point 1. The fourth code goes on with that rule: it
# is 2, and `encode` never makes it.
TERNARY = Codebook("t2", 2, (-1.0, 0.0, 1.0, 2.0), spare=1)

_TRITS = 5  # 3^5 = 243 <= 256
_POWERS = np.asarray([1, 3, 9, 27, 81], np.uint8)


@dataclass(frozen=True, slots=True, repr=False)
class PackedTernary(DataType):
    """``t1.6``: ternary, packed five to a byte. Codes are 0, 1, 2 for -1, 0, 1.

    No whole number of bits holds a ternary digit, so the two meanings of a width part here: `nbits` is 2, the
    width of a code on its own, and `bits_per_element` is 8/5, the width in memory. A byte is the number
    c0 + 3*c1 + 9*c2 + 27*c3 + 81*c4, at most 242; the last byte is filled up with code 0.
    """

    is_codebook: ClassVar[bool] = True
    is_bit_packed: ClassVar[bool] = False

    @property
    def table(self) -> tuple[float, ...]:
        """The values of the three codes."""
        return (-1.0, 0.0, 1.0)

    @property
    def is_signed(self) -> bool:
        return True

    @property
    def min_value(self) -> float:
        return -1.0

    @property
    def max_value(self) -> float:
        return 1.0

    @property
    def num_codes(self) -> int:
        return 3

    @property
    def bits_per_element(self) -> Fraction:
        return Fraction(8, _TRITS)

    def _decode(self, codes: NDArray[Any]) -> NDArray[Any]:
        return codes.astype(np.float64) - 1.0

    def _encode(self, values: NDArray[Any]) -> NDArray[Any]:
        return TERNARY._encode(values)

    def nbytes(self, count: int) -> int:
        return -(-count // _TRITS)

    def pack(self, codes: ArrayLike) -> NDArray[np.uint8]:
        flat = self.check_codes(codes).reshape(-1)
        padded = np.zeros((self.nbytes(flat.size), _TRITS), np.uint8)
        padded.reshape(-1)[: flat.size] = flat
        return padded @ _POWERS

    def unpack(self, data: NDArray[np.uint8] | bytes, count: int) -> NDArray[Any]:
        stream = self.check_bytes(data, count)
        if stream.size and stream.max() >= 3**_TRITS:
            raise DTypeError(
                f"byte {int(stream.max())} at {int(stream.argmax())} is not five ternary digits: expected at most 242",
                hint="the data was not packed as t1.6, or is damaged",
            )
        return ((stream[:, None] // _POWERS) % 3).reshape(-1)[:count]


PACKED_TERNARY = PackedTernary("t1.6", 2)
