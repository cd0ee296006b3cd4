"""Activations that end a product: on every program and machine, where blocks share K, and through torch."""

import numpy as np
import pytest
import torch

import tilus
from tests.agreement.machines import on_vm
from tests.kernels.cases import activations, bias_of, weight
from tests.kernels.test_linear import layer
from tests.kernels.test_matmul import torch_weight
from tests.tolerance import ACTIVATED, TENSOR_CORE, UNIT, activated, check
from tilus.dtypes import f32
from tilus.ir.target import target
from tilus.kernels import configure_cpu
from tilus.kernels.calls import Operands
from tilus.kernels.dispatch import prepare
from tilus.kernels.epilogues import EPILOGUES, result_columns
from tilus.kernels.programs import add_parts
from tilus.kernels.torch_ops import QUANTIZED_MATMUL
from tilus.passes.pipeline import lower

N, K = 70, 100
FUNCTIONS = EPILOGUES[1:]
# (weight, activations, M, program that a CPU runs, what it ends with)
ON_CPU = [
    ("f4e2m1", "f32", 3, "quantized_matmul", "silu"),
    ("f4e2m1", "f32", 7, "panel_matmul", "gelu"),
    ("u4", "f16", 3, "fixed_matmul", "silu"),
    ("u4", "bf16", 7, "fixed_panel_matmul", "gelu_tanh"),
    ("t1.6", "f32", 3, "ternary_matmul", "relu"),
    ("f4e2m1", "f32", 3, "quantized_matmul", "silu_mul"),
    ("u4", "f16", 3, "fixed_matmul", "silu_mul"),
    ("u4", "bf16", 7, "fixed_panel_matmul", "silu_mul"),
]


def operands(name, kind, m, k=K):
    w = weight(name, name[0] == "u", -1 if name == "t1.6" else 32, N, k, "f32" if kind == "f32" else "f16")
    return activations(kind, m, k), w, bias_of(kind, N)


def calls_of(x, w, bias, y, name):
    return prepare(Operands(x, w.words, w.scales, w.zero_points, bias, y, w.format), name)


def test_every_function_has_a_meaning():
    assert set(ACTIVATED) == set(EPILOGUES)


@pytest.mark.parametrize(("kind", "x_kind", "m", "program", "name"), ON_CPU)
def test_products_on_the_cpu(kind, x_kind, m, program, name, monkeypatch):
    monkeypatch.setattr(configure_cpu, "FEW_PRODUCTS", 0)
    x, w, bias = operands(kind, x_kind, m)
    y = tilus.matmul(x, w, bias, activation=name)
    check(y, x, w, bias, name, fixed=program.startswith("fixed"))
    assert program in {kernel.definition.name for kernel, _ in calls_of(x, w, bias, y, name)}


def test_nothing_to_add_up():
    x, w, bias = operands("u4", "f16", 3, 0)
    check(tilus.matmul(x, w, bias, activation="gelu"), x, w, bias, "gelu")


@pytest.mark.parametrize(("kind", "name"), [("u4", "silu"), ("t1.6", "gelu"), ("u4", "silu_mul"), ("t1.6", "silu_mul")])
def test_products_lowered_for_a_gpu(kind, name):
    """On the reference machine: the programs that dispatch takes for sm_80."""
    with tilus.knobs.scope(target="simt:sm_80"):
        x, w, bias = operands(kind, "f16", 3)
        w, y = w.packed_for("cuda"), np.full((3, result_columns(name, N)), np.nan, np.float16)
        calls = calls_of(x, w, bias, y, name)
    for kernel, args in calls:
        program = lower(kernel.definition.specialize(kernel.constants), target("sm_80"))
        for array, found in zip(args, on_vm(program, args), strict=True):
            if isinstance(array, np.ndarray):
                array[...] = found
    check(y, x, w, bias, name, unit=TENSOR_CORE)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("machine", ["vm", "cpu", "simt:sm_80"])
