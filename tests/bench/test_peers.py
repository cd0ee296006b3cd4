"""Adapters, on modules that do what the projects' documentation says, so that shapes and zero points are right."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tilus.bench.case import Case
from tilus.bench.gpu import relative_error
from tilus.bench.peers import PEERS
from tilus.bench.shapes import Layer

N, K, GROUP = 256, 128, 64
BY_NAME = {peer.name: peer for peer in PEERS}


def prepare(name: str, weight: str, monkeypatch, modules: dict[str, object], group: int = GROUP) -> float:
    """Return the error of an adapter's product, with other modules than are installed."""
    for module, content in modules.items():
        found = ModuleType(module)
        found.__dict__.update(vars(content))
        monkeypatch.setitem(sys.modules, module, found)
    case = Case(Layer("tiny", "o", N, K), weight, group, "cpu")
    assert BY_NAME[name].refuses(case) is None
    x = torch.randn(3, K).half()
    return relative_error(BY_NAME[name].prepare(case), x)


class Dense:
    """Multiplies by f32 weights that a subclass unpacks."""

    values: torch.Tensor

    def __call__(self, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return (x.float() @ self.values.T).half()

    def to(self, device: str) -> Dense:
        return self


class GemLite(Dense):
    def __init__(self, bits, group_size, in_features, out_features, input_dtype, output_dtype):
        self.group = group_size

    def pack(self, codes, scales, zeros, bias):
        assert codes.dtype == torch.uint8
        self.values = ((codes.reshape(-1, self.group).float() - zeros) * scales).reshape(N, K)


class Marlin(Dense):
    def __init__(self, infeatures, outfeatures, groupsize):
        assert (infeatures, outfeatures) == (K, N)

    def pack(self, linear, scales):
        each = scales.float().repeat_interleave(K // scales.shape[1], 1)
        codes = (linear.weight.float() / each).round()
        assert codes.min() >= -8
        assert codes.max() <= 7
        self.values = codes * each


class BitBlas(Dense):
    def __init__(self, config):
        assert config.W_dtype == "uint2"

    def transform_weight(self, codes):
        return codes

    def __call__(self, x, codes, scale, zeros):
        each = [part.float().repeat_interleave(GROUP, 1) for part in (scale, zeros)]
        self.values = (codes.float() - each[1]) * each[0]
        return super().__call__(x)


def fp6() -> SimpleNamespace:
    def dequantized(words, scale):
        return (words.reshape(N, -1, 3).float().sum(-1).repeat_interleave(16, 1) * 2.0**-30 * scale[:, None]).half()

    def forward(words, scale, x, split):
        assert split >= 1
        return (x.float() @ dequantized(words, scale).float().T).half()

    return SimpleNamespace(
        weight_dequant_cpu=dequantized, weight_prepacking_cpu=lambda words: words, linear_forward_cuda=forward
    )


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the codes [n, k] of int32 words [k / per, n], as GPTQ packs them."""
    shifts = bits * torch.arange(32 // bits)
    codes = words.long()[:, None] >> shifts[:, None] & (1 << bits) - 1
    return codes.reshape(-1, words.shape[1]).T.float()


def symmetric(words: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    return (unpacked(words, bits) - (1 << bits - 1)) * scales.T.float().repeat_interleave(GROUP, 1)


def vllm() -> dict[str, object]:
    def apply(input, weight, weight_scale, wtype, **rest):
        assert (rest["output_size_per_partition"], rest["input_size_per_partition"]) == (N, K)
        return (input.float() @ symmetric(weight, weight_scale, wtype).T).half()

    def machete(a, b_q, b_type, b_group_scales, b_group_size):
        assert b_group_size == GROUP
        return (a.float() @ symmetric(b_q, b_group_scales, b_type).T).half()

    utils = SimpleNamespace(
        marlin_make_empty_g_idx=lambda device: torch.empty(0, dtype=torch.int32),
        marlin_permute_scales=lambda scales, size_k, size_n, group_size: scales,
        marlin_make_workspace_new=lambda device: torch.zeros(1),
        apply_gptq_marlin_linear=apply,
    )
    ops = SimpleNamespace(
        gptq_marlin_repack=lambda words, perm, size_k, size_n, bits: words,
        machete_prepack_B=lambda words, a_type, b_type, group_scales_type: words,
        machete_mm=machete,
    )
    return {
        "vllm": SimpleNamespace(),
        "vllm._custom_ops": ops,
        "vllm.model_executor.layers.quantization.utils.marlin_utils": utils,
        "vllm.scalar_type": SimpleNamespace(scalar_types=SimpleNamespace(uint4b8=4, uint8b128=8)),
    }


def humming() -> dict[str, object]:
    class Layer(Dense):
        def __init__(self, shape_n, shape_k, **options):
            assert (shape_n, shape_k, options["b_dtype"]) == (N, K, "three bits")

        def load_weight(self, weight, weight_scale):
            self.values = weight

        def finish_load(self):
            pass

        def __call__(self, inputs, block_shape, warp_shape):
            return super().__call__(inputs)

    def random(n, k, **_):
        weight = torch.randn(n, k)
        return None, weight, weight, None, None, None

    return {
        "humming": SimpleNamespace(),
        "humming.dtypes": SimpleNamespace(uint3="three bits", float16="half"),
        "humming.layer": SimpleNamespace(HummingLayer=Layer),
        "humming.utils": SimpleNamespace(),
        "humming.utils.test": SimpleNamespace(generate_random_weight=random),
    }


GEMLITE = {"gemlite": SimpleNamespace(), "gemlite.core": SimpleNamespace(
    GemLiteLinearTriton=GemLite, DType=SimpleNamespace(FP16=0))}  # fmt: skip
BITBLAS = {"bitblas": SimpleNamespace(Matmul=BitBlas, MatmulConfig=lambda **options: SimpleNamespace(**options))}


@pytest.mark.parametrize(
    ("name", "weight", "group", "modules"),
    [
        ("gemlite", "u8", GROUP, GEMLITE),
        ("Marlin", "u4", 128, {"marlin": SimpleNamespace(Layer=Marlin)}),
        ("BitBLAS", "u2", GROUP, BITBLAS),
        ("FP6-LLM", "f6e3m2", -1, {"fp6_llm": fp6()}),
        ("vLLM Marlin", "u4", GROUP, vllm()),
        ("Machete", "u8", GROUP, vllm()),
        ("humming", "u3", GROUP, humming()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_adapter_multiplies(monkeypatch, name: str, weight: str, group: int, modules: dict[str, object]) -> None:
    assert prepare(name, weight, monkeypatch, modules, group) < 2**-9


def test_what_a_system_does_not_do_is_said() -> None:
    case = Case(Layer("tiny", "o", 320, 128), "u4", 32, "cpu")
    assert BY_NAME["Marlin"].refuses(case) == "its groups are of 128, -1"
    assert BY_NAME["humming"].refuses(case) == "N and K must be multiples of 256 and 64"
    assert BY_NAME["Machete"].refuses(Case(case.layer, "u3", 64, "cpu")) == "it multiplies by u4, u8"
    assert BY_NAME["gemlite"].missing() == "gemlite is not installed"


def test_torchs_int4_stands_for_what_is_quantized(monkeypatch) -> None:
    taken = {}
    ops = SimpleNamespace(
        _convert_weight_to_int4pack=lambda pairs, tiles: pairs,
        _weight_int4pack_mm=lambda x, packed, group, table: (
            taken.update(packed=packed, table=table) or x @ decoded(packed, table).T
        ),
    )

    def decoded(pairs: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        codes = torch.stack([pairs >> 4, pairs & 15], -1).reshape(N, K).float()
        scale, zero = (table[..., i].T.float().repeat_interleave(GROUP, 1) for i in (0, 1))
        return ((codes - 8) * scale + zero).bfloat16()

    monkeypatch.setattr(torch.ops, "aten", ops)
    case = Case(Layer("tiny", "o", N, K), "u4", GROUP, "cpu")
    product = BY_NAME["torch int4"].prepare(case)
    assert relative_error(product, torch.randn(2, K).bfloat16()) < 2**-7
    original = case.pattern.float()
    assert (product.reference - original).square().mean() < 0.02 * original.square().mean()
    assert taken["table"].shape == (K // GROUP, N, 2)
