"""Block-scaled formats: the MX rule against a scalar model of the specification, and derived bounds on every error."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tilus
from tests.dtypes import reference
from tilus.dtypes import BlockQuantized, BlockScaled, block_format, block_scaled
from tilus.errors import DTypeError, QuantizeError

MX = {"mxfp8": "f8e4m3", "mxfp8e5m2": "f8e5m2", "mxfp6": "f6e2m3", "mxfp6e3m2": "f6e3m2", "mxfp4": "f4e2m1"}
WEIGHTS = hnp.arrays(np.float32, st.integers(1, 80), elements=st.floats(-1000, 1000, width=32))
INTEGERS = [f"{sign}{n}" for sign in "ui" for n in range(2, 9)]


def rng_weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape)


def mx_block(element: str, values: list[float]) -> tuple[Fraction, list[int]]:
    """Return scale and codes of one block as section 6.3 of the MX specification has them."""
    largest = max(abs(Fraction(value)) for value in values)
    if largest == 0:
        return Fraction(1), [reference.encode(element, value) for value in values]
    floor_log2 = 0
    while Fraction(2) ** floor_log2 > largest:
        floor_log2 -= 1
    while Fraction(2) ** (floor_log2 + 1) <= largest:
        floor_log2 += 1
    emax = math.floor(math.log2(reference.magnitudes(element)[-1][0]))
    scale = Fraction(2) ** max(floor_log2 - emax, -127)
    quotients = [Fraction(value) / scale for value in values]
    signs = [math.copysign(1.0, value) for value in values]
    return scale, [reference.encode(element, math.copysign(float(q), s)) for q, s in zip(quotients, signs, strict=True)]


@pytest.mark.parametrize(("name", "element"), MX.items())
@given(values=WEIGHTS)
def test_mx_follows_the_specification(name: str, element: str, values: np.ndarray) -> None:
    quantized = block_format(name).quantize(values)
    scales = tilus.e8m0.decode(quantized.scales)
    assert len(scales) == -(-len(values) // 32)
    for start, scale in zip(range(0, len(values), 32), scales, strict=True):
        expected_scale, expected_codes = mx_block(element, values[start : start + 32].tolist())
        assert Fraction(scale) == expected_scale
        assert quantized.codes[start : start + 32].tolist() == expected_codes


def test_mx_worked_example() -> None:
    """Largest 5.0 = 1.25 * 2^2, emax of f4e2m1 is 2: scale 2^0. Largest 20: scale 2^2."""
    quantized = block_format("mxfp4").quantize([[5.0, 0.3, -1.1] + [0.0] * 29 + [20.0, 2.0, 1.0, -30.0]])
    assert quantized.scales.tolist() == [[127, 129]]
    values = block_format("mxfp4").dequantize(quantized)
    assert values[0, :4].tolist() == [4.0, 0.5, -1.0, 0.0]
    assert values[0, 32:].tolist() == [16.0, 2.0, 0.0, -24.0]


def half_step(spec: BlockScaled) -> float:
    """The largest distance of a number within the element's range from its nearest value, in units of the scale."""
    values = np.unique(spec.element.decode(np.arange(spec.element.num_codes)))
    values = values[(values >= spec.element.min_value) & (values <= spec.element.max_value)]
    return float(np.diff(values).max()) / 2


def relative_error_of_scale(spec: BlockScaled) -> float:
    return 2.0 ** -(spec.scale.mantissa_bits + 1)


