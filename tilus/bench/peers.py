"""The systems to compare with. Each adapter finds the user's own installation, or says why there is none.

Interfaces are those of the projects' own documentation, examples and tests; versions differ, so whatever an adapter
raises becomes the reason why there is no time, and no time counts before the result was found right. NVIDIA's tilus is
not among them: its module has the name of ours, so one process cannot import both.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from tilus.bench.case import Case, Peer, Product, pack_along_k, values_of
from tilus.kernels.dispatch import matmul

_INTEGERS = tuple(f"u{bits}" for bits in range(1, 9))
_WHOLE = {"u1": 1, "u2": 2, "u4": 4, "u8": 8}


def _installed(*modules: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        absent = [name for name in modules if importlib.util.find_spec(name) is None]
        return f"{', '.join(absent)} is not installed" if absent else None

    return missing


def _only(
    *weights: str, group: tuple[int, ...] = (), multiples: tuple[int, int] = (1, 1)
) -> Callable[[Case], str | None]:
    """Return what refuses all other types and groups, and N and K that are no multiples."""

    def refuses(case: Case) -> str | None:
        layer = case.layer
        if case.weight not in weights:
            return f"it multiplies by {', '.join(weights)}"
        if group and case.group not in group:
            return f"its groups are of {', '.join(map(str, group))}"
        if layer.n % multiples[0] or layer.k % multiples[1]:
            return f"N and K must be multiples of {multiples[0]} and {multiples[1]}"
        return None

    return refuses


def _here() -> None:
    return None


# --- ours -----------------------------------------------------------------------------------------------------------


def _tilus(case: Case) -> Product:
    """Repeat the packed tiles of the rows, which are whole ones."""
    one, times = case.quantized, case.repeats
    zeros = None if one.zero_points is None else one.zero_points.repeat(1, times)
    shape = case.layer.n, case.layer.k
    whole = replace(
        one,
        shape=shape,
        words=one.words.repeat(times, 1, 1, 1, 1),
        scales=one.scales.repeat(1, times),
        zero_points=zeros,
    )
    return Product(lambda x: matmul(x, whole), values_of(one, case.device))


def _not_dense(case: Case) -> str | None:
    return "it multiplies by quantized weights" if case.weight == "f16" else None


# --- torch ----------------------------------------------------------------------------------------------------------


def _cublas(case: Case) -> Product:
    weight = case.pattern.repeat(case.repeats, 1)
    return Product(lambda x: torch.nn.functional.linear(x, weight), case.pattern)


def _needs_cuda() -> str | None:
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def _tinygemm(case: Case) -> Product:
    """Use torch's int4 product in bf16, whose value of a code q is (q - 8) * scale + zero."""
    codes, scales, zeros = case.integers(case.quantized)
    pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).contiguous()
    packed = torch.ops.aten._convert_weight_to_int4pack(pairs, 8)
    wide = scales.to(torch.bfloat16)
    offsets = ((8 - zeros.float()) * wide.float()).to(torch.bfloat16)
    table = torch.stack([wide, offsets], dim=-1).transpose(0, 1).contiguous()  # [groups, n, 2]
    rows, group = case.rows, case.group
    each = [part[:rows].float().repeat_interleave(group, 1) for part in (wide, offsets)]
    reference = (codes[:rows].float() - 8) * each[0] + each[1]
    return Product(
        lambda x: torch.ops.aten._weight_int4pack_mm(x, packed, group, table),
        reference,
        torch.bfloat16,
    )


# --- Triton ---------------------------------------------------------------------------------------------------------


def _triton(case: Case) -> Product:
    from tilus.bench.triton_kernel import matmul_dequantized

    bits = _WHOLE[case.weight]
    codes, scales, zeros = case.integers(case.quantized)
    words, by_group = pack_along_k(codes, bits), (scales.T.contiguous(), zeros.T.contiguous())
    return Product(
        lambda x: matmul_dequantized(x, words, *by_group, bits, case.group), values_of(case.quantized, case.device)
    )


# --- others ---------------------------------------------------------------------------------------------------------


