"""Floats as fractions: an independent definition of decoding and of every rounding, one number at a time."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

FORMS = {  # exponent bits, mantissa bits, what the top exponent holds
    "f16": (5, 10, "ieee"), "bf16": (8, 7, "ieee"), "f32": (8, 23, "ieee"), "f64": (11, 52, "ieee"),
    "tf32": (8, 10, "ieee"), "e5m2": (5, 2, "ieee"), "e4m3": (4, 3, "fn"), "e3m2": (3, 2, "finite"),
    "e2m3": (2, 3, "finite"), "e2m1": (2, 1, "finite"),
}  # fmt: skip
NAN = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF, "e5m2": 0x7F, "e4m3": 0x7F, "tf32": 0x3FFFF}


def decode(bits: int, form: str) -> Fraction | float:
    """Return a fraction, or a float that is infinite or not a number; -0 is the float -0.0."""
    e, m, kind = FORMS[form]
    sign = -1 if bits >> (e + m) & 1 else 1
    exponent, fraction = bits >> m & ((1 << e) - 1), bits & ((1 << m) - 1)
    if exponent == (1 << e) - 1:
        if kind == "ieee":
            return math.nan if fraction else sign * math.inf
        if kind == "fn" and fraction == (1 << m) - 1:
            return math.nan
    bias = (1 << (e - 1)) - 1
    value = Fraction(fraction + (exponent > 0) * (1 << m)) * Fraction(2) ** (max(exponent, 1) - bias - m)
    return -0.0 if sign < 0 and value == 0 else sign * value


def largest(form: str) -> int:
    e, m, kind = FORMS[form]
    return {"ieee": (((1 << e) - 1) << m) - 1, "fn": (1 << (e + m)) - 2, "finite": (1 << (e + m)) - 1}[kind]


def integer(x: Fraction, rounding: str) -> int:
    floor = math.floor(x)
    if rounding == "rna":
        return math.floor(abs(x) + Fraction(1, 2)) * (1 if x >= 0 else -1)
    return {"rn": round(x), "rm": floor, "rp": math.ceil(x), "rz": math.trunc(x)}[rounding]


def encode(x: Fraction | float, form: str, rounding: str = "rn", satfinite: bool = False) -> int:
    """Return the code of an exact number."""
    e, m, kind = FORMS[form]
    if isinstance(x, float) and math.isnan(x):
        return largest(form) if kind == "finite" else NAN[form]
    negative = math.copysign(1, x) < 0 if isinstance(x, float) else x < 0
    sign = negative << (e + m)
    beyond = {"ieee": largest(form) + 1, "fn": largest(form) + 1, "finite": largest(form)}[kind]
    if isinstance(x, float) and math.isinf(x):
        return sign | (largest(form) if satfinite else beyond)
    size = abs(Fraction(x))
    bias = (1 << (e - 1)) - 1
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent = max(exponent - (size < Fraction(2) ** exponent), 1 - bias) if size else 1 - bias
    exact = Fraction(x) / Fraction(2) ** (exponent - m)
    units = abs(integer(exact, rounding))
    code = units + ((exponent - 1 + bias) << m)
    if code > largest(form):
        toward_zero = rounding == "rz" or (rounding == "rm" and not negative) or (rounding == "rp" and negative)
        code = largest(form) if satfinite or toward_zero else beyond
    return sign | code


def is_nan(x: Fraction | float) -> bool:
    return isinstance(x, float) and math.isnan(x)


def arithmetic(op: str, *values: Fraction | float, rounding: str = "rn") -> Fraction | float:
    """Return the exact result of add, sub, mul or fma, with IEEE's rules for zeros and infinities."""
    plain = [float(v) if isinstance(v, float) else v for v in values]
    special = any(isinstance(v, float) for v in plain)
    if op == "sub":
        return arithmetic("add", values[0], _minus(values[1]), rounding=rounding)
    if op == "mul":
        if special:
            return _special_product(*plain)
        return _signed_zero(plain[0] * plain[1], -1 if (plain[0] < 0) != (plain[1] < 0) else 1)
    if op == "fma":
        return arithmetic("add", arithmetic("mul", *values[:2]), values[2], rounding=rounding)
    a, b = plain
    if (isinstance(a, float) and not math.isfinite(a)) or (isinstance(b, float) and not math.isfinite(b)):
        return _as_float(a) + _as_float(b)
    total = Fraction(a) + Fraction(b)
    if total == 0:
        zeros = [math.copysign(1, v) if isinstance(v, float) else 1 if v >= 0 else -1 for v in (a, b)]
        negative = all(z < 0 for z in zeros) or (rounding == "rm" and any(z < 0 for z in zeros))
        return -0.0 if negative else Fraction(0)
    return total


def _minus(x):
    return -x if isinstance(x, float) or x != 0 else -0.0


def _as_float(x):
    """Keep a finite fraction's sign and nothing else."""
    return x if isinstance(x, float) else float(np.sign(float(x)))


def _signed_zero(x, sign):
    return -0.0 if x == 0 and sign < 0 else x


def _special_product(a, b):
    signs = [math.copysign(1, v) if isinstance(v, float) else (1 if v >= 0 else -1) for v in (a, b)]
    fa, fb = _as_float(a), _as_float(b)
    if math.isfinite(fa) and math.isfinite(fb):
        return -0.0 if signs[0] * signs[1] < 0 else Fraction(0)
    return fa * fb


def samples(nbits: int, count: int, seed: int = 0) -> np.ndarray:
    """Return random words, and words around the edges of every float format."""
    rng = np.random.default_rng([nbits, count, seed])
    dtype = f"u{nbits // 8}"
    edges = [v for b in range(nbits) for v in ((1 << b) - 1, 1 << b, (1 << nbits) - (1 << b))]
    edges += [0x7F800000, 0xFF800000, 0x7FC00001, 0x3F800000, 0xBF800000, 0x00800000, 0x007FFFFF, 0x47000000] * 2
    words = [rng.integers(0, 1 << nbits, count, dtype=dtype), np.array([e & ((1 << nbits) - 1) for e in edges], dtype)]
    return rng.permutation(np.concatenate(words))
