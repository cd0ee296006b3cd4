"""The torch operators `torch.ops.tilus.*`: importing this module registers them.

Registered with `Library.define` and `impl`, which costs a call 9 µs where `custom_op` costs 24, and with fake kernels,
so that `torch.compile` and `torch.export` see an ordinary operator. They are for inference: no gradient passes.
"""

from __future__ import annotations

from typing import Any

import torch

from tilus.kernels.dispatch import check_operands, run
from tilus.runtime.weights.weight import WeightFormat

LIBRARY: Any = torch.library.Library("tilus", "DEF")  # type: ignore[no-untyped-call]  # torch says no types here
LIBRARY.define(
    "quantized_matmul("
    "Tensor x, Tensor words, Tensor scales, Tensor? zero_points, Tensor? bias, str format, SymInt n) -> Tensor"
)


def _quantized_matmul(
    x: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    bias: torch.Tensor | None,
    format: str,  # the operator's name for it
    n: int,
) -> torch.Tensor:
    result: torch.Tensor = run(x, words, scales, zero_points, bias, WeightFormat.parse(format), n)
    return result


def _quantized_matmul_fake(
    x: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    bias: torch.Tensor | None,
    format: str,
    n: int,
) -> torch.Tensor:
    check_operands(x, words, scales, zero_points, bias, WeightFormat.parse(format), n)
    return x.new_empty((*x.shape[:-1], n))


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("quantized_matmul", _quantized_matmul, _device)
torch.library.register_fake("tilus::quantized_matmul", _quantized_matmul_fake, lib=LIBRARY)

QUANTIZED_MATMUL = torch.ops.tilus.quantized_matmul.default
