"""Block-scaled formats as weights: the numbers that `BlockScaled` defines, packed, multiplied, saved, lowered."""

import numpy as np
import pytest

import tilus
from tilus import vm
from tilus.dtypes import block_format, block_scaled, dtype
from tilus.errors import DTypeError, QuantizeError
from tilus.ir.target import target
from tilus.kernels.configure import matmul_program
from tilus.passes.pipeline import lower
from tilus.runtime.weights import WeightFormat, native_pack

NAMES = ["mxfp4", "mxfp6", "mxfp6e3m2", "mxfp8", "mxfp8e5m2", "nvfp4", "u4:g64:bf16", "u4:g32:f16:zu4", "i3:g-1:f32"]
WEIGHT = np.random.default_rng(0).normal(size=(70, 160)).astype(np.float32)


def reference(name):
    form = block_format(name)
    return form.dequantize(form.quantize(WEIGHT.astype(np.float64)))


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_the_format(name):
    w = tilus.quantize(WEIGHT, name)
    np.testing.assert_array_equal(w.dequantize("f32"), dtype("f32").decode(dtype("f32").encode(reference(name))))
    assert WeightFormat.parse(str(w.format)) == w.format
    assert w.format.scale == (block_format(name).scale if block_format(name).scale.nbits == 8 else None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_products(name, kind):
    x = np.random.default_rng(1).normal(size=(3, 160)).astype(kind)
    w, exact = tilus.quantize(WEIGHT, name), reference(name)
    y = tilus.matmul(x, w)
    # Sums of 160 products in f32, and one rounding to the result's type.
    bound = 2.0**-24 * 170 * (np.abs(x).astype(float) @ np.abs(exact).T) + np.finfo(kind).eps * np.abs(exact).max() * 40
    assert (np.abs(y - x.astype(float) @ exact.T) <= bound).all()
    assert not (np.abs(np.zeros_like(y) - x.astype(float) @ exact.T) <= bound).all()


@pytest.mark.parametrize(("name", "where"), [("mxfp4", "sm_90a"), ("mxfp8", "sm_80"), ("nvfp4", "sm_90a")])
def test_lowered_for_a_gpu(name, where):
    w = tilus.quantize(WEIGHT, name)
    w = w.repack(native_pack(w.dtype, "cuda"))
    source, constants = matmul_program(w.format, dtype("f16"), w.format.scale, 8, False, k=160)
    program = source.program(**constants)
    x = np.random.default_rng(1).integers(-2, 3, (4, 160)).astype(np.float16)
    y = np.zeros((4, 70), np.float16)
    sizes = 4, 70, 160, w.format.groups(160)
    vm.run(lower(program, target(where)), [x, w.words, w.scales, w.words, y, y, *sizes, w.format.tensor_scale])
    exact = x.astype(float) @ reference(name).T
    assert np.abs(y - exact).max() <= 2e-3 * np.abs(exact).max()
    kernel = source.compile(target=where, multiples={"n": 16, "k": 16}, **constants)
    assert kernel.resources.spills == 0


def test_files_keep_scales_of_a_byte(tmp_path):
    w = tilus.quantize(WEIGHT, "nvfp4")
    assert w.format.tensor_scale != 1.0
    assert w.scales.dtype == np.uint8
    tilus.save_weights(tmp_path / "w.safetensors", {"w": w})
    again = tilus.load_weights(tmp_path / "w.safetensors")["w"]
    assert again.format == w.format
    np.testing.assert_array_equal(again.dequantize("f32"), w.dequantize("f32"))


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(160, 70).eval()
    quantized = tilus.QuantLinear.from_linear(layer, "mxfp4")
    x = torch.randn(5, 160)
    expected = x @ quantized.weight.dequantize().T + layer.bias
    torch.testing.assert_close(quantized(x), expected, rtol=1e-4, atol=1e-4)
    assert quantized.half().scales.dtype == torch.uint8


def test_a_state_brings_its_tensor_scale():
    torch = pytest.importorskip("torch")
    one, other = (tilus.QuantLinear.from_linear(_linear(torch, f), "nvfp4") for f in (1.0, 7.0))
    other.load_state_dict(one.state_dict())
    assert other.weight.format == one.weight.format
    x = torch.randn(3, 160)
    assert torch.equal(other(x), one(x))


def _linear(torch, factor):
    layer = torch.nn.Linear(160, 70)
    with torch.no_grad():
        layer.weight.mul_(factor)
    return layer


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("u4:g48x:f16", "no block-scaled format"),
        ("nvfp5", "no block-scaled format is named .nvfp5.\nhint: known: mxfp8"),
        ("u4:g24:f16", "a block is a multiple of 16"),
        ("u4:g32:f64", "scales are of 8 bits, f16, bf16 or f32, not f64"),
        ("u4:g32:f16:zf16", "zero points are integers of up to 8 bits, not f16"),
        ("u4:g32:f16:z3", "0 or the middle of the range, got 3"),
    ],
)
def test_what_kernels_cannot_do_is_refused(form, message):
    with pytest.raises((QuantizeError, DTypeError), match=message):
        tilus.quantize(WEIGHT, form)


def test_a_format_says_everything_itself():
    with pytest.raises(QuantizeError, match="mxfp4 says itself"):
        tilus.quantize(WEIGHT, "mxfp4", group_size=64)
    assert tilus.quantize(WEIGHT, "mxfp4", group_size=32).format.group_size == 32
    assert tilus.quantize(WEIGHT, block_scaled("u2", 16, "f16")).format.zero_point == "half"
