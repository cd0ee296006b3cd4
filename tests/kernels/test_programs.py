"""Vector addition, softmax, layer norm and matmul: on the CPU, on the reference machine and lowered for GPUs.

Bounds are derived: u is half a unit in the last place of f32, and every bound counts the roundings on the way.
"""

import numpy as np
import pytest
import torch

import tilus
from tests.kernels.cases import ACTIVATIONS, activations, bias_of
from tests.tolerance import half_ulp, numpy_type
from tilus import vm
from tilus.dtypes import dtype
from tilus.ir.target import target
from tilus.kernels.programs import layer_norm, matmul, softmax, vector_add
from tilus.passes.pipeline import lower

U = 2.0**-24
# Intrinsics are exact to 2 ulp on every target: CUDA C++ guide, table of expf and rsqrtf; the CPU's are tested so.
INTRINSIC = 4 * U
TARGETS = ("cpu", "vm", "lowered")


def launch(kernel, where, args, **constants):
    """Run a kernel on the CPU, on the reference machine, or lowered for a GPU and then on the reference machine."""
    if where == "lowered":
        vm.run(lower(kernel.program(**constants), target("sm_80")), list(args))
        return
    with tilus.knobs.scope(target=where):
        kernel(*args, **constants)


def close(found, wanted, allowed):
    """Assert that every element is within its own bound, which must be small."""
    found = np.asarray(found, np.float64)
    assert found.shape == wanted.shape
    assert np.isfinite(found).all()
    excess = np.abs(found - wanted) - allowed
    assert (excess <= 0).all(), f"off by {np.abs(found - wanted).max()}, most allowed {np.max(allowed)}"


def unwritten(shape, kind):
    return np.full(shape, np.nan, numpy_type(dtype(kind)))


def double(array):
    return array.astype(np.float64)


@pytest.mark.parametrize("where", TARGETS)
@pytest.mark.parametrize("n", [1, 63, 64, 1000])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_vector_add(kind, n, where):
    a, b = activations(kind, 1, n)[0], bias_of(kind, n)
    c = unwritten(n, kind)
    launch(vector_add, where, (a, b, c, n), T=dtype(kind), BN=64)
    np.testing.assert_array_equal(c, (double(a) + double(b)).astype(c.dtype))  # one rounding: exact


@pytest.mark.parametrize("name", ["i8", "u8", "i32", "i64", "f64"])
def test_vector_add_of_other_types(name):
    kind = dtype(name)
    a = np.random.default_rng(0).integers(0, 50, 100).astype(kind.numpy_dtype)
    c = np.zeros_like(a)
    vector_add(a, a + a, c, 100, T=kind)
    np.testing.assert_array_equal(c, a * 3)


def test_vector_add_writes_nothing_beyond_the_end():
    a = np.ones(100, np.float32)
    c = np.full(164, 7, np.float32)
    vector_add(a, a, c, 100, T=dtype("f32"), BN=64)
    assert (c[:100] == 2).all()
    assert (c[100:] == 7).all()