@pytest.mark.parametrize("scale", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("element", [*INTEGERS, "nf4", "f3e1m1", "f5e2m2", "f6e3m2", "f7e4m2", "t2", "t1.6"])
def test_symmetric_error_is_within_half_a_step(element: str, scale: str) -> None:
    spec = block_scaled(element, 32, scale)
    values = rng_weights(6, 100)
    quantized = spec.quantize(values)
    scales = np.repeat(spec.scale.decode(quantized.scales), 32, -1)[:, :100]
    error = np.abs(spec.dequantize(quantized) - values) / scales
    # A scale that was rounded down moves the largest value, at most num_codes scales away, out by as much.
    reach = max(spec.element.num_codes, spec.element.max_value)
    bound = half_step(spec) + relative_error_of_scale(spec) * reach
    assert error.max() <= bound
    assert (np.abs(values) / scales).max() > bound  # or an all-zero result would pass


@pytest.mark.parametrize("zero", ["same", "f16"])
@pytest.mark.parametrize("element", [f"u{n}" for n in range(2, 9)])
def test_affine_error_is_within_a_step(element: str, zero: str) -> None:
    spec = block_scaled(element, 64, "f32", zero=element if zero == "same" else zero)
    values = rng_weights(6, 200) + 0.5
    quantized = spec.quantize(values)
    scales = np.repeat(spec.scale.decode(quantized.scales), 64, -1)[:, :200]
    error = np.abs(spec.dequantize(quantized) - values) / scales
    levels = spec.element.num_codes
    # Rounding the zero point to an integer moves the range by up to half a step; f16 by 2^-11 of its size.
    bound = 0.5 + (0.5 if zero == "same" else 2.0**-11 * (levels + 1)) + 1e-6 * levels
    assert quantized.zeros.shape == quantized.scales.shape == (6, 4)
    assert error.max() <= bound
    assert (np.abs(values) / scales).max() > bound


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("i1:g5:f16", [-1.0, -1.0, 0.0, 0.0, 0.0]),  # the range is one-sided: nothing above 0 can be reached
        ("u1:g5:f16", [-1.0, -1.0, 0.0, 0.0, 0.0]),
        ("u1:g5:f16:z0", [0.0, 0.0, 0.0, 0.0, 1.0]),
        ("u1:g5:f16:zu1", [-1.75, 0.0, 0.0, 0.0, 0.0]),  # from -1 to 0.75 in one step, and 0 has to be a value
        ("u1:g5:f16:zf16", [-1.0, -1.0, -1.0, 0.75, 0.75]),
    ],
)
def test_one_bit(name: str, expected: list[float]) -> None:
    spec = block_format(name)
    values = spec.dequantize(spec.quantize([-1.0, -0.75, -0.25, 0.0, 0.75]))
    np.testing.assert_allclose(values, expected, rtol=2.0**-10)  # f16 zero points and scales


@given(WEIGHTS, st.sampled_from(["u4:g16:f16", "u3:g-1:f32:zu3", "nf4:g8:bf16", "mxfp6", "nvfp4", "i8:g32:f16"]))
def test_any_weights_give_finite_values_of_their_size(values: np.ndarray, name: str) -> None:
    spec = block_format(name)
    quantized = spec.quantize(values)
    assert quantized.codes.shape == values.shape
    assert quantized.codes.dtype == spec.element.code_dtype
    assert quantized.scales.shape == (spec.num_blocks(len(values)),)
    again = spec.dequantize(quantized)
    assert np.isfinite(again).all()
    assert (np.abs(again) <= 1.2 * np.abs(values).max()).all()


def test_nvfp4_has_two_scales() -> None:
    values = rng_weights(8, 64)
    spec = block_format("nvfp4")
    quantized = spec.quantize(values)
    assert quantized.scales.shape == (8, 4)
    assert quantized.scales.max() == 0x7E  # the largest block uses all of f8e4m3: 448
    assert quantized.tensor_scale == np.float32(np.abs(values).max() / (6 * 448))
    product = tilus.f8e4m3.decode(quantized.scales) * quantized.tensor_scale
    np.testing.assert_allclose(product * 6, np.abs(values).reshape(8, 4, 16).max(-1), rtol=2**-4)
    expected = tilus.f4e2m1.decode(quantized.codes) * np.repeat(product, 16, -1)
    np.testing.assert_allclose(spec.dequantize(quantized), expected, rtol=1e-15)
    # Half the widest gap, 4 to 6, is a sixth of the largest; the scale is rounded by at most 1/16.
    assert np.abs(expected - values).max() <= np.abs(values).max() * (1 / 6 + 1 / 16)


def test_dequantize_is_the_formula() -> None:
    spec = block_scaled("u4", 2, "f16", zero="u4")
    quantized = BlockQuantized(
        codes=np.asarray([[1, 15, 7]], np.uint8),
        scales=spec.scale.encode([[0.5, 2.0]]),
        zeros=np.asarray([[8, 3]], np.uint8),
    )
    assert spec.dequantize(quantized).tolist() == [[(1 - 8) * 0.5, (15 - 8) * 0.5, (7 - 3) * 2.0]]


