"""Floating-point types against exact fractions, ml_dtypes and NumPy, over all codes and all rounding borders."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tilus
from tests.dtypes import reference
from tilus.dtypes.floats import decode_fields, encode_fields
from tilus.errors import DTypeError

ORACLES = {
    "f4e2m1": ml_dtypes.float4_e2m1fn,
    "f6e2m3": ml_dtypes.float6_e2m3fn,
    "f6e3m2": ml_dtypes.float6_e3m2fn,
    "f8e4m3": ml_dtypes.float8_e4m3fn,
    "f8e5m2": ml_dtypes.float8_e5m2,
}
SIGNS = [1.0, -1.0]


def same_number(actual: float, expected: Fraction | float) -> bool:
    if isinstance(expected, float) and math.isnan(expected):
        return math.isnan(actual)
    return actual == expected if math.isinf(expected) else Fraction(float(actual)) == expected


@pytest.mark.parametrize("name", reference.MINI_FLOATS)
def test_decode_every_code(name: str) -> None:
    dtype = tilus.dtype(name)
    codes = np.arange(dtype.num_codes)
    values = dtype.decode(codes)
    assert values.dtype == np.float64
    assert all(same_number(value, reference.decode(name, code)) for code, value in enumerate(values))
    assert (np.signbit(values) == (codes >= dtype.num_codes // 2))[~np.isnan(values)].all()


@pytest.mark.parametrize("name", reference.MINI_FLOATS)
def test_encode_every_border(name: str) -> None:
    values = reference.interesting_values(name)
    values += list(np.random.default_rng(7).normal(scale=float(reference.magnitudes(name)[-1][0]) / 3, size=500))
    codes = tilus.dtype(name).encode(np.asarray(values))
    expected = [reference.encode(name, value) for value in values]
    assert codes.dtype == np.uint8
    assert codes.tolist() == expected


@pytest.mark.parametrize("name", reference.MINI_FLOATS)
def test_finite_codes_survive_decode_and_encode(name: str) -> None:
    dtype = tilus.dtype(name)
    values = dtype.decode(np.arange(dtype.num_codes))
    finite = np.isfinite(values)
    assert finite.sum() == 2 * len(reference.magnitudes(name))
    assert (dtype.encode(values[finite]) == np.arange(dtype.num_codes)[finite]).all()


@pytest.mark.parametrize("name", reference.MINI_FLOATS)
def test_facts(name: str) -> None:
    dtype = tilus.dtype(name)
    x, y = reference.fields(name)
    table = reference.magnitudes(name)
    assert (dtype.exponent_bits, dtype.mantissa_bits, dtype.bias) == (x, y, 2 ** (x - 1) - 1)
    assert (dtype.is_float, dtype.is_integer, dtype.is_codebook, dtype.is_boolean) == (True, False, False, False)
    assert dtype.is_signed
    assert Fraction(dtype.max_value) == table[-1][0] == -Fraction(dtype.min_value)
    assert dtype.max_code == table[-1][1]
    assert Fraction(dtype.smallest_subnormal) == table[1][0]
    assert dtype.has_nan == (name in {"f8e4m3", "f8e5m2"})
    assert dtype.has_inf == (name == "f8e5m2")


@given(st.sampled_from(reference.MINI_FLOATS), st.floats(allow_nan=False))
@example("f4e2m1", 0.3)
@example("f8e4m3", 464.0)
@example("f2e1m0", 1.0)
def test_encode_any_number(name: str, value: float) -> None:
    assert int(tilus.dtype(name).encode(value)) == reference.encode(name, value)


@pytest.mark.parametrize("name", reference.MINI_FLOATS)
def test_nan(name: str) -> None:
    dtype = tilus.dtype(name)
    if dtype.has_nan:
        codes = dtype.encode([np.nan, -np.nan, 1.0])
        assert np.isnan(dtype.decode(codes)).tolist() == [True, True, False]
        assert codes[1] - codes[0] == 128
    else:
        with pytest.raises(DTypeError, match=f"cannot encode NaN as {name}.*flat index 1"):
            dtype.encode([1.0, np.nan])


@pytest.mark.parametrize(("name", "oracle"), ORACLES.items())
def test_small_floats_agree_with_ml_dtypes(name: str, oracle: type) -> None:
    dtype = tilus.dtype(name)
    codes = np.arange(dtype.num_codes, dtype=np.uint8)
    np.testing.assert_array_equal(dtype.decode(codes), codes.view(oracle).astype(np.float64))
    values = np.asarray(reference.interesting_values(name), np.float64)
    # Out of range ml_dtypes gives NaN or infinity where we saturate; and float32 is what it rounds from.
    values = values[np.abs(values) <= dtype.max_value].astype(np.float32)
    assert len(values) > 20
    np.testing.assert_array_equal(dtype.encode(values), values.astype(oracle).view(np.uint8))


def wide_samples(dtype: tilus.DataType) -> np.ndarray:
    """Values at, between and next to those of a 16-bit type: every midpoint, and its neighbours in float64."""
    values = dtype.decode(np.arange(dtype.max_code + 1))
    middle = (values[:-1] + values[1:]) / 2
    points = np.concatenate([values, middle, np.nextafter(middle, np.inf), np.nextafter(middle, 0.0), [1e300, np.inf]])
    return np.concatenate([points, -points])


@pytest.mark.parametrize(("name", "oracle"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_16_bit_floats_decode_like_their_oracle(name: str, oracle: type) -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):  # signalling NaN
        expected = codes.view(oracle).astype(np.float64)
    np.testing.assert_array_equal(tilus.dtype(name).decode(codes), expected)


def test_f16_encodes_like_numpy() -> None:
    values = wide_samples(tilus.f16)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(tilus.f16.encode(values), expected)
    np.testing.assert_array_equal(encode_fields(tilus.f16, values), expected)


def test_bf16_rounds_once() -> None:
    """ml_dtypes goes through float32: right from float32, and wrong just beside a midpoint of float64."""
    values = wide_samples(tilus.bf16)
    values = values[np.abs(values) < 3e38]
    narrow = values[values == values.astype(np.float32)].astype(np.float32)
    assert len(narrow) > 100_000
    np.testing.assert_array_equal(tilus.bf16.encode(narrow), narrow.astype(ml_dtypes.bfloat16).view(np.uint16))
    beside = math.nextafter(1 + 2.0**-8, 2.0)  # just above the middle of 1 and 1 + 2^-7
    assert tilus.bf16.decode(tilus.bf16.encode(beside)) == 1 + 2.0**-7


@pytest.mark.parametrize(("name", "oracle"), [("f32", np.float32), ("f64", np.float64)])
def test_native_floats_agree_with_numpy_and_with_the_formula(name: str, oracle: type) -> None:
    dtype = tilus.dtype(name)
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 1 << dtype.nbits, 20_000, dtype=np.uint64).astype(dtype.code_dtype)
    codes[:4] = [0, 1, dtype.max_code, dtype.max_code + 1]
    with np.errstate(invalid="ignore"):
        expected = codes.view(oracle).astype(np.float64)
    np.testing.assert_array_equal(dtype.decode(codes), expected)
    np.testing.assert_array_equal(decode_fields(dtype, codes), expected)
    numbers = expected[~np.isnan(expected)]
    np.testing.assert_array_equal(dtype.encode(numbers), codes[~np.isnan(expected)])
    np.testing.assert_array_equal(encode_fields(dtype, numbers), codes[~np.isnan(expected)])
    between = rng.normal(size=20_000) * 10.0 ** rng.integers(-44, 40, 20_000)
    with np.errstate(over="ignore", under="ignore"):
        np.testing.assert_array_equal(encode_fields(dtype, between), between.astype(oracle).view(dtype.code_dtype))


def test_tf32_is_f32_with_ten_bits_of_mantissa() -> None:
    ulp = 2.0**-10
    values = np.asarray([1 + ulp, 1 + ulp / 2, 1 + ulp * 1.5, 1 + ulp * 0.51, -(1 + ulp * 0.49), 1e39, np.nan, -0.0])
    codes = tilus.tf32.encode(values)
    assert (codes & 0x1FFF == 0).all()
    expected = [1 + ulp, 1.0, 1 + 2 * ulp, 1 + ulp, -1.0, np.inf, np.nan, -0.0]
    np.testing.assert_array_equal(tilus.tf32.decode(codes), expected)
    np.testing.assert_array_equal(codes.view(np.float32), np.asarray(expected, np.float32))
    assert tilus.tf32.decode(codes[0] | 0x1FFF) == 1 + ulp  # the low bits are not read


@pytest.mark.parametrize("name", ["f16", "bf16", "tf32", "f32"])
@pytest.mark.parametrize("sign", SIGNS)
def test_wide_floats_overflow_to_infinity(name: str, sign: float) -> None:
    dtype = tilus.dtype(name)
    half_step = (dtype.max_value - float(dtype.decode(dtype.max_code - (1 << dtype.padding)))) / 2
    edge = dtype.max_value + half_step
    codes = dtype.encode(sign * np.asarray([math.nextafter(edge, 0.0), edge]))
    assert dtype.decode(codes).tolist() == [sign * dtype.max_value, sign * math.inf]


@pytest.mark.parametrize("sign", SIGNS)
def test_f8e5m2_saturates_infinity_but_can_say_it(sign: float) -> None:
    assert tilus.f8e5m2.decode(tilus.f8e5m2.encode(sign * np.inf)) == sign * 57344
    assert tilus.f8e5m2.decode(0x7C if sign > 0 else 0xFC) == sign * np.inf


def test_encode_takes_integers_and_ml_dtypes() -> None:
    assert tilus.f8e4m3.encode(np.arange(-3, 4)).tolist() == [0xC4, 0xC0, 0xB8, 0, 0x38, 0x40, 0x44]
    halves = np.asarray([0.5, 1.5], ml_dtypes.bfloat16)
    assert tilus.f4e2m1.encode(halves).tolist() == [1, 3]
    with pytest.raises(DTypeError, match="expected real numbers"):
        tilus.f4e2m1.encode([1j])
    with pytest.raises(DTypeError, match="expected real numbers"):
        tilus.f4e2m1.encode(["1"])


def test_e8m0_decodes_every_code() -> None:
    codes = np.arange(256, dtype=np.uint8)
    values = tilus.e8m0.decode(codes)
    assert all(Fraction(values[c]) == Fraction(2) ** (c - 127) for c in range(255))
    assert np.isnan(values[255])
    np.testing.assert_array_equal(values, codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float64))


def test_e8m0_encodes_like_ml_dtypes() -> None:
    powers = 2.0 ** np.arange(-126, 127)
    values = np.concatenate([powers * k for k in (1, 1.25, 1.499, 1.5, 1.501, 1.75)]).astype(np.float32)
    np.testing.assert_array_equal(tilus.e8m0.encode(values), values.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8))


def test_e8m0_ends_of_the_range() -> None:
    assert tilus.e8m0.encode([0.0, 1e-300, 1e300, np.inf, np.nan]).tolist() == [0, 0, 254, 254, 255]
    with pytest.raises(DTypeError, match="without a sign: cannot encode -1"):
        tilus.e8m0.encode([1.0, -1.0])