def _marlin(case: Case) -> Product:
    """Follow the test of IST-DASLab/marlin: a layer is packed from a linear of rounded values, scales [n, groups]."""
    marlin: Any = importlib.import_module("marlin")
    layer, one = case.layer, case.symmetric
    values = values_of(one, case.device).half()
    linear = torch.nn.Linear(layer.k, layer.n, bias=False, dtype=torch.half, device="meta")
    linear.weight = torch.nn.Parameter(values.repeat(case.repeats, 1), requires_grad=False)
    packed = marlin.Layer(layer.k, layer.n, groupsize=case.group).to(case.device)
    packed.pack(linear, case.integers(one)[1])
    return Product(packed.to(case.device), values)


def _vllm_marlin(case: Case) -> Product:
    utils: Any = importlib.import_module("vllm.model_executor.layers.quantization.utils.marlin_utils")
    ops: Any = importlib.import_module("vllm._custom_ops")
    types: Any = importlib.import_module("vllm.scalar_type").scalar_types
    n, k, bits = case.layer.n, case.layer.k, _WHOLE[case.weight]
    codes, scales, _ = case.integers(case.symmetric)
    empty = utils.marlin_make_empty_g_idx(torch.device(case.device))
    arguments = {
        "weight": ops.gptq_marlin_repack(pack_along_k(codes, bits), empty, k, n, bits),
        "weight_scale": utils.marlin_permute_scales(scales.T.contiguous(), size_k=k, size_n=n, group_size=case.group),
        "weight_zp": empty,
        "g_idx": empty,
        "g_idx_sort_indices": empty,
        "workspace": utils.marlin_make_workspace_new(torch.device(case.device)),
        "wtype": {4: types.uint4b8, 8: types.uint8b128}[bits],
        "output_size_per_partition": n,
        "input_size_per_partition": k,
        "is_k_full": True,
    }
    return Product(
        lambda x: utils.apply_gptq_marlin_linear(input=x, **arguments),
        values_of(case.symmetric, case.device),
    )


def _machete(case: Case) -> Product:
    ops: Any = importlib.import_module("vllm._custom_ops")
    types: Any = importlib.import_module("vllm.scalar_type").scalar_types
    bits = _WHOLE[case.weight]
    kind = {4: types.uint4b8, 8: types.uint8b128}[bits]
    codes, scales, _ = case.integers(case.symmetric)
    words = pack_along_k(codes, bits).t().contiguous().t()
    packed = ops.machete_prepack_B(words, a_type=torch.half, b_type=kind, group_scales_type=torch.half)
    scales = scales.T.contiguous()
    return Product(
        lambda x: ops.machete_mm(a=x, b_q=packed, b_type=kind, b_group_scales=scales, b_group_size=case.group),
        values_of(case.symmetric, case.device),
    )


def _gemlite(case: Case) -> Product:
    """Follow gemlite's examples/triton_hqq_example.py: codes [n, k], scales and zeros [n * groups, 1]."""
    core: Any = importlib.import_module("gemlite.core")
    codes, scales, zeros = case.integers(case.quantized)
    layer = core.GemLiteLinearTriton(
        _WHOLE[case.weight], group_size=case.group, in_features=case.layer.k, out_features=case.layer.n,
        input_dtype=core.DType.FP16, output_dtype=core.DType.FP16,
    )  # fmt: skip
    layer.pack(codes, scales.reshape(-1, 1), zeros.half().reshape(-1, 1), None)
    return Product(layer, values_of(case.quantized, case.device))


def _bitblas(case: Case) -> Product:
    """Follow BitBLAS' README: one operator for M from a list, zeros in their original form."""
    bitblas: Any = importlib.import_module("bitblas")
    codes, scales, zeros = case.integers(case.quantized)
    operator = bitblas.Matmul(
        config=bitblas.MatmulConfig(
            M=[1, 16, 32, 64, 128, 256, 1024, 4096], N=case.layer.n, K=case.layer.k, A_dtype="float16",
            W_dtype=f"uint{_WHOLE[case.weight]}", accum_dtype="float32", out_dtype="float16", layout="nt",
            with_bias=False, group_size=case.group, with_scaling=True, with_zeros=True, zeros_mode="original",
        )
    )  # fmt: skip
    packed = operator.transform_weight(codes.to(torch.int8))
    halves = zeros.half().contiguous()
    return Product(
        lambda x: operator(x, packed, scale=scales.contiguous(), zeros=halves),
        values_of(case.quantized, case.device),
    )


