"""`t1.6`: five ternary digits in a byte, packed, multiplied on the CPU, and lowered for GPUs."""

from dataclasses import replace

import numpy as np
import pytest

import tilus
from tests.tolerance import numpy_type
from tilus import simt
from tilus.dtypes import block_scaled, dtype
from tilus.errors import LayoutError
from tilus.kernels.cast_cost import TRITS
from tilus.kernels.dequantize import expand
from tilus.kernels.programs.ternary_cast import ternary_cast
from tilus.layouts import local, spatial
from tilus.runtime.weights import PackLayout, TritPack, native_pack

T16 = dtype("t1.6")
WEIGHT = np.random.default_rng(0).normal(size=(70, 330)).astype(np.float32)


def digits(byte):
    """The digits of a byte by the multiplications that kernels do."""
    found = []
    for _ in range(5):
        found.append(byte * 3 >> 8)
        byte = byte * 3 & 255
    return found


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (64, 160), (67, 333), (0, 5), (5, 0)])
def test_packing_is_undone(device, n, k):
    pack = native_pack(T16, device)
    codes = np.random.default_rng([n, k]).integers(0, 3, (n, k)).astype(np.uint8)
    words = pack.pack(codes)
    assert words.shape == pack.packed_shape(n, k)
    np.testing.assert_array_equal(pack.unpack(words, n, k), codes)
    assert PackLayout.parse(str(pack)) == pack
    assert isinstance(PackLayout.parse(str(pack)), TritPack)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_digit_lies_where_the_module_says(device):
    pack = native_pack(T16, device)
    n, k = pack.tile
    codes = np.random.default_rng(1).integers(0, 3, (n, k)).astype(np.uint8)
    words = pack.pack(codes)[0, 0]
    width = pack.fragment.shape[1]
    for thread in range(0, pack.fragment.num_threads, 5):
        for lane in range(pack.fragment.local_size):
            row, column = pack.fragment(thread, lane)
            number, half = divmod(lane, 2)
            word = int(words[number // pack.vector, thread, number % pack.vector])
            for slot in range(2):
                held = digits(word >> (16 * half + 8 * slot) & 255)
                assert held == [codes[row, (5 * slot + i) * width + column] for i in range(5)]


@pytest.mark.parametrize("group", [-1, 16, 32, 128])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_products_on_the_cpu(group, kind):
    w = tilus.quantize(WEIGHT, "t1.6", group)
    values = w.dequantize("f32").astype(float)
    np.testing.assert_array_equal(values, tilus.quantize(WEIGHT, "t2", group).dequantize("f32"))
    x = np.random.default_rng(2).normal(size=(5, 330)).astype(kind)
    bias = np.random.default_rng(3).normal(size=70).astype(kind)
    exact = x.astype(float) @ values.T + bias
    bound = 2.0**-24 * 340 * (np.abs(x).astype(float) @ np.abs(values).T) + np.finfo(kind).eps * np.abs(exact)
    assert (np.abs(tilus.matmul(x, w, bias) - exact) <= bound + 1e-6).all()


# Groups as wide as a digit, two, a tile, and some whose ends lie within tiles; rows that share none of theirs.
@pytest.mark.parametrize(
    ("activation", "arch", "group", "m", "k"),
    [("f16", "sm_90a", 128, 3, 330), ("f16", "sm_80", 160, 9, 330), ("f16", "sm_90a", -1, 1, 800),
     ("bf16", "sm_80", -1, 4, 330), ("bf16", "sm_90a", 16, 33, 330), ("f32", "sm_80", 32, 4, 330)],
)  # fmt: skip
def test_products_on_a_gpu(activation, arch, group, m, k):
    kind, rng = dtype(activation), np.random.default_rng(1)
    with tilus.knobs.scope(target=f"simt:{arch}"):
        w = tilus.quantize(rng.normal(size=(70, k)).astype(numpy_type(kind)), "t1.6", group)
        w = replace(w, scales=rng.choice([0.25, 0.5, 1], w.scales.shape).astype(w.scales.dtype))
        x = rng.integers(-2, 3, (m, k)).astype(numpy_type(kind))
        y = tilus.matmul(x, w)
    np.testing.assert_array_equal(y, (x.astype(float) @ w.dequantize("f64").T).astype(y.dtype))
    assert y.any()


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize(("to", "unit", "offset"), [("f16", 2.0**-16, 0), ("bf16", 32, 128)])
def test_the_cast_whose_instructions_are_counted(to, unit, offset, values):
    """Every byte, in the machine code's PTX; twice in a tile, so at two places each."""
    kernel = ternary_cast.compile(target="sm_80", CT=dtype(to), PACK=TRITS, VALUES=values)
    rows, columns = TRITS.tile
    number = np.arange(rows * 2 * columns // 10).reshape(rows, 2, 1, -1) % 3**5
    codes = (number // 3 ** np.arange(5)[:, None] % 3).reshape(rows, columns)  # digit i of a slot is 8 columns wide
    out = np.zeros((rows, columns), dtype(to).code_dtype)
    words = TRITS.pack(codes)
    simt.run(kernel.ptx, kernel.resources.kernel, [words, out], 1, 32).check()
    np.testing.assert_array_equal(dtype(to).decode(out), codes - 1.0 if values else offset + unit * codes)
    assert len({int(byte) for byte in words.view(np.uint8).reshape(-1)}) == 3**5


@pytest.mark.parametrize("target", ["cpu", "simt:sm_90a"])
def test_a_tensor_scale_is_not_forgotten(target):
    kind = block_scaled("t1.6", 32, "f8e4m3", tensor_scale="f32")
    with tilus.knobs.scope(target=target):
        w = tilus.quantize(WEIGHT * np.float32(0.01), kind, 32)
        x = np.random.default_rng(1).integers(-2, 3, (4, 330)).astype(np.float32)
        like = np.empty(1, np.float32)
        matrix = expand(like, w.words, w.scales, w.zero_points, w.format, *w.shape)
        assert w.format.tensor_scale != 1.0
        np.testing.assert_array_equal(matrix, w.dequantize("f32"))
        exact = x.astype(float) @ w.dequantize("f64").T
        np.testing.assert_allclose(tilus.matmul(x, w), exact, rtol=0, atol=1e-6 * np.abs(exact).max())


def test_five_to_a_byte_and_files(tmp_path):
    w = tilus.quantize(np.ones((64, 1600), np.float32), "t1.6", -1)
    assert w.words.nbytes == 64 * 1600 // 5
    tilus.save_weights(tmp_path / "w.safetensors", {"w": w})
    again = tilus.load_weights(tmp_path / "w.safetensors")["w"]
    assert again.format == w.format
    np.testing.assert_array_equal(again.dequantize("f32"), np.ones((64, 1600)))


def test_torch():
    torch = pytest.importorskip("torch")
    layer = tilus.QuantLinear.from_linear(torch.nn.Linear(330, 70), "t1.6", -1)
    x = torch.randn(3, 330)
    torch.testing.assert_close(layer(x), x @ layer.weight.dequantize().T + layer.bias, rtol=1e-4, atol=1e-4)


def test_a_fragment_that_fills_no_words_is_refused():
    with pytest.raises(LayoutError, match="has 2 lanes a thread, no multiple of 2 x 4 words"):
        TritPack(T16, local(2, 1) * spatial(1, 8), 4)
