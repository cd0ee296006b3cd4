"""Quantization: every weight gets the nearest code, scales and zero points are what the format can hold."""

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
import torch

import tilus
from tests.kernels.cases import CODEBOOKS, FLOATS, SIGNED, TYPES, UNSIGNED, WEIGHTS
from tests.tolerance import weights
from tilus.dtypes import dtype
from tilus.errors import QuantizeError

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(9, 200)) + RNG.normal(size=(9, 1)) * 0.3


def options(name, zero_point):
    return {"zero_point": zero_point} if dtype(name).is_integer else {}


def possible(q):
    """Return every value that a weight of each group can have: [groups, N, codes]."""
    values = q.dtype.decode(np.arange(q.dtype.num_codes)).astype(np.float64)
    if q.dtype.name == "t2":
        values = values[:3]
    values = values[np.isfinite(values)]
    zero = 2 ** (q.dtype.nbits - 1) if q.format.zero_point == "half" else 0
    zeros = np.full(q.scales.shape, zero) if q.zero_points is None else q.zero_points.astype(np.float64)
    return (values - zeros[:, :, None]) * q.scales.astype(np.float64)[:, :, None]


@pytest.mark.parametrize("group", [32, -1])
@pytest.mark.parametrize(("name", "zero_point"), WEIGHTS)
def test_every_weight_gets_a_nearest_code(name, zero_point, group):
    q = tilus.quantize(WEIGHT.astype(np.float32), name, group, **options(name, zero_point))
    values = weights(q)
    size = group if group > 0 else 200
    choices = possible(q)[np.arange(200) // size].swapaxes(0, 1)  # [N, K, codes]
    nearest = np.abs(choices - WEIGHT.astype(np.float32).astype(np.float64)[:, :, None]).min(axis=2)
    found = np.abs(values - WEIGHT.astype(np.float32).astype(np.float64))
    # A zero point is added to the rounded quotient: within a step of the double rounding at ties.
    assert (found <= nearest * (1 + 1e-9) + 1e-9).all()


@pytest.mark.parametrize(("name", "zero_point"), [w for w in WEIGHTS if dtype(w[0]).nbits > 3])
def test_nothing_is_far_beyond_the_codes(name, zero_point):
    q = tilus.quantize(WEIGHT.astype(np.float32), name, 64, **options(name, zero_point))
    step = np.abs(np.diff(np.sort(possible(q), axis=2), axis=2)).max(axis=2)
    error = np.abs(weights(q) - WEIGHT)
    assert (error <= np.repeat(step.T, 64, axis=1)[:, :200] * 1.01).all()


@pytest.mark.parametrize("name", [n for n in TYPES if dtype(n).nbits <= 3])
def test_low_widths_have_less_error_than_the_widest_scale(name):
    rng = np.random.default_rng(5)
    normal = rng.normal(size=(16, 512))
    most = {1: 0.62, 2: 0.25, 3: 0.075}[dtype(name).nbits]
    q = tilus.quantize(normal.astype(np.float32), name, 128)
    error = ((weights(q) - normal) ** 2).sum() / (normal**2).sum()
    assert error < most
    # Doubling or halving all scales and choosing codes again must not be better by much: the choice is near a minimum.
    for factor in (0.5, 2.0):
        scaled = possible(q) * factor
        choices = scaled[np.arange(512) // 128].swapaxes(0, 1)
        other = (np.abs(choices - normal[:, :, None]).min(axis=2) ** 2).sum() / (normal**2).sum()
        assert error < other * 1.15


@pytest.mark.parametrize("name", [n for n in (*UNSIGNED, *SIGNED) if dtype(n).nbits > 3])
def test_without_a_zero_point_both_ends_are_half_a_step_off(name):
    half_width = (2 ** dtype(name).nbits - 1) / 2
    q = tilus.quantize(np.array([[half_width, -half_width, *[0.0] * 30]]), name, 32, zero_point=False)
    assert q.scales.tolist() == [[1.0]]
    assert (weights(q)[0, :2] - [half_width, -half_width]).tolist() in ([-0.5, 0.5], [-0.5, -0.5])


def test_more_bits_have_less_error():
    def error(name):
        return np.abs(weights(tilus.quantize(WEIGHT.astype(np.float32), name, 64)) - WEIGHT).mean()

    for family in (UNSIGNED, SIGNED):
        errors = [error(name) for name in family]
        assert all(a > 1.3 * b for a, b in pairwise(errors)), errors


def test_integers_are_kept_exactly_where_they_fit():
    grid = np.random.default_rng(1).integers(-8, 8, (4, 64)).astype(np.float32)
    grid[:, ::32] = -8
    grid[:, 1::32] = 7
    q = tilus.quantize(grid, "u4", 32)
    np.testing.assert_array_equal(q.dequantize(), grid)
    assert (q.scales == 1).all()
    assert (q.zero_points == 8).all()


def test_values_of_the_type_are_kept_exactly():
    for name in (*FLOATS, *CODEBOOKS):
        kind = dtype(name)
        values = kind.decode(np.arange(kind.num_codes))
        values = values[np.isfinite(values)]
        if name == "t2":
            values = values[:3]
        row = np.resize(values, 256)[None].astype(np.float64)
        q = tilus.quantize(row, name, -1)
        np.testing.assert_allclose(weights(q), row, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
def test_scales_have_the_type_of_the_weight_or_the_one_asked_for(kind):
    numpy = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64}[kind]
    q = tilus.quantize(WEIGHT.astype(numpy), "u4", 32)
    assert q.scales.dtype == (np.float32 if kind == "f64" else numpy)
    assert q.dequantize().dtype == numpy
    assert q.scales.shape == (7, 9)
    assert q.zero_points.shape == (7, 9)
    for asked in ("f16", "bf16", "f32"):
        q = tilus.quantize(WEIGHT.astype(numpy), "u4", 32, scale_dtype=asked)
        assert str(q.scales.dtype) == {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}[asked]


def test_torch_weights_make_torch_weights():
    tensor = torch.from_numpy(WEIGHT).to(torch.bfloat16)
    q = tilus.quantize(tensor.T.contiguous().T.requires_grad_(), "u4", 32)
    same = tilus.quantize(tensor.to(torch.float32).numpy(), "u4", 32, scale_dtype="bf16")
    assert q.words.dtype == torch.int32
    np.testing.assert_array_equal(q.codes(), same.codes())
    np.testing.assert_array_equal(q.scales.to(torch.float32).numpy(), same.scales.astype(np.float32))
    assert q.zero_points.dtype == torch.uint8
    assert q.dequantize().dtype == torch.bfloat16
    assert q.dequantize("f32").dtype == torch.float32


def test_dequantize_rounds_once():
    q = tilus.quantize(WEIGHT.astype(np.float32), "u4", 32)
    np.testing.assert_array_equal(q.dequantize("f16"), weights(q).astype(np.float16))
    np.testing.assert_array_equal(
        q.dequantize("bf16").astype(np.float32), weights(q).astype(ml_dtypes.bfloat16).astype(np.float32)
    )
    np.testing.assert_array_equal(q.dequantize("f64"), weights(q))


def test_memory_is_that_of_the_bits():
    q = tilus.quantize(np.ones((64, 256), np.float16), "u3", 128)
    assert q.nbytes == 64 * 256 * 3 // 8 + 2 * 64 * (2 + 1)
    assert "u3, [64, 256], group_size=128" in repr(q)


def test_a_weight_of_zeros_is_exact_and_has_usable_scales():
    for name, zero_point in WEIGHTS:
        q = tilus.quantize(np.zeros((3, 40), np.float16), name, 32, **options(name, zero_point))
        assert (q.dequantize() == 0).all(), name
        assert (q.scales == 1).all(), name


def test_constant_groups():
    for value in (1.0, -1.0, 1e-6, -6e4):
        for name in ("u4", "i4", "u8", "nf4", "f4e2m1", "t2"):
            q = tilus.quantize(np.full((2, 32), value, np.float16), name, 32)
            np.testing.assert_allclose(q.dequantize("f32"), np.float16(value), rtol=0.2, atol=6e-8, err_msg=name)


def wrong(match, *args, **kwargs):
    with pytest.raises(tilus.TilusError, match=match):
        tilus.quantize(*args, **kwargs)


def test_wrong_input():
    w = WEIGHT.astype(np.float32)
    wrong(r"the weight must be a matrix \[N, K\], got shape \(200,\)", w[0], "u4")
    wrong(r"got shape \(1, 9, 200\)", w[None], "u4")
    wrong("must be a float array of f16, bf16, f32, f64, got dtype int64", w.astype(np.int64), "u4")
    wrong("got dtype >f4", w.astype(">f4"), "u4")
    wrong("got list", [[1.0, 2.0]], "u4")
    for name in ("u16", "f32", "bool", "e8m0", "bf16"):
        wrong("cannot quantize to", w, name)
    wrong("u9", w, "u9")
    wrong("float", w, "float")
    for group in (0, -2, 8, 33, 2.5, "32", None):
        wrong("group_size must be a positive multiple of 16 or -1, got", w, "u4", group)
    wrong("scale_dtype must be f16, bf16 or f32, got f64", w, "u4", scale_dtype="f64")
    wrong("takes no zero point", w, "f4e2m1", zero_point=True)
    wrong("takes no zero point", w, "nf4", zero_point=True)
    wrong(r"a scale of .* does not fit f16", w * 1e6, "u4", scale_dtype="f16")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite(bad):
    for array in (WEIGHT.astype(np.float32), torch.from_numpy(WEIGHT.copy())):
        array[3, 7] = bad
        with pytest.raises(QuantizeError, match=r"has 1 values that are not finite, the first at \[3, 7\]"):
            tilus.quantize(array, "u4", 32)


def test_formats_are_text():
    q = tilus.quantize(WEIGHT.astype(np.float32), "u4", 32)
    assert type(q.format).parse(str(q.format)) == q.format
    assert q.format_text.startswith("u4 | ")
    assert q.format_text.endswith("| group 32 | zero tensor")
    for text in (
        "",
        "u4",
        "u4 | x",
        "u4 | local(4, 8) | 1 | group 32 | zero some",
        "u4 | local(4, 8) | 1 | group x | zero none",
    ):
        with pytest.raises(tilus.TilusError):
            type(q.format).parse(text)