def _humming(case: Case) -> Product:
    """Follow humming's README: random weights of its own making, which come with what they stand for."""
    dtypes, layers, tests = (importlib.import_module(f"humming.{name}") for name in ("dtypes", "layer", "utils.test"))
    kind = getattr(dtypes, f"uint{case.weight[1:]}")
    n, k, half = case.layer.n, case.layer.k, dtypes.float16
    layer = layers.HummingLayer(
        shape_n=n,
        shape_k=k,
        a_dtype=half,
        b_dtype=kind,
        c_dtype=half,
        bs_dtype=half,
        weight_scale_group_size=case.group,
    ).to(case.device)
    made = tests.generate_random_weight(n=n, k=k, group_size=case.group, dtype=kind, scale_dtype=half)
    _, reference, weight, scale, _, _ = made
    layer.load_weight(weight=weight, weight_scale=scale)
    layer.finish_load()

    def run(x: torch.Tensor) -> torch.Tensor:
        rows = next((size for size in (16, 32, 64) if x.shape[0] <= size), 64)
        y: torch.Tensor = layer(inputs=x, block_shape=(rows, 256, 64), warp_shape=(rows, 64, 64))
        return y

    return Product(run, reference)


def _fp6_llm(case: Case) -> Product:
    """Follow FP6-LLM's README: any 32-bit words are codes, and its own function says what they stand for."""
    fp6: Any = importlib.import_module("fp6_llm")
    n, k = case.layer.n, case.layer.k
    words = torch.randint(-(1 << 31), 1 << 31, (n, k // 16 * 3), dtype=torch.int64).to(torch.int32)
    scale = torch.full((n,), 0.01, dtype=torch.half)
    reference = fp6.weight_dequant_cpu(words, scale).to(case.device)
    packed, scale = fp6.weight_prepacking_cpu(words).to(case.device), scale.to(case.device)

    def run(x: torch.Tensor) -> torch.Tensor:
        # As many parts of K as give 128 multiprocessors a block of 256 rows each.
        y: torch.Tensor = fp6.linear_forward_cuda(packed, scale, x, max(128 * 256 // n, 1))
        return y

    return Product(run, reference)


PEERS: tuple[Peer, ...] = (
    Peer("tilus", _here, _not_dense, _tilus),
    Peer("cuBLAS", _here, _only("f16"), _cublas),
    Peer("torch int4", _needs_cuda, _only("u4", group=(32, 64, 128, 256), multiples=(8, 128)), _tinygemm),
    Peer("Triton", _installed("triton"), _only(*_WHOLE, group=(64, 128), multiples=(16, 128)), _triton),
    Peer("Marlin", _installed("marlin"), _only("u4", group=(128, -1), multiples=(256, 128)), _marlin),
    Peer("vLLM Marlin", _installed("vllm"), _only("u4", "u8", group=(32, 64, 128), multiples=(64, 128)), _vllm_marlin),
    Peer("Machete", _installed("vllm"), _only("u4", "u8", group=(64, 128), multiples=(128, 64)), _machete),
    Peer("gemlite", _installed("gemlite"), _only(*_WHOLE, group=(32, 64, 128), multiples=(32, 32)), _gemlite),
    Peer("BitBLAS", _installed("bitblas"), _only(*_WHOLE, group=(32, 64, 128), multiples=(16, 128)), _bitblas),
    Peer("humming", _installed("humming"), _only(*_INTEGERS, multiples=(256, 64)), _humming),
    Peer("FP6-LLM", _installed("fp6_llm"), _only("f6e3m2", group=(-1,), multiples=(256, 64)), _fp6_llm),
)
