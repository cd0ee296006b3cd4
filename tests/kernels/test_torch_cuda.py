"""torch CUDA tensors: kernels and `tilus.matmul` on a device, with its streams, strides and graphs.

That the numbers are right to the bit is tested without torch, in `tests/agreement`; here it is what torch adds.
"""

from __future__ import annotations

import pytest
import torch

import tilus
from tests.kernels.cases import TYPES, WEIGHTS, activations, bias_of
from tests.kernels.pairwise import pairwise
from tests.kernels.test_matmul import TORCH, as_torch
from tests.tolerance import TENSOR_CORE, check
from tilus.dtypes import dtype
from tilus.kernels.configure_gpu import compute_dtype
from tilus.kernels.programs import layer_norm, matmul, softmax, vector_add

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def torch_has_cuda() -> None:
    if torch.version.cuda is None:
        pytest.skip("this torch is built without CUDA")


def on_device(array):
    return as_torch(array).cuda()


def quantized(name, zero_point=None, group=32, n=70, k=300, kind="f16", **options):
    """Return a weight quantized from a CUDA tensor: its words are in the order of GPUs."""
    values = torch.randn(n, k, generator=torch.Generator().manual_seed(n + k)) + 0.5
    if dtype(name).is_integer:
        options["zero_point"] = zero_point
    return tilus.quantize(values.to(TORCH[kind]).cuda(), name, group, **options)


def right(y, x, w, bias=None):
    assert y.device == x.device
    compute = compute_dtype(w.dtype, dtype({v: k for k, v in TORCH.items()}[x.dtype]))
    check(y, x, w, bias, compute=compute, unit=TENSOR_CORE)


CASES = pairwise(
    {
        "name": TYPES,
        "m": (1, 3, 16, 33, 128),
        "group": (32, 64, 128, -1),
        "shape": ((37, 300), (64, 256), (5, 77), (130, 129), (1, 515)),
        "activation": tuple(TORCH),
        "bias": (False, True),
        "zero_point": (False, True),
    },
    lambda case: not case.get("zero_point") or case.get("name", "u1")[0] in "ui",
)


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(v) for v in c.values()).replace(", ", "x"))
def test_quantized_matmul(case):
    n, k = case["shape"]
    w = quantized(case["name"], case["zero_point"], case["group"], n, k)
    x = on_device(activations(case["activation"], case["m"], k))
    bias = on_device(bias_of(case["activation"], n)) if case["bias"] else None
    right(tilus.matmul(x, w, bias), x, w, bias)


def test_every_type_is_multiplied():
    assert {(c["name"], c["zero_point"]) for c in CASES} == set(WEIGHTS)


def test_the_check_notices_a_flipped_word():
    w, x = quantized("u4", True), on_device(activations("f16", 9, 300))
    y = tilus.matmul(x, w)
    right(y, x, w)
    w.words.view(torch.int32).reshape(-1)[0] ^= -1
    with pytest.raises(AssertionError, match="elements are wrong"):
        right(y, x, w)


def test_a_weight_from_the_cpu_moves_and_is_repacked():
    linear = torch.nn.Linear(100, 21)
    module = tilus.QuantLinear.from_linear(linear, "u4", 32)
    x = torch.randn(6, 100)
    near = module(x)
    moved = module.cuda()
    y = moved(x.cuda())
    right(y, x.cuda(), moved.weight, moved.bias)
    assert torch.equal(moved.cpu()(x), near)


def test_parts_of_larger_tensors_and_nothing():
    w = quantized("u3", True, k=128)
    wide = torch.randn(5, 2, 256, dtype=torch.float16, device="cuda")
    x = wide[:, 1, ::2]
    right(tilus.matmul(x, w), x, w)
    y = tilus.matmul(wide[..., :128], w)
    assert y.shape == (5, 2, 70)
    right(y.reshape(10, 70), wide[..., :128].reshape(10, 128), w)
    assert tilus.matmul(x[:0], w).shape == (0, 70)


def test_the_current_stream_is_used():
    w, x = quantized("u4", True), on_device(activations("f16", 4, 300))
    wanted = tilus.matmul(x, w)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(x)
        torch.cuda._sleep(50_000_000)  # a kernel of another stream would read zeros
        late.copy_(x)
        y = tilus.matmul(late, w)
    stream.synchronize()
    assert torch.equal(y, wanted)


def test_a_launch_may_be_captured():
    w, x = quantized("u4", True), on_device(activations("f16", 4, 300))
    wanted = tilus.matmul(x, w)
    held = torch.zeros_like(x)
    tilus.matmul(held, w)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = tilus.matmul(held, w)
    held.copy_(x)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, wanted)


def test_compiled_by_torch():
    model = torch.nn.Sequential(
        tilus.QuantLinear.from_linear(torch.nn.Linear(96, 33), "u4", 32), torch.nn.GELU()
    ).cuda()
    x = torch.randn(3, 96, device="cuda")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), model(x))


def test_devices_do_not_mix():
    w, x = quantized("u4", True), torch.randn(3, 300, dtype=torch.float16)
    with pytest.raises(
        tilus.TilusError, match="x is a torch tensor on cpu, but the weight is a torch tensor on cuda:0"
    ):
        tilus.matmul(x, w)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_one():
    w = tilus.quantize(torch.randn(70, 300).half().to("cuda:1"), "u4", 32)
    x = as_torch(activations("f16", 4, 300)).to("cuda:1")
    right(tilus.matmul(x, w), x, w)


@pytest.mark.parametrize("kind", list(TORCH))
def test_other_programs(kind):
    t, torch_kind = dtype(kind), TORCH[kind]
    x = torch.randn(5, 1000, device="cuda", dtype=torch_kind)
    y = torch.full_like(x, torch.nan)
    softmax(x, y, 5, 1000, T=t)
    torch.testing.assert_close(y, torch.softmax(x, dim=1))
    gain = torch.randn(1000, device="cuda", dtype=torch_kind)
    layer_norm(x, gain, gain, y, 5, 1000, 1e-5, T=t)
    torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (1000,), gain, gain))
    vector_add(x[0], gain, y[0], 1000, T=t)
    assert torch.equal(y[0], x[0] + gain)
    a, b = x[:, :77].contiguous(), torch.randn(77, 130, device="cuda", dtype=torch_kind)
    c = torch.full((5, 130), torch.nan, device="cuda", dtype=torch_kind)
    matmul(a, b, c, 5, 130, 77, T=t, **({"BK": 16} if kind == "f32" else {}))
    torch.testing.assert_close(c.double(), a.double() @ b.double(), **TOLERANCES[kind])


# The last rounding, and 77 roundings of sums: by f32, 77 * 2^-24 times sum |a b|, about 50; on tensor cores 2^-22.
TOLERANCES = {
    "f16": {"rtol": 2**-10, "atol": 2**-9},
    "bf16": {"rtol": 2**-7, "atol": 2**-6},
    "f32": {"rtol": 2**-20, "atol": 2**-12},
}
