"""`tilus.QuantLinear` as a module among modules: converted, copied, saved, loaded, compiled, exported."""

import copy
import io
import pickle
from dataclasses import replace

import pytest
import torch

import tilus
from tests.tolerance import check
from tilus.runtime.weights import native_pack


def layer(name="u4", dtype=torch.float32, bias=True, n=21, k=100, seed=0, **options):
    torch.manual_seed(seed)
    linear = torch.nn.Linear(k, n, bias=bias, dtype=dtype)
    return linear, tilus.QuantLinear.from_linear(linear, name, 32, **options)


def right(quantized, x):
    y = quantized(x)
    assert y.dtype == x.dtype
    check(y, x, quantized.weight, quantized.bias)
    return y


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(("u4", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)),
        *((name, torch.float32) for name in ("u3", "i8", "f6e3m2", "t2")),
        *((name, torch.bfloat16) for name in ("f4e2m1", "nf4", "u1")),
    ],
)
def test_forward(name, dtype):
    _, quantized = layer(name, dtype)
    right(quantized, torch.randn(2, 3, 100, dtype=dtype))


def test_is_close_to_the_layer_it_was_made_of():
    linear, quantized = layer("u8")
    x = torch.randn(7, 100)
    torch.testing.assert_close(quantized(x), linear(x), rtol=0.02, atol=0.02)
    assert (quantized(x) - linear(x)).abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_modules_keep_the_precision_of_scales(dtype):
    _, quantized = layer()
    scales = quantized.scales.clone()
    converted = quantized.to(dtype)
    assert converted is quantized
    assert quantized.bias.dtype == dtype
    assert torch.equal(quantized.scales, scales)
    right(quantized, torch.randn(5, 100, dtype=dtype))
    right(quantized.float(), torch.randn(5, 100))


def test_half_does_not_flush_small_scales():
    linear = torch.nn.Linear(64, 8)
    with torch.no_grad():
        linear.weight.mul_(1e-8)
    quantized = tilus.QuantLinear.from_linear(linear, "u4", 32).half()
    y = right(quantized, torch.full((1, 64), 60000.0, dtype=torch.float16) - 0)
    assert y.abs().max() > 0


def test_copies_are_independent():
    _, quantized = layer()
    x = torch.randn(3, 100)
    expected = quantized(x)
    for other in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        assert torch.equal(other(x), expected)
        other.words.zero_()
        assert torch.equal(quantized(x), expected)
    weight = copy.deepcopy(quantized.weight)
    assert torch.equal(tilus.matmul(x, weight, quantized.bias), expected)


def test_state_dict_round_trip():
    model = torch.nn.Sequential(layer()[1], torch.nn.ReLU(), layer("f4e2m1", n=5, k=21, seed=1)[1])
    other = torch.nn.Sequential(layer(seed=2)[1], torch.nn.ReLU(), layer("f4e2m1", n=5, k=21, seed=3)[1])
    x = torch.randn(3, 100)
    assert not torch.equal(other(x), model(x))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    assert all(isinstance(value, torch.Tensor) for value in model.state_dict().values())
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), model(x))


def test_a_state_made_on_another_device_is_repacked():
    _, quantized = layer()
    x = torch.randn(3, 100)
    state = quantized.state_dict()
    elsewhere = quantized.weight.repack(native_pack(quantized.weight.dtype, "cuda"))
    text = torch.frombuffer(bytearray(f"{elsewhere.format_text} | shape 21 100".encode()), dtype=torch.uint8)
    _, other = layer(seed=5)
    other.load_state_dict({**state, "words": elsewhere.words, "_extra_state": text})
    assert torch.equal(other.words, quantized.words)
    assert torch.equal(other(x), quantized(x))


@pytest.mark.parametrize("options", [{"name": "u5"}, {"name": "i4"}, {"name": "u4", "zero_point": False}], ids=str)
def test_a_state_of_another_format_is_refused(options):
    _, quantized = layer()
    _, other = layer(**options, seed=6)
    with pytest.raises((tilus.TilusError, RuntimeError), match=r"format|Missing|Unexpected"):
        quantized.load_state_dict(other.state_dict())


@pytest.mark.parametrize(("n", "k"), [(21, 96), (21, 101), (20, 100), (24, 128)])
def test_a_state_of_another_shape_is_refused_even_where_padding_makes_its_words_fit(n, k):
    _, quantized = layer(n=n, k=k)
    _, other = layer(n=21, k=100)
    before = other.words.clone()
    with pytest.raises(tilus.TilusError, match=rf"a weight of shape \[21, 100\], this layer has \[{n}, {k}\]"):
        quantized.load_state_dict(other.state_dict())
    other.load_state_dict(layer(n=21, k=100, seed=3)[1].state_dict())
    assert not torch.equal(other.words, before)


def test_a_state_that_does_not_say_its_shape_is_refused():
    _, quantized = layer()
    text = torch.frombuffer(bytearray(quantized.format.encode()), dtype=torch.uint8)
    with pytest.raises(tilus.TilusError, match="does not say which format and shape"):
        quantized.load_state_dict({**quantized.state_dict(), "_extra_state": text})


def test_a_truncated_state_is_refused():
    _, quantized = layer()
    state = quantized.state_dict()
    with pytest.raises(RuntimeError, match="words"):
        quantized.load_state_dict({**state, "words": state["words"][:-1]})


