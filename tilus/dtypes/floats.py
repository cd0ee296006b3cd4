"""Floating-point types: a sign bit, X exponent bits, Y mantissa bits; and the scale that is an exponent alone.

One formula reads them all. With exponent field e, mantissa field m and bias b,

    e > 0:  (-1)^s * 2^(e - b) * (1 + m / 2^Y)          normal
    e = 0:  (-1)^s * 2^(1 - b) * (0 + m / 2^Y)          subnormal, and zero

and one formula writes them: the magnitude of a code, read as an integer, counts the representable magnitudes in
order. So a magnitude in the binade 2^E is the integer ((E - (1 - b)) << Y) + round(magnitude / 2^(E - Y)), where E is
at least 1 - b; a mantissa that rounds up to the next binade carries into the exponent by itself. Without mantissa bits
every significand is 1: no digit is even, and a tie goes to the larger magnitude (IEEE 754-2019, 4.3.1).

Sources: OCP 8-bit Floating Point Specification (OFP8) 1.0 for f8e4m3, f8e5m2; OCP Microscaling Formats (MX) 1.0 for
f6e2m3, f6e3m2, f4e2m1 and e8m0; IEEE 754 for the rest.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tilus.dtypes.base import DataType, reject_nan
from tilus.errors import DTypeError


class Specials(enum.Enum):
    """Which codes are not finite numbers."""

    NONE = "none"
    FN = "fn"  # the greatest magnitude code is NaN, and there is no infinity (OFP8 E4M3)
    IEEE = "ieee"  # a full exponent field is infinity (mantissa 0) or NaN


@dataclass(frozen=True, slots=True, repr=False)
class Float(DataType):
    """A floating-point type.

    `encode` rounds to nearest, ties to even, among subnormals too, and keeps the sign of zero. What lies beyond the
    greatest finite value saturates if `saturates` (as the conversions of PTX with ``.satfinite`` do, infinity
    included), and else becomes infinity (IEEE). NaN keeps its sign; it raises `DTypeError` where there is none.

    Attributes
    ----------
    exponent_bits, mantissa_bits : int
        X and Y.
    specials : Specials
    saturates : bool
        Whether overflow becomes the greatest finite value.
    padding : int
        Unused low bits: written as zero, not read. (``tf32`` is 19 bits in the top of 32.)
    """

    exponent_bits: int
    mantissa_bits: int
    specials: Specials = Specials.NONE
    saturates: bool = True
    padding: int = 0

    is_float: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.exponent_bits < 1 or self.mantissa_bits < 0:
            raise DTypeError(f"{self.name} needs at least 1 exponent bit and 0 mantissa bits")
        if self.nbits != 1 + self.exponent_bits + self.mantissa_bits + self.padding:
            raise DTypeError(
                f"{self.name} has 1 + {self.exponent_bits} + {self.mantissa_bits} bits, its name says {self.nbits}"
            )
        if not (self.saturates or self.has_inf):
            raise DTypeError(f"{self.name} must saturate: it has no infinity")

    @property
    def bias(self) -> int:
        """What is subtracted from the exponent field: 2^(X-1) - 1."""
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def has_inf(self) -> bool:
        """Whether some code is infinity."""
        return self.specials is Specials.IEEE

    @property
    def has_nan(self) -> bool:
        """Whether some code is NaN."""
        return self.specials is not Specials.NONE

    @property
    def is_signed(self) -> bool:
        return True

    @property
    def min_value(self) -> float:
        return -self.max_value

    @property
    def max_value(self) -> float:
        return float(self._decode(np.asarray(self.max_code, self.code_dtype)))

    @property
    def smallest_subnormal(self) -> float:
        """The least positive value: 2^(1 - bias - Y)."""
        return float(2.0 ** (1 - self.bias - self.mantissa_bits))

    @property
    def max_code(self) -> int:
        """The code of `max_value`."""
        return self._max_magnitude << self.padding

    @property
    def nan_code(self) -> int | None:
        """The code of the positive (quiet) NaN, or None."""
        match self.specials:
            case Specials.NONE:
                return None
            case Specials.FN:
                return self._full_magnitude << self.padding
            case Specials.IEEE:
                return (self._inf_magnitude | (1 << (self.mantissa_bits - 1))) << self.padding

    @property
    def numpy_dtype(self) -> np.dtype[Any] | None:
        return _NUMPY.get(self.name)

    @property
    def _full_magnitude(self) -> int:
        return (1 << (self.exponent_bits + self.mantissa_bits)) - 1

    @property
    def _inf_magnitude(self) -> int:
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits

    @property
    def _max_magnitude(self) -> int:
        match self.specials:
            case Specials.NONE:
                return self._full_magnitude
            case Specials.FN:
                return self._full_magnitude - 1
            case Specials.IEEE:
                return self._inf_magnitude - 1

    def _decode(self, codes: NDArray[Any]) -> NDArray[Any]:
        if self.nbits <= 16:
            return np.take(_table(self), codes)
        return decode_fields(self, codes)

    def _encode(self, values: NDArray[Any]) -> NDArray[Any]:
        if not self.has_nan:
            reject_nan(self, values)
        native = _EXACT_CASTS.get(self.name)
        if native is not None and (values.dtype.kind != "f" or values.dtype.itemsize <= native.widest):
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                return values.astype(native.dtype).view(self.code_dtype)
        return encode_fields(self, values.astype(np.float64))


def decode_fields(dtype: Float, codes: NDArray[Any]) -> NDArray[np.float64]:
    """Return the values of codes by the formula at the head of this module."""
    bits = codes.astype(np.uint64) >> np.uint64(dtype.padding)
    mantissa_bits = np.uint64(dtype.mantissa_bits)
    magnitude = bits & np.uint64(dtype._full_magnitude)
    exponent = (magnitude >> mantissa_bits).astype(np.int32)
    mantissa = magnitude & np.uint64((1 << dtype.mantissa_bits) - 1)
    mantissa = np.where(exponent > 0, mantissa | (np.uint64(1) << mantissa_bits), mantissa)
    with np.errstate(over="ignore"):  # of infinity and NaN, which are put in below
        value = np.ldexp(mantissa.astype(np.float64), np.maximum(exponent, 1) - (dtype.bias + dtype.mantissa_bits))
    value = np.where(magnitude > np.uint64(dtype._max_magnitude), np.nan, value)
    if dtype.has_inf:
        value = np.where(magnitude == np.uint64(dtype._inf_magnitude), np.inf, value)
    negative = bits > np.uint64(dtype._full_magnitude)
    return np.where(negative, -value, value)


def encode_fields(dtype: Float, values: NDArray[np.float64]) -> NDArray[Any]:
    """Return the codes of values by the formula at the head of this module."""
    least = 1 - dtype.bias
    finite = np.where(np.isfinite(values), np.abs(values), 0.0)
    binade = np.where(finite > 0, np.maximum(np.frexp(finite)[1] - 1, least), least)
    steps = np.rint(np.ldexp(finite, dtype.mantissa_bits - binade)).astype(np.int64)
    magnitude = ((binade.astype(np.int64) - least) << dtype.mantissa_bits) + steps
    top = dtype._max_magnitude if dtype.saturates else dtype._inf_magnitude
    magnitude = np.where(np.isinf(values), top, np.minimum(magnitude, top))
    if dtype.nan_code is not None:
        magnitude = np.where(np.isnan(values), dtype.nan_code >> dtype.padding, magnitude)
    sign = np.signbit(values).astype(np.uint64) << np.uint64(dtype.exponent_bits + dtype.mantissa_bits)
    codes: NDArray[np.uint64] = (magnitude.astype(np.uint64) | sign) << np.uint64(dtype.padding)
    return codes.astype(dtype.code_dtype)


@cache
def _table(dtype: Float) -> NDArray[np.float64]:
    table = decode_fields(dtype, np.arange(dtype.num_codes, dtype=np.uint64))
    table.setflags(write=False)
    return table


@dataclass(frozen=True, slots=True)
class _Cast:
    """A conversion of NumPy that rounds once, from floats of up to `widest` bytes."""

    dtype: np.dtype[Any]
    widest: int


_NUMPY: dict[str, np.dtype[Any]] = {
    "f8e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "e8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "tf32": np.dtype(np.float32),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
}
# ml_dtypes goes from float64 to bfloat16 through float32 and so rounds twice.
_EXACT_CASTS = {
    "f16": _Cast(_NUMPY["f16"], 8),
    "f32": _Cast(_NUMPY["f32"], 8),
    "f64": _Cast(_NUMPY["f64"], 8),
}


def mini_float(exponent_bits: int, mantissa_bits: int) -> Float:
    """Return ``f{1+X+Y}eXmY``, of 2 to 8 bits. Only f8e4m3 and f8e5m2 have codes that are not finite (OFP8)."""
    nbits = 1 + exponent_bits + mantissa_bits
    specials = {(4, 3): Specials.FN, (5, 2): Specials.IEEE}.get((exponent_bits, mantissa_bits), Specials.NONE)
    if not 2 <= nbits <= 8:
        raise DTypeError(f"f{nbits}e{exponent_bits}m{mantissa_bits}: small floats have 2 to 8 bits")
    return Float(f"f{nbits}e{exponent_bits}m{mantissa_bits}", nbits, exponent_bits, mantissa_bits, specials)


@dataclass(frozen=True, slots=True, repr=False)
class Exponent(DataType):
    """``e8m0``, the scale of the MX formats: code c is 2^(c - 127), and 255 is NaN. No sign and no zero.

    `encode` takes the nearest power of two, ties (1.5 * 2^k) to the larger one, and saturates: 0 gives 2^-127.
    A negative value raises `DTypeError`.
    """

    is_float: ClassVar[bool] = True

    BIAS: ClassVar[int] = 127
    NAN_CODE: ClassVar[int] = 255

    @property
    def is_signed(self) -> bool:
        return False

    @property
    def min_value(self) -> float:
        return 2.0**-127

    @property
    def max_value(self) -> float:
        return 2.0**127

    @property
    def numpy_dtype(self) -> np.dtype[Any] | None:
        return _NUMPY.get(self.name)

    def _decode(self, codes: NDArray[Any]) -> NDArray[Any]:
        value = np.ldexp(1.0, codes.astype(np.int32) - self.BIAS)
        return np.where(codes == self.NAN_CODE, np.nan, value)

    def _encode(self, values: NDArray[Any]) -> NDArray[Any]:
        wide = values.astype(np.float64)
        if (wide < 0).any():
            raise DTypeError(f"{self.name} is a scale without a sign: cannot encode {wide[wide < 0].flat[0]}")
        fraction, exponent = np.frexp(np.where(np.isfinite(wide), wide, 1.0))
        floor = exponent.astype(np.int64) - 1 + self.BIAS
        code = np.clip(floor + (fraction >= 0.75), 0, self.NAN_CODE - 1)
        code = np.where((wide == 0), 0, np.where(np.isinf(wide), self.NAN_CODE - 1, code))
        return np.where(np.isnan(wide), self.NAN_CODE, code).astype(np.uint8)