def softmax_of(x):
    e = np.exp(double(x) - double(x).max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("where", TARGETS)
@pytest.mark.parametrize(("m", "n"), [(3, 1), (2, 64), (5, 300)])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_softmax(kind, m, n, where):
    x = (double(activations(kind, m, n)) * 4).astype(numpy_type(dtype(kind)))
    y = unwritten((m, n), kind)
    launch(softmax, where, (x, y, m, n), T=dtype(kind), BN=64)
    wanted = softmax_of(x)
    # exp of a rounded difference d is off by |d| u besides its own error; the sum by its additions and, once a tile,
    # by a factor exp(old maximum - new maximum); then a division.
    spread = double(x).max() - double(x).min()
    relative = 2 * (spread * U + INTRINSIC) + (n + 2 * -(-n // 64) * 8 + 4) * U
    close(y, wanted, wanted * relative + half_ulp(dtype(kind), wanted * (1 + relative)))


@pytest.mark.parametrize("where", ["cpu", "vm"])
def test_softmax_of_extreme_rows(where):
    big = np.float32(3e38)
    x = np.array([[big, -big, 0, 1], [-big, -big, -big, -big], [88, 89, -1e30, 1e-30], [0, -0.0, 0, 0]], np.float32)
    y = unwritten(x.shape, "f32")
    launch(softmax, where, (x, y, 4, 4), T=dtype("f32"), BN=64)
    np.testing.assert_allclose(y[[0, 2, 3]], softmax_of(x)[[0, 2, 3]], rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(y[1], 0.25, rtol=1e-5)


@pytest.mark.parametrize("where", TARGETS)
@pytest.mark.parametrize(("m", "n"), [(3, 1), (2, 64), (5, 300)])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_layer_norm(kind, m, n, where):
    x = (double(activations(kind, m, n)) * 2 + 5).astype(numpy_type(dtype(kind)))
    gain, bias = bias_of(kind, n), bias_of(kind, n)[::-1].copy()
    y = unwritten((m, n), kind)
    eps = 1e-3
    launch(layer_norm, where, (x, gain, bias, y, m, n, eps), T=dtype(kind), BN=64)
    mean = double(x).mean(axis=1, keepdims=True)
    deviation = double(x) - mean
    scale = 1 / np.sqrt((deviation**2).mean(axis=1, keepdims=True) + np.float32(eps))
    wanted = deviation * scale * double(gain) + double(bias)
    # The mean is off by n u times the mean magnitude; deviations by that and their own rounding; the variance by twice
    # the deviations' relative error and its own sum.
    off = (n + 2) * U * np.abs(double(x)).mean(axis=1, keepdims=True) + U * np.abs(deviation)
    spread = (np.abs(deviation) * off).mean(axis=1, keepdims=True) * 2 * scale**2
    relative = spread + (n + 4) * U + INTRINSIC
    error = np.abs(double(gain)) * scale * (off + np.abs(deviation) * relative) * 1.01
    error = error + 4 * U * (np.abs(wanted) + np.abs(double(bias)))
    close(y, wanted, error + half_ulp(dtype(kind), np.abs(wanted) + error))


def product_bound(kind, a, b):
    moved = np.abs(double(a)) @ np.abs(double(b))
    count = a.shape[1] + 2
    error = count * U / (1 - count * U) * moved
    return error + half_ulp(dtype(kind), np.abs(double(a) @ double(b)) + error)


@pytest.mark.parametrize("where", TARGETS)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (33, 17, 65), (64, 64, 32), (70, 130, 100), (5, 3, 0)])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_matmul(kind, m, n, k, where):
    a, b = activations(kind, m, k), activations(kind, k, n)
    c = unwritten((m, n), kind)
    launch(matmul, where, (a, b, c, m, n, k), T=dtype(kind), BM=32, BN=32, BK=16 if kind == "f32" else 32)
    close(c, double(a) @ double(b), product_bound(kind, a, b))


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("warps", [1, 2, 8])
def test_matmul_in_other_shapes(warps, stages):
    a, b = activations("f16", 65, 130), activations("f16", 130, 60)
    c = unwritten((65, 60), "f16")
    options = {"T": dtype("f16"), "BM": 64, "BN": 32, "BK": 32, "STAGES": stages, "WARPS": warps}
    launch(matmul, "lowered", (a, b, c, 65, 60, 130), **options)
    close(c, double(a) @ double(b), product_bound("f16", a, b))


def test_the_bounds_trip():
    a, b = activations("f16", 33, 65), activations("f16", 65, 17)
    wanted, allowed = double(a) @ double(b), product_bound("f16", a, b)
    for wrong in (wanted * 0, wanted.T.reshape(wanted.shape), wanted + np.eye(33, 17) * 0.1):
        with pytest.raises(AssertionError, match="off by"):
            close(wrong, wanted, allowed)


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32"])
def test_torch_tensors(kind):
    torch_kind = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[kind]
    x = torch.randn(5, 100, dtype=torch_kind)
    y = torch.full_like(x, torch.nan)
    softmax(x, y, 5, 100, T=dtype(kind))
    torch.testing.assert_close(y, torch.softmax(x, dim=1))
    a, b, c = x, torch.randn(100, 9, dtype=torch_kind), torch.full((5, 9), torch.nan, dtype=torch_kind)
    matmul(a, b, c, 5, 9, 100, T=dtype(kind))
    torch.testing.assert_close(c, a @ b)
    transposed = torch.full((9, 5), torch.nan, dtype=torch_kind)
    matmul(a, b, transposed.T, 5, 9, 100, T=dtype(kind))
    assert torch.equal(transposed.T, c)
    gain = torch.randn(100, dtype=torch_kind)
    layer_norm(x, gain, gain, y, 5, 100, 1e-5, T=dtype(kind))
    torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (100,), gain, gain))