def test_weights_in_an_order_of_another_device_or_of_earlier_are_repacked():
    linear, quantized = layer("f4e1m2")
    weight = quantized.weight
    earlier = replace(weight.format.pack, stored=None)
    for pack in (native_pack(weight.dtype, "cuda"), earlier):
        again = tilus.QuantLinear(weight.repack(pack), linear.bias)
        assert again.weight.format == weight.format
        right(again, torch.randn(2, 100))


def test_device_moves_repack():
    _, quantized = layer()
    x, expected = torch.randn(3, 100), None
    expected = quantized(x)
    meta = copy.deepcopy(quantized).to("meta")
    assert meta(x.to("meta")).shape == (3, 21)
    assert torch.equal(quantized.cpu()(x), expected)
    assert quantized.format == layer()[1].format


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_sees_one_graph(dynamic):
    model = torch.nn.Sequential(layer(activation="silu")[1], torch.nn.GELU(), layer(n=7, k=21)[1])
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for m in (3, 8):
        x = torch.randn(m, 100)
        assert torch.equal(compiled(x), model(x))


@pytest.mark.long  # inductor starts a compiler; that torch sees one graph is tested without
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own use of it
def test_compile_with_inductor():
    model = torch.nn.Sequential(layer()[1], torch.nn.GELU())
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(3, 100)
    torch.testing.assert_close(compiled(x), model(x))


def test_export_keeps_the_operator_and_the_batch_free():
    model = torch.nn.Sequential(layer()[1], torch.nn.GELU())
    batch = torch.export.Dim("batch", min=2, max=1024)
    program = torch.export.export(model, (torch.randn(4, 100),), dynamic_shapes=({0: batch},))
    assert "tilus.quantized_matmul" in str(program.graph)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for m in (2, 33):
        x = torch.randn(m, 100)
        assert torch.equal(loaded(x), model(x))


def test_is_shown_with_what_it_holds():
    text = repr(torch.nn.Sequential(layer()[1]))
    assert "100 -> 21" in text
    assert "u4" in text
    assert "group 32" in text
    assert "bias=True" in text


def wrong(match, call):
    with pytest.raises(tilus.TilusError, match=match):
        call()


def test_wrong_use():
    linear, quantized = layer()
    wrong(r"x has shape \(3, 99\), expected \[\.\.\., 100\]", lambda: quantized(torch.randn(3, 99)))
    wrong(r"x has shape \(\), expected", lambda: quantized(torch.tensor(1.0)))
    wrong("x must be an array of f16, bf16, f32", lambda: quantized(torch.randn(3, 100).double()))
    wrong(r"bias must be an array \[21\] of f16 .* got \[21\] of f32", lambda: quantized(torch.randn(3, 100).half()))
    wrong("bias must have shape", lambda: tilus.QuantLinear(quantized.weight, torch.zeros(20)))
    wrong("torch tensors", lambda: tilus.QuantLinear(tilus.quantize(linear.weight.detach().numpy(), "u4", 32)))
    wrong("takes a torch.nn.Linear, got int", lambda: tilus.QuantLinear.from_linear(3, "u4"))
    wrong("takes a torch.nn.Linear, got Conv1d", lambda: tilus.QuantLinear.from_linear(torch.nn.Conv1d(3, 4, 1), "u4"))
    wrong("an array of floats, got u4", lambda: quantized.weight.dequantize("u4"))
    wrong("an array of floats, got f4e2m1", lambda: quantized.weight.dequantize("f4e2m1"))
    wrong("unknown|no data type|u99", lambda: tilus.QuantLinear.from_linear(linear, "u99"))


def test_no_bias():
    _, quantized = layer(bias=False)
    assert quantized.bias is None
    right(quantized, torch.randn(3, 100))


def test_binary_weights_by_a_codebook_of_the_user():
    _, quantized = layer(tilus.codebook("binary", [-1, 1]))
    x = torch.randn(3, 100)
    right(quantized, x)
    other = layer(tilus.codebook("binary", [-1, 1]), seed=4)[1]
    other.load_state_dict(quantized.state_dict())
    assert torch.equal(other(x), quantized(x))
    assert quantized.weight.dequantize().unique().numel() <= 2 * quantized.scales.numel()


def gradients(module, x, grad):
    x = x.detach().requires_grad_()
    module(x).backward(grad)
    return x.grad


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("u4", torch.float32), ("u4", torch.float16), ("u4", torch.bfloat16), ("i3", torch.float16),
     ("f4e2m1", torch.bfloat16), ("nf4", torch.float32), ("u1", torch.float16), ("t1.6", torch.bfloat16)],
)  # fmt: skip
def test_gradients_pass_to_the_activations(name, dtype):
    _, quantized = layer(name, dtype)
    x, grad = torch.randn(2, 3, 100, dtype=dtype), torch.randn(2, 3, 21, dtype=dtype)
    expected = grad.double() @ quantized.weight.dequantize("f32").double()
    step = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    found = gradients(quantized, x, grad)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=step, atol=step * expected.abs().max().item())
    assert (found.double() - expected).abs().max() < expected.abs().max() / 20


def test_a_network_learns_through_a_frozen_layer():
    torch.manual_seed(0)
    adapter, quantized = torch.nn.Linear(10, 100), layer()[1]
    x, wanted = torch.randn(64, 10), torch.randn(64, 21)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = (quantized(adapter(x)) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert quantized.words.grad is None


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_gradients(dynamic):
    model = torch.nn.Sequential(layer(activation="silu")[1], torch.nn.GELU(), layer(n=7, k=21)[1])
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for m in (3, 8):
        x, grad = torch.randn(m, 100), torch.randn(m, 7)
        torch.testing.assert_close(gradients(compiled, x, grad), gradients(model, x, grad), rtol=0, atol=0)
