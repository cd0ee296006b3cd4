"""`tilus.matmul` on NumPy arrays and torch tensors: every shape and type that callers may bring, and wrong ones."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch

import tilus
from tests.kernels.cases import activations, bias_of, weight
from tests.tolerance import check, exact
from tilus.runtime.weights import native_pack

TORCH = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def as_torch(array):
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def torch_weight(name="u4", n=21, k=100, group=32, kind="f16", **options):
    values = np.random.default_rng(3).normal(size=(n, k)).astype(np.float32)
    return tilus.quantize(torch.from_numpy(values).to(TORCH[kind]), name, group, **options)


def wrong(match, *args):
    with pytest.raises(tilus.TilusError, match=match):
        tilus.matmul(*args)


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_torch_equals_numpy(kind, with_bias):
    w, x, bias = torch_weight(kind=kind), activations(kind, 5, 100), bias_of(kind, 21, with_bias)
    y = tilus.matmul(as_torch(x), w, None if bias is None else as_torch(bias))
    assert y.dtype == TORCH[kind]
    check(y, x, w, bias)
    in_numpy = replace(w, words=w.words.numpy().view(np.uint32), scales=np.asarray(as_numpy_array(w.scales)),
                       zero_points=w.zero_points.numpy())  # fmt: skip
    z = tilus.matmul(x, in_numpy, bias)
    assert z.dtype == x.dtype
    np.testing.assert_array_equal(z, as_numpy_array(y))


def as_numpy_array(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (0,), (4, 0, 2), (1, 1, 1, 3)], ids=str)
def test_leading_dimensions(lead):
    w = weight("u4", True, 32, 21, 100)
    x = np.random.default_rng(0).normal(size=(*lead, 100)).astype(np.float16)
    y = tilus.matmul(x, w)
    assert y.shape == (*lead, 21)
    check(y, x, w)
    tensor = tilus.matmul(torch.from_numpy(x), torch_weight())
    assert tuple(tensor.shape) == (*lead, 21)
    check(tensor, x, torch_weight())


VIEWS = {
    "transposed": np.asfortranarray,
    "strided": lambda x: np.repeat(x, 3, axis=1)[:, ::3],
    "reversed": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "offset": lambda x: np.concatenate([x[:, :1], x], axis=1)[:, 1:],
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "misaligned": lambda x: np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float16).reshape(x.shape),
    "read-only": lambda x: np.frombuffer(x.tobytes(), np.float16).reshape(x.shape),
}
TENSOR_VIEWS = {
    "transposed": lambda x: x.T.contiguous().T,
    "strided": lambda x: x.repeat_interleave(3, dim=1)[:, ::3],
    "offset": lambda x: torch.nn.functional.pad(x, (1, 0))[:, 1:],
    "broadcast": lambda x: x[:1].expand(x.shape),
    "needs a gradient": lambda x: x.clone().requires_grad_(),
}


@pytest.mark.parametrize("view", VIEWS)
def test_arrays_of_any_strides(view):
    w, x = weight("u3", True, 32, 21, 100), VIEWS[view](activations("f16", 6, 100))
    assert not (x.flags.c_contiguous and x.flags.aligned and x.flags.writeable)
    check(tilus.matmul(x, w), x, w)


@pytest.mark.parametrize("view", TENSOR_VIEWS)
def test_tensors_of_any_strides(view):
    w, x = torch_weight(), TENSOR_VIEWS[view](torch.from_numpy(activations("f16", 6, 100)))
    assert x.requires_grad or not x.is_contiguous()
    check(tilus.matmul(x, w), x, w)


def test_operands_of_any_strides():
    w, x, bias = weight("u4", True, 32, 21, 100), activations("f16", 3, 100), bias_of("f16", 21)
    scattered = replace(
        w,
        words=np.repeat(w.words, 2, axis=0)[::2],
        scales=np.asfortranarray(w.scales),
        zero_points=np.asfortranarray(w.zero_points),
    )
    assert not scattered.scales.flags.c_contiguous
    check(tilus.matmul(x, scattered, np.repeat(bias, 2)[::2]), x, w, bias)


def test_huge_batches():
    w, x = weight("u4", True, 16, 10, 16), activations("f16", 100_000, 16)
    check(tilus.matmul(x, w), x, w)


@pytest.mark.parametrize(("n", "k"), [(0, 64), (64, 0), (0, 0), (1, 1), (1, 16), (3, 1)], ids=str)
@pytest.mark.parametrize("group", [32, -1])
def test_extents_of_zero_and_one(n, k, group):
    for values in (np.ones((n, k), np.float16), torch.ones((n, k), dtype=torch.float16)):
        w = tilus.quantize(values, "u4", group)
        assert tuple(w.dequantize().shape) == (n, k)
        for m in (0, 1, 3):
            x, bias = activations("f16", m, k), bias_of("f16", n)
            args = (x, w, bias) if isinstance(values, np.ndarray) else (torch.from_numpy(x), w, torch.from_numpy(bias))
            check(tilus.matmul(*args), x, w, bias, fixed=True)
            check(tilus.matmul(*args[:2]), x, w, fixed=True)


def test_weights_of_zero_and_tiny_weights():
    x = activations("f16", 3, 64)
    zero = tilus.quantize(np.zeros((8, 64), np.float16), "u4", 32)
    assert (tilus.matmul(x, zero) == 0).all()
    for name in ("u4", "i3", "f4e2m1", "nf4", "t2", "f8e7m0"):
        for size in (1e-7, 6e-8, 3e-6):
            tiny = (np.random.default_rng(0).normal(size=(8, 64)) * size).astype(np.float16)
            w = tilus.quantize(tiny, name, 32)
            check(tilus.matmul(x, w), x, w, fixed=True)
            error = np.abs(w.dequantize("f32") - tiny.astype(np.float32)).max()
            assert error <= max(4 * size, 6e-8)


def test_results_beyond_the_type_are_infinite():
    w = tilus.quantize(np.full((2, 64), 100, np.float16), "i8", 32)
    x = np.full((1, 64), 100, np.float16)
    assert (tilus.matmul(x, w) == np.inf).all()
    assert (tilus.matmul(-x, w) == -np.inf).all()
    assert np.isfinite(tilus.matmul(x.astype(np.float32), w)).all()


def test_nan_stays_in_its_row():
    w, x = weight("u4", True, 32, 21, 100), activations("f16", 6, 100)
    broken = x.copy()
    broken[2, 57] = np.nan
    broken[4, 99] = np.inf
    y = tilus.matmul(broken, w)
    assert np.isnan(y[2]).all()
    assert not np.isfinite(y[4]).any()
    rest = [0, 1, 3, 5]
    check(y[rest], x[rest], w)


def test_the_order_of_the_other_device_is_repacked_once():
    w, x = weight("u4", True, 32, 21, 100), activations("f16", 6, 100)
    other = w.repack(native_pack(w.dtype, "cuda"))
    check(tilus.matmul(x, other), x, w)
    assert other.packed_for("cpu") is other.packed_for("cpu")
    assert other.packed_for("cuda") is other


def test_wrong_activations():
    w = weight("u4", True, 32, 21, 100)
    x = activations("f16", 6, 100)
    wrong(r"x has shape \(6, 99\), expected \[\.\.\., 100\] for a weight of \[21, 100\]", x[:, :99], w)
    wrong(r"x must have shape \[\.\.\., K\], got a scalar", np.array(1, np.float16), w)
    wrong("x must be an array of f16, bf16, f32, got dtype int64", np.ones((6, 100), np.int64), w)
    wrong("x must be an array of f16, bf16, f32, got dtype float64", np.ones((6, 100)), w)
    wrong("x must be an array of f16, bf16, f32, got dtype complex64", np.ones((6, 100), np.complex64), w)
    wrong("x must be an array of f16, bf16, f32, got dtype >f2", x.astype(">f2"), w)
    wrong("x must be an array of f16, bf16, f32, got dtype torch.int32", torch.ones(6, 100, dtype=torch.int32), w)
    wrong("x must be a NumPy array or a torch tensor, got list", [[1.0] * 100], w)
    wrong("the weight must be a QuantizedWeight, got ndarray", x, np.ones((21, 100)))
    endless = np.lib.stride_tricks.as_strided(x, ((1 << 31) + 5, 100), (0, 2))
    wrong("x has 2147483653 rows, a call takes at most 2147483647\nhint: call it for parts of x", endless, w)


def test_wrong_company():
    w, x, bias = weight("u4", True, 32, 21, 100), activations("f16", 6, 100), bias_of("f16", 21)
    wrong("x is a torch tensor on cpu, but the weight is a NumPy array", torch.from_numpy(x), w)
    wrong("x is a NumPy array, but the weight is a torch tensor on cpu", x, torch_weight())
    wrong("x is a NumPy array, but the bias is a torch tensor on cpu", x, w, torch.from_numpy(bias))
    wrong("x is a NumPy array, but the bias is a list", x, w, [0.0] * 21)
    wrong(r"bias must be an array \[21\] of f16 .* got \[20\] of f16", x, w, bias[:20])
    wrong(r"bias must be an array \[21\] of f16 .* got \[21, 1\] of f16", x, w, bias[:, None])
    wrong(r"bias must be an array \[21\] of f16 .* got \[21\] of f32", x, w, bias.astype(np.float32))


def test_altered_weights():
    w, x = weight("u4", True, 32, 21, 100), activations("f16", 6, 100)
    wrong(r"words must be an array \[\d+, \d+, .* of u32 or i32 .* got \[0,", x, replace(w, words=w.words[:0]))
    wrong("words must be an array .* got .* of f32", x, replace(w, words=w.words.view(np.float32)))
    wrong(
        r"scales must be an array \[4, 21\] of f16 or bf16 or f32 .* got \[3, 21\]", x, replace(w, scales=w.scales[:3])
    )
    wrong("scales must be .* got .* of f64", x, replace(w, scales=w.scales.astype(np.float64)))
    wrong("zero_points is missing", x, replace(w, zero_points=None))
    wrong("zero_points must be an array .* of u8 .* of i8", x, replace(w, zero_points=w.zero_points.view(np.int8)))
    half = weight("u4", False, 32, 21, 100)
    wrong("zero_points is given", x, replace(half, zero_points=w.zero_points))


def test_results_are_those_of_the_dequantized_weight():
    w, x, bias = weight("u4", True, 32, 21, 100), activations("f32", 6, 100), bias_of("f32", 21)
    np.testing.assert_allclose(tilus.matmul(x, w, bias), x @ w.dequantize("f32").T + bias, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(exact(x, w, bias), x @ w.dequantize("f32").T + bias, rtol=1e-4, atol=1e-4)
