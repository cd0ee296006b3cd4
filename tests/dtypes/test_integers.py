"""Integers and the boolean against Python's own integers and ml_dtypes."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilus
from tilus.errors import DTypeError

SMALL = [f"{sign}{n}" for sign in "iu" for n in range(1, 9)]
EVERY = SMALL + [f"{sign}{n}" for sign in "iu" for n in (16, 32, 64)]
ORACLES = {
    "i2": ml_dtypes.int2,
    "i4": ml_dtypes.int4,
    "u2": ml_dtypes.uint2,
    "u4": ml_dtypes.uint4,
    "i8": np.int8,
    "u8": np.uint8,
}


def bounds(name: str) -> tuple[int, int]:
    n = int(name[1:])
    return (-(2 ** (n - 1)), 2 ** (n - 1) - 1) if name[0] == "i" else (0, 2**n - 1)


def nearest(value: float, low: int, high: int) -> int:
    """Return the nearest integer in range, ties to even: Python rounds a fraction so."""
    if math.isinf(value):
        return high if value > 0 else low
    return min(max(round(Fraction(value)), low), high)


@pytest.mark.parametrize("name", SMALL)
def test_decode_every_code(name: str) -> None:
    dtype, n = tilus.dtype(name), int(name[1:])
    low, high = bounds(name)
    values = dtype.decode(np.arange(2**n))
    assert values.dtype == np.int64
    assert values.tolist() == [*range(high + 1), *range(low, 0)]
    assert (dtype.min_value, dtype.max_value, dtype.is_signed) == (low, high, name[0] == "i")
    assert (dtype.is_integer, dtype.is_float, dtype.is_codebook, dtype.is_boolean) == (True, False, False, False)


def test_one_signed_bit_is_zero_and_minus_one() -> None:
    assert tilus.i1.decode([0, 1]).tolist() == [0, -1]


@pytest.mark.parametrize("name", SMALL)
def test_encode_around_every_value(name: str) -> None:
    low, high = bounds(name)
    points = [low - 1000.0, high + 1000.0, math.inf, -math.inf, 1e300, -0.0]
    for k in range(2 * (low - 2), 2 * (high + 3)):
        points += [k / 2, math.nextafter(k / 2, math.inf), math.nextafter(k / 2, -math.inf)]
    codes = tilus.dtype(name).encode(np.asarray(points))
    assert codes.tolist() == [nearest(point, low, high) % 2 ** int(name[1:]) for point in points]


@given(st.sampled_from(EVERY), st.floats(allow_nan=False))
def test_encode_any_float(name: str, value: float) -> None:
    low, high = bounds(name)
    assert int(tilus.dtype(name).encode(value)) == nearest(value, low, high) % 2 ** int(name[1:])


@given(st.sampled_from(EVERY), st.integers(-(2**63), 2**64 - 1))
def test_encode_any_integer(name: str, value: int) -> None:
    low, high = bounds(name)
    array = np.asarray([value], np.int64 if value < 2**63 else np.uint64)
    dtype = tilus.dtype(name)
    code = dtype.encode(array)
    assert int(code[0]) == min(max(value, low), high) % 2 ** int(name[1:])
    assert int(dtype.decode(code)[0]) == min(max(value, low), high)


@pytest.mark.parametrize(("name", "oracle"), ORACLES.items())
def test_agrees_with_ml_dtypes(name: str, oracle: type) -> None:
    low, high = bounds(name)
    dtype = tilus.dtype(name)
    whole = np.arange(low, high + 1)
    stored = whole.astype(oracle)
    codes = stored.view(np.uint8) & (2**dtype.nbits - 1)
    np.testing.assert_array_equal(dtype.encode(whole), codes)
    np.testing.assert_array_equal(dtype.decode(codes), stored.astype(np.int64))


def test_nan_is_no_integer() -> None:
    with pytest.raises(DTypeError, match="cannot encode NaN as u4, which has no NaN"):
        tilus.u4.encode([0.0, np.nan])


def test_boolean_is_a_byte() -> None:
    dtype = tilus.boolean
    assert (dtype.name, dtype.nbits, dtype.numpy_dtype) == ("bool", 8, np.dtype(bool))
    assert dtype.decode(np.arange(256)).tolist() == [False] + [True] * 255
    assert dtype.encode([0, 1, -2.5, 1e-300, -0.0, np.nan, True]).tolist() == [0, 1, 1, 1, 0, 1, 1]
    assert dtype.pack([1, 0, 1]).tolist() == [1, 0, 1]
    assert (dtype.is_boolean, dtype.is_integer, dtype.is_signed) == (True, False, False)