def test_sums_of_parts(machine, name):
    """The kernel behind those whose blocks share K: scale of a row, bias and activation.

    No infinity on the way makes NaN of a number.
    """
    rng = np.random.default_rng(0)
    parts, scales, bias = (rng.normal(size=s).astype(np.float32) for s in ((2, 2, N), (1, N), (N,)))
    parts[:, :, :4] *= 1e20
    y = np.full((2, result_columns(name, N)), np.nan, np.float32)
    constants = {"XT": f32, "ST": f32, "SPLIT": 2, "GROUP": 0, "SCALED": False, "BIAS": True, "BN": 64}
    with tilus.knobs.scope(target=machine):
        add_parts(parts, scales, bias, y, 2, N, 1, 1.0, ACTIVATION=name, **constants)
    z = parts.astype(float).sum(0) * scales + bias
    wanted, error = activated(name, z, 4 * UNIT["f32"] * (np.abs(parts).sum(0) * np.abs(scales) + np.abs(bias)))
    assert (np.abs(y - wanted) <= error).all()
    assert {-1, 1} <= set(np.sign(z[np.abs(z) > 1e18]))


def test_the_whole_call_in_simulation():
    """What a GPU runs where blocks share K, M and half of N ragged, its PTX watched."""
    with tilus.knobs.scope(target="simt:sm_90a"):
        x, w, bias = operands("t1.6", "f16", 3, 660)
        w = w.packed_for("cuda")
        assert len(calls_of(x, w, bias, np.empty((3, N // 2), np.float16), "silu_mul")) == 2
        check(tilus.matmul(x, w, bias, activation="silu_mul"), x, w, bias, "silu_mul", unit=TENSOR_CORE)


# --- torch ------------------------------------------------------------------------------------------------------------

IN_TORCH = {
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda z: torch.nn.functional.gelu(z, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "silu_mul": lambda z: torch.nn.functional.silu(z[:, :11]) * z[:, 11:],
}


def torch_operands(m=2):
    generator = torch.Generator().manual_seed(0)
    w = torch_weight(kind="f32", n=22)
    x, bias = torch.randn(m, K, generator=generator), torch.randn(22, generator=generator)
    return x.requires_grad_(), w.words, w.scales, w.zero_points, bias.requires_grad_(), w.format_text, 22


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_those_of_the_functions_apart(name):
    x, *rest, bias, form, n = torch_operands()
    grad = torch.randn(2, result_columns(name, n), generator=torch.Generator().manual_seed(1)).requires_grad_()
    fused = QUANTIZED_MATMUL(x, *rest, bias, form, n, name)
    apart = IN_TORCH[name](QUANTIZED_MATMUL(x, *rest, bias, form, n))
    torch.testing.assert_close(fused, apart, rtol=1e-5, atol=1e-5)
    firsts = [torch.autograd.grad(y, (x, bias), grad, create_graph=True) for y in (fused, apart)]
    again = [torch.autograd.grad(sum(g.sin().sum() for g in first), (x, bias, grad)) for first in firsts]
    for found, wanted in (firsts, again):
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


def test_a_layer_keeps_its_activation():
    _, plain = layer()
    _, fused = layer(activation="silu")
    x = torch.randn(3, 100)
    check(fused(x), x, fused.weight, fused.bias, "silu")
    assert "bias=True, activation=silu" in repr(fused)
    assert "activation" not in repr(plain)
    _, other = layer(seed=1, activation="silu")
    other.load_state_dict(fused.state_dict())
    assert torch.equal(other(x), fused(x))
    for one, state in ((plain, fused.state_dict()), (fused, plain.state_dict())):
        with pytest.raises(tilus.TilusError, match=r"a layer with activation '(silu|none)', this layer has"):
            one.load_state_dict(state)


def test_unknown_names_are_refused():
    x, w, bias = operands("u4", "f32", 1)
    _, plain = layer()
    inputs = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in torch_operands()]
    for call in (
        lambda: tilus.matmul(x, w, bias, activation="swish"),
        lambda: tilus.QuantLinear(plain.weight, activation="swish"),
        lambda: QUANTIZED_MATMUL(*inputs, "swish"),
    ):
        with pytest.raises(tilus.TilusError, match=r"one of none, relu, gelu, gelu_tanh, silu.*, got 'swish'"):
            call()


def test_pairs_need_an_even_number_of_rows():
    _, odd = layer(n=21)
    inputs = odd.words, odd.scales, odd.zero_points, None, odd.format, 21, "silu_mul"
    for call in (
        lambda: tilus.matmul(torch.randn(2, 100), odd.weight, activation="silu_mul"),
        lambda: tilus.QuantLinear(odd.weight, activation="silu_mul"),
        lambda: QUANTIZED_MATMUL(torch.randn(2, 100), *inputs),
    ):
        with pytest.raises(tilus.TilusError, match=r"N / 2 gate rows, then N / 2 up rows.*got N = 21"):
            call()
