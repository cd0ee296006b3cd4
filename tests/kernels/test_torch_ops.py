"""The operator as torch sees it: registered rightly, traced by compile and export, seen by no other library."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import tilus
from tests.kernels.cases import activations, bias_of
from tests.kernels.test_matmul import TORCH, as_torch, torch_weight
from tests.tolerance import check
from tilus.kernels.torch_ops import DEQUANTIZE, QUANTIZED_MATMUL
from tilus.runtime.weights import native_pack


def operands(name="u4", kind="f16", m=5, bias=True, **options):
    w = torch_weight(name, kind=kind, **options)
    x, b = as_torch(activations(kind, m, 100)), as_torch(bias_of(kind, 21)) if bias else None
    return x, w.words, w.scales, w.zero_points, b, w.format_text, 21


@pytest.mark.parametrize(
    ("name", "bias", "kind", "activation"),
    [("u4", True, "f16", ()), ("f4e2m1", False, "bf16", ()), ("i3", True, "f32", ("silu",)), ("u4", False, "f32", ())],
)
def test_torch_finds_nothing_wrong(name, kind, bias, activation):
    args = *operands(name, kind, bias=bias), *activation
    results = torch.library.opcheck(torch.ops.tilus.quantized_matmul.default, args)
    assert set(results.values()) == {"SUCCESS"}


def test_fake_tensors_get_shape_and_type_without_a_kernel():
    x, *rest = (a.to("meta") if isinstance(a, torch.Tensor) else a for a in operands())
    y = QUANTIZED_MATMUL(x, *rest)
    assert (y.shape, y.dtype, y.device.type) == ((5, 21), torch.float16, "meta")
    with pytest.raises(tilus.TilusError, match="words must be an array"):
        QUANTIZED_MATMUL(x[:, :90], *rest[:-1], 99)


def test_wrong_operands_are_refused_before_a_kernel_reads_them():
    x, words, scales, zeros, bias, form, n = operands()
    for args, match in (
        ((x, words, scales, zeros, bias, form, 22), "scales must be an array"),
        ((x, words, scales, zeros, bias, form, 200), "words must be an array"),
        ((x, words[..., :3, :], scales, zeros, bias, form, n), "words must be an array"),
        ((x, words, scales.float().double(), zeros, bias, form, n), "scales must be"),
        ((x, words, scales, None, bias, form, n), "zero_points is missing"),
        ((x.long(), words, scales, zeros, bias, form, n), "x must be an array of f16"),
        ((x[0, 0], words, scales, zeros, bias, form, n), "got a scalar"),
        ((x, words, scales, zeros, bias[:3], form, n), "bias must be"),
        ((x, words.to("meta"), scales, zeros, bias, form, n), "meta"),
        ((x, words, scales, zeros, bias, "u4 | nonsense", n), "expected"),
        ((x, words, scales, zeros, bias, "u4", n), "expected"),
        ((x, words, scales, zeros, bias, form.replace("u4", "u9"), n), "u9"),
        ((x, words, scales, zeros, bias, form.replace("group 32", "group 0"), n), "group_size must be"),
        ((x, words, scales, zeros, bias, form.replace("group 32", "group many"), n), "group"),
    ):
        with pytest.raises(tilus.TilusError, match=match):
            QUANTIZED_MATMUL(*args)


def test_words_of_another_order_are_refused():
    w = torch_weight()
    other = w.repack(native_pack(w.dtype, "cuda"))
    with pytest.raises(tilus.TilusError, match="the words are packed as u4"):
        QUANTIZED_MATMUL(torch.ones(1, 100).half(), other.words, w.scales, w.zero_points, None, other.format_text, 21)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_traces_matmul_whole(dynamic):
    w, bias = torch_weight(), torch.ones(21, dtype=torch.float16)
    compiled = torch.compile(lambda x: torch.relu(tilus.matmul(x * 2, w, bias)) + 1, fullgraph=True, dynamic=dynamic,
                             backend="aot_eager")  # fmt: skip
    for m in (5, 7):
        x = torch.from_numpy(activations("f16", m, 100))
        expected = torch.relu(tilus.matmul(x * 2, w, bias)) + 1
        torch.testing.assert_close(compiled(x), expected, rtol=0, atol=0)


def differences(f, x, grad, step=1.0):
    """The gradient of sum(f(x) * grad) by central differences: f is linear, so any step is as good."""
    found = torch.zeros(x.numel(), dtype=torch.float64)
    for i in range(x.numel()):
        ends = []
        for sign in (step, -step):
            moved = x.detach().clone().reshape(-1)
            moved[i] += sign
            ends.append((f(moved.reshape(x.shape)).double() * grad.double()).sum())
        found[i] = (ends[0] - ends[1]) / (2 * step)
    return found.reshape(x.shape)


@pytest.mark.parametrize(("name", "options"), [("u4", {}), ("u4", {"zero_point": False}), ("f4e2m1", {}), ("i3", {})])
def test_gradients_are_differences(name, options):
    x, *rest, bias, form, n = operands(name, "f32", m=2, **options)
    grad = torch.randn(2, 21, generator=torch.Generator().manual_seed(0))
    leaf, added = x.clone().requires_grad_(), bias.clone().requires_grad_()
    y = QUANTIZED_MATMUL(leaf, *rest, added, form, n)
    check(y, x, torch_weight(name, kind="f32", **options), bias)
    y.backward(grad)
    expected = differences(lambda moved: QUANTIZED_MATMUL(moved, *rest, bias, form, n), x, grad)
    torch.testing.assert_close(leaf.grad.double(), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    expected = differences(lambda moved: QUANTIZED_MATMUL(x, *rest, moved, form, n), bias, grad)
    torch.testing.assert_close(added.grad.double(), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_gradients_of_gradients():
    x, *rest = operands(kind="f32")
    leaf = x.clone().requires_grad_()
    grad = torch.randn(5, 21, requires_grad=True)
    [dx] = torch.autograd.grad(QUANTIZED_MATMUL(leaf, *rest), leaf, grad, create_graph=True)
    along = torch.randn_like(dx)
    [found] = torch.autograd.grad(dx, grad, along)
    torch.testing.assert_close(found, QUANTIZED_MATMUL(along, *rest[:3], None, *rest[4:]), rtol=1e-4, atol=1e-4)


def test_a_weight_has_no_gradient_and_says_so():
    x, words, scales, *rest = operands(kind="f32")
    with pytest.raises(tilus.TilusError, match="the scales require a gradient, but a quantized weight is frozen"):
        QUANTIZED_MATMUL(x, words, scales.clone().requires_grad_(), *rest)


def test_torch_finds_nothing_wrong_with_dequantize():
    x, words, scales, zeros, _, form, n = operands()
    results = torch.library.opcheck(torch.ops.tilus.dequantize.default, (x, words, scales, zeros, form, n, 100))
    assert set(results.values()) == {"SUCCESS"}
    assert DEQUANTIZE(x.new_empty(0), words[:0], scales[:, :0], zeros[:, :0], form, 0, 100).shape == (0, 100)


@pytest.mark.parametrize(
    ("name", "options", "group_size", "kind"),
    [("u4", {}, 32, "f32"), ("u4", {}, -1, "f16"), ("u3", {"zero_point": False}, 32, "bf16"), ("f6e3m2", {}, 32, "f32"),
     ("nf4", {}, -1, "f16"), ("nf4", {}, 32, "bf16"), ("i8", {}, 32, "f32"), ("mxfp4", {}, 32, "f16"),
     ("nvfp4", {}, 16, "bf16"), ("t1.6", {}, -1, "f16")],
)  # fmt: skip
def test_dequantize_is_the_weight(name, options, group_size, kind):
    w = tilus.quantize(torch.randn(21, 100, generator=torch.Generator().manual_seed(1)), name, group_size, **options)
    like = torch.empty(0, dtype=TORCH[kind])
    found = DEQUANTIZE(like, w.words, w.scales, w.zero_points, w.format_text, 21, 100)
    assert found.dtype == like.dtype
    expected = w.dequantize("f32").double()
    step = {torch.float32: 2**-23, torch.float16: 2**-11, torch.bfloat16: 2**-8}[found.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=step, atol=2**-24)
    assert (found.double() - expected).abs().max() < expected.abs().max() / 100
    with pytest.raises(tilus.TilusError, match="words must be an array"):
        DEQUANTIZE(like, w.words, w.scales, w.zero_points, w.format_text, 21, 300)


WITHOUT_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "cupy"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
import numpy as np
import tilus
w = np.random.default_rng(0).normal(size=(21, 100)).astype(np.float32)
x = np.random.default_rng(1).normal(size=(5, 100)).astype(np.float32)
q = tilus.quantize(w, "u4", group_size=32)
np.testing.assert_allclose(tilus.matmul(x, q), x @ q.dequantize().T, rtol=1e-4, atol=1e-4)
assert np.abs(q.dequantize() - w).max() < 0.3
assert "torch" not in sys.modules
try:
    tilus.QuantLinear
except ImportError as error:
    assert "torch is blocked" in str(error), error
else:
    raise AssertionError("QuantLinear without torch")
print("right")
"""


def test_numpy_works_without_torch():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "right", done.stderr


def test_numpy_imports_no_torch_where_there_is_one():
    code = "import sys, numpy as np, tilus; tilus.matmul(np.ones((1, 32), 'f4'), tilus.quantize(np.ones((2, 32), 'f4'), 'u4'))"
    done = subprocess.run([sys.executable, "-c", code + "; print('torch' in sys.modules)"], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.stdout.strip() == "False", done.stderr


def test_results_are_the_same_from_many_threads():
    from concurrent.futures import ThreadPoolExecutor

    x, *rest = operands("u5", m=40)
    expected = QUANTIZED_MATMUL(x, *rest)
    with ThreadPoolExecutor(8) as pool:
        for y in pool.map(lambda _: QUANTIZED_MATMUL(x, *rest), range(64)):
            np.testing.assert_array_equal(y.numpy(), expected.numpy())
