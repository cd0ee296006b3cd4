"""Binary floating-point formats: exact decoding, and encoding with every rounding of PTX.

Values travel as float64, which holds every value of every narrower format. A sum or a product-sum that float64 cannot
hold is kept *rounded to odd*: inexact results get an odd last bit. Rounding such a value again, to a format with at
least two bits less, gives what rounding the exact value would (Boldo and Melquiond, "When double rounding is odd").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any  # arithmetic on arrays of any type is `Any` to NumPy's stubs, so a stricter name checks nothing


@dataclass(frozen=True, slots=True)
class Format:
    """A floating-point format.

    Attributes
    ----------
    name : str
    exponent, mantissa : int
        Bits of each.
    infinity, nan : int or None
        Their codes, without sign; None where there is none.
    largest : int
        Code of the largest finite value.
    container : int
        Bits of the word that holds it; `shift` zeros stand below.
    """

    name: str
    exponent: int
    mantissa: int
    infinity: int | None
    nan: int | None
    largest: int
    container: int
    shift: int = 0
    signed: bool = True

    @property
    def bias(self) -> int:
        """What is added to an exponent."""
        return (1 << (self.exponent - 1)) - 1

    @property
    def word(self) -> np.dtype[Any]:
        """The unsigned type that holds a code."""
        return np.dtype(f"u{self.container // 8}")


def _ieee(name: str, exponent: int, mantissa: int, container: int, nan: int, shift: int = 0) -> Format:
    top = ((1 << exponent) - 1) << mantissa
    return Format(name, exponent, mantissa, top, nan, top - 1, container, shift)


# The NaNs are those that arithmetic makes (PTX ISA, "Floating-point instructions": the canonical NaN).
F16 = _ieee("f16", 5, 10, 16, 0x7FFF)
BF16 = _ieee("bf16", 8, 7, 16, 0x7FFF)
TF32 = _ieee("tf32", 8, 10, 32, 0x7FFFF >> 1, shift=13)
F32 = _ieee("f32", 8, 23, 32, 0x7FFFFFFF)
F64 = _ieee("f64", 11, 52, 64, 0x7FFFFFFFFFFFFFFF)
E5M2 = _ieee("e5m2", 5, 2, 8, 0x7F)
E4M3 = Format("e4m3", 4, 3, None, 0x7F, 0x7E, 8)
E3M2 = Format("e3m2", 3, 2, None, None, 0x1F, 8)
E2M3 = Format("e2m3", 2, 3, None, None, 0x1F, 8)
E2M1 = Format("e2m1", 2, 1, None, None, 0x7, 8)
UE8M0 = Format("ue8m0", 8, 0, None, 0xFF, 0xFE, 8, signed=False)
FORMATS = {f.name: f for f in (F16, BF16, TF32, F32, F64, E5M2, E4M3, E3M2, E2M3, E2M1, UE8M0)}


@lru_cache(maxsize=16)
def _values(form: Format) -> Array:
    """Return the value of every code of a format of 8 bits."""
    codes = np.arange(256)
    nbits = form.exponent + form.mantissa
    magnitude = codes & ((1 << nbits) - 1)
    if not form.signed:
        return np.where(codes == form.nan, np.nan, np.ldexp(1.0, codes - form.bias))
    exponent, fraction = magnitude >> form.mantissa, magnitude & ((1 << form.mantissa) - 1)
    normal = exponent > 0
    value = np.ldexp(
        (fraction + (normal << form.mantissa)).astype(float), np.maximum(exponent, 1) - form.bias - form.mantissa
    )
    if form.infinity is not None:
        value[magnitude == form.infinity] = np.inf
        value[magnitude > form.infinity] = np.nan
    elif form.nan is not None:
        value[magnitude == form.nan] = np.nan
    return np.where(codes >> nbits & 1, -value, value)


def decode(codes: Array, form: Format) -> Array:
    """Return the values of codes, as float64."""
    match form.name:
        case "f64":
            return codes.view(np.float64)
        case "f32":
            return codes.view(np.float32).astype(np.float64)
        case "tf32":  # the tensor cores ignore the low bits
            return (codes & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
        case "f16":
            return codes.view(np.float16).astype(np.float64)
        case "bf16":
            return (codes.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return _values(form)[codes]


def _away(x: Array) -> Array:
    whole = np.trunc(x)
    return np.where(np.abs(x - whole) >= 0.5, whole + np.sign(x), whole)


INTEGRAL: dict[str, Callable[[Array], Array]] = {
    "rn": np.rint,
    "rz": np.trunc,
    "rm": np.floor,
    "rp": np.ceil,
    "rna": _away,
}


def encode(values: Array, form: Format, rounding: str = "rn", *, satfinite: bool = False) -> Array:
    """Return the codes of values.

    Parameters
    ----------
    values : array of float64
        Exact, or rounded to odd.
    form : Format
    rounding : str
        `rn` to nearest even, `rna` to nearest and away from zero on ties, `rz`, `rm` (down), `rp` (up).
    satfinite : bool
        What is too large becomes the largest finite value, not infinity.
    """
    if form is F64:
        return values.view(np.uint64)
    if not form.signed:
        return _encode_power(values, form, rounding)
    if rounding == "rn" and not satfinite and form in (F16, F32):
        return _encode_fast(values, form)
    finite = np.where(np.isfinite(values), values, 0.0)
    least = 1 - form.bias - form.mantissa
    exponent = np.where(finite == 0, least, np.frexp(finite)[1] - 1 - form.mantissa)
    last = np.maximum(exponent, least)
    whole = INTEGRAL[rounding](np.ldexp(finite, -last))
    code = ((last - least).astype(np.int64) << form.mantissa) + np.abs(whole).astype(np.int64)
    code = np.where(np.isinf(values), form.largest + 1, code)
    negative = np.signbit(values)
    code = np.where(code > form.largest, _overflow(values, form, rounding, satfinite), code)
    code |= negative.astype(np.int64) << (form.exponent + form.mantissa)
    nan = np.isnan(values)
    if nan.any():
        code[nan] = form.largest if form.nan is None else form.nan
    return (code << form.shift).astype(form.word)


def _overflow(values: Array, form: Format, rounding: str, satfinite: bool) -> Array:
    """Return the codes, without sign, of what is larger than the largest value."""
    beyond = form.nan if form.infinity is None else form.infinity
    if satfinite or beyond is None:
        return np.full(values.shape, form.largest)
    toward_zero = {"rz": np.isfinite(values), "rm": values > 0, "rp": values < 0}.get(rounding, np.zeros(1, bool))
    return np.where(toward_zero & np.isfinite(values), form.largest, beyond)


def _encode_fast(values: Array, form: Format) -> Array:
    narrow = values.astype(np.float16 if form is F16 else np.float32)
    code = narrow.view(form.word)
    nan = np.isnan(values)
    if nan.any():
        code[nan] = form.nan
    return code


def _encode_power(values: Array, form: Format, rounding: str) -> Array:
    """Encode as a power of two: `rz` to the next smaller, `rp` to the next larger; the sign is dropped."""
    fraction, exponent = np.frexp(np.where(np.isfinite(values), np.abs(values), 1.0))
    code = exponent - 1 + form.bias + ((fraction > 0.5) & (rounding == "rp"))
    code = np.where(values == 0, 0, np.clip(code, 0, form.largest))
    code = np.where(np.isinf(values), form.largest, code)
    return np.where(np.isnan(values), form.largest + 1, code).astype(form.word)


def add_to_odd(a: Array, b: Array) -> Array:
    """Return the sum of float64 values, rounded to odd."""
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    word = total.view(np.int64)
    fix = (error != 0) & np.isfinite(total) & (word & 1 == 0)
    if not fix.any():
        return total
    # The word of a float counts magnitudes: one step up or down is the neighbour, and that is odd.
    step = np.where(np.signbit(error) == np.signbit(total), 1, -1)
    return np.where(fix, word + step, word).view(np.float64)