def test_unsigned_integers_are_centred_by_default() -> None:
    spec = block_scaled("u3", 4, "f32")
    assert (spec.zero, spec.has_zeros) == (4, False)
    values = spec.dequantize(spec.quantize([[3.5, -3.5, 1.0, 0.0]]))
    assert values.tolist() == [[3.0, -4.0, 1.0, 0.0]]  # reach 3.5: both ends half a step away, ties to even
    counted_up = block_scaled("u3", 4, "f32", zero=0)
    assert counted_up.dequantize(counted_up.quantize([[7.0, -7.0, 1.0, 0.0]])).tolist() == [[7.0, 0.0, 1.0, 0.0]]


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "u4:g32:f16", "u4:g32:f16:zu4", "nf4:g64:f32"])
def test_zeros_stay_zero(name: str) -> None:
    spec = block_format(name)
    quantized = spec.quantize(np.zeros((2, 70)))
    assert (spec.scale.decode(quantized.scales) == 1).all()
    assert (spec.dequantize(quantized) == 0).all()


def test_tiny_blocks_get_the_least_scale() -> None:
    spec = block_scaled("i4", 4, "f16")
    quantized = spec.quantize([[1e-9, -1e-9, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    assert quantized.scales[0, 0] == 1
    assert np.abs(spec.dequantize(quantized)[0]).max() <= 2.0**-24


def test_empty_arrays() -> None:
    spec = block_format("u4:g32:f16:zu4")
    for shape in [(0, 64), (3, 0)]:
        quantized = spec.quantize(np.zeros(shape))
        assert spec.dequantize(quantized).shape == shape


def test_whole_row_blocks() -> None:
    spec = block_scaled("i8", -1, "f32")
    values = rng_weights(3, 50)
    quantized = spec.quantize(values)
    assert quantized.scales.shape == (3, 1)
    np.testing.assert_allclose(spec.dequantize(quantized), values, atol=np.abs(values).max() / 127.5 * 0.501)


def test_bits_per_element() -> None:
    assert block_format("mxfp4").bits_per_element == Fraction(17, 4)
    assert block_format("nvfp4").bits_per_element == Fraction(9, 2)
    assert block_format("u4:g128:f16:zu4").bits_per_element == 4 + Fraction(20, 128)
    assert block_format("t1.6:g64:f16").bits_per_element == Fraction(8, 5) + Fraction(1, 4)


@pytest.mark.parametrize(
    "name", ["mxfp8", "mxfp6e3m2", "nvfp4", "u4:g128:f16", "u4:g128:f16:zu4", "i3:g-1:bf16", "u5:g32:f16:z0:tf32"]
)
def test_names_are_read_back(name: str) -> None:
    spec = block_format(name)
    assert str(spec) == repr(spec) == name
    assert block_format(str(spec)) == spec
    assert hash(block_format(str(spec))) == hash(spec)


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda: block_format("mxfp5"), DTypeError, "no block-scaled format is named 'mxfp5'\nhint: known: mxfp8"),
        (lambda: block_format("u9:g32:f16"), DTypeError, "no data type is named 'u9'"),
        (lambda: block_scaled("u4", 0, "f16"), DTypeError, "at least 1 element .or -1, the whole row., got 0"),
        (lambda: block_scaled("u4", 32, "u8"), DTypeError, "a scale is a float type"),
        (lambda: block_scaled("f4e2m1", 32, "f16", zero="u4"), DTypeError, "only integers have zero points"),
        (lambda: block_scaled("nf4", 32, "f16", zero=8), DTypeError, "only integers have zero points"),
        (lambda: block_format("mxfp4").quantize([[1.0, np.nan]]), QuantizeError, r"value at \(0, 1\) is nan"),
        (lambda: block_format("mxfp4").quantize([np.inf, 1.0]), QuantizeError, r"value at \(0,\) is inf"),
        (lambda: block_format("mxfp4").quantize(1.0), QuantizeError, "got a scalar"),
        (lambda: block_scaled("u4", 4, "f16").quantize([1e7]), QuantizeError, "scale 1.33333e.06.*f16 is 65504\nhint"),
        (lambda: block_scaled("f4e2m1", 4, "f8e4m3").quantize([6e3]), QuantizeError, "scale 1000, the greatest"),
    ],
)
def test_wrong_input(action, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        action()
