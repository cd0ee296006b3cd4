"""The comparison that judges every quantized matmul must fail where it should."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from tests.tolerance import TENSOR_CORE, bound, check, exact, half_ulp, mismatch, numpy_type, weights
from tilus.dtypes import dtype
from tilus.runtime.weights import quantize

ACTIVATIONS = ["f16", "bf16", "f32"]


def case(name="u4", activation="f16", group=32, m=5, n=24, k=200, **options):
    rng = np.random.default_rng(1)
    weight = quantize(rng.normal(size=(n, k)).astype(np.float32), name, group, scale_dtype="f16", **options)
    x = rng.normal(size=(m, k)).astype(numpy_type(dtype(activation)))
    bias = rng.normal(size=n).astype(x.dtype)
    return x, weight, bias


def rounded(x, weight, bias):
    return exact(x, weight, bias).astype(x.dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_accepts_the_exact_result_rounded_and_the_sum_in_f32(activation):
    x, weight, bias = case(activation=activation)
    check(rounded(x, weight, bias), x, weight, bias)
    values = weight.dequantize("f32").astype(np.float64).astype(np.float32)
    total = np.zeros((5, 24), np.float32)
    for k in range(200):  # one at a time: the order with the largest error
        total += x[:, k, None].astype(np.float32) * values[:, k]
    check((total + bias.astype(np.float32)).astype(x.dtype), x, weight, bias)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["u1", "u4", "i8", "f4e2m1", "f8e5m2", "nf4", "t2"])
def test_rejects_zeros_and_unwritten_outputs(name, activation):
    x, weight, bias = case(name, activation)
    y = rounded(x, weight, bias)
    for wrong in (np.zeros_like(y), np.full_like(y, np.nan), np.full_like(y, np.inf), -y, y[:, ::-1], y[::-1]):
        assert mismatch(wrong, x, weight, bias)
    one = y.copy()
    one[3, 7] = 0
    assert "1 of 120 elements" in mismatch(one, x, weight, bias)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["u1", "u2", "u3", "u4", "i4", "f4e2m1", "f6e3m2", "nf4", "t2", "u8", "i8", "f8e4m3"])
def test_rejects_one_flipped_bit_of_one_code(name, activation):
    # The most significant bit: a step of the least one of 8 is below the resolution of a bf16 result.
    x, weight, bias = case(name, activation)
    codes = weight.codes().copy()
    codes[11, 150] ^= 1 << (weight.dtype.nbits - 1)
    flipped = replace(weight, words=weight.format.pack.pack(codes))
    found = mismatch(rounded(x, flipped, bias), x, weight, bias)
    assert found
    columns = np.abs(exact(x, flipped, bias) - exact(x, weight, bias)).max(axis=0).nonzero()[0]
    assert list(columns) == [11]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_rejects_a_neighbouring_code_a_forgotten_bias_and_a_forgotten_zero_point(activation):
    x, weight, bias = case("u4", activation)
    codes = weight.codes().copy()
    codes[0, 0] ^= 1
    assert mismatch(rounded(x, replace(weight, words=weight.format.pack.pack(codes)), bias), x, weight, bias)
    assert mismatch(rounded(x, weight, None), x, weight, bias)
    moved = replace(weight, zero_points=weight.zero_points ^ np.uint8(1))
    assert mismatch(rounded(x, moved, bias), x, weight, bias)


def test_rejects_wrong_shapes_and_types():
    x, weight, bias = case()
    y = rounded(x, weight, bias)
    assert "expected (5, 24)" in mismatch(y[:, :-1], x, weight, bias)
    assert "of f16, got (5, 24) of f32" in mismatch(y.astype(np.float32), x, weight, bias)


def test_bound_is_small():
    x, weight, bias = case(activation="f32", k=200)
    moved = np.abs(x.astype(np.float64)) @ np.abs(weights(weight)).T + np.abs(bias)
    assert (bound(x, weight, bias) < 212 * 2.0**-24 * moved * 1.01).all()
    assert (bound(x, weight, bias, unit=TENSOR_CORE) > 3.9 * bound(x, weight, bias)).mean() > 0.9


@pytest.mark.parametrize(("kind", "numpy"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16), ("f32", np.float32)])
def test_half_ulp_is_half_the_distance_to_the_next(kind, numpy):
    values = np.array([1.0, 1.5, 3.14, 1e-3, 1024.0, float(ml_dtypes.finfo(numpy).smallest_subnormal)], numpy)
    following = (values.view(f"u{values.itemsize}") + 1).view(numpy)
    gap = following.astype(np.float64) - values.astype(np.float64)
    np.testing.assert_array_equal(half_ulp(dtype(kind), values.astype(np.float64)), gap / 2)
