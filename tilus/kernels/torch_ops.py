"""The torch operators `torch.ops.tilus.*`: importing this module registers them.

Registered with `Library.define` and `impl`, which costs a call 9 µs where `custom_op` costs 24, and with fake kernels,
so that `torch.compile` and `torch.export` see ordinary operators. Gradients pass to the activations and the bias: the
weight is frozen. dX = dY · W expands the weight each time, so that no second copy of it is kept; what an activation was
applied to is computed again.
"""

from __future__ import annotations

from typing import Any

import torch

from tilus.errors import LaunchError
from tilus.kernels.dequantize import expand
from tilus.kernels.dispatch import check_operands, run
from tilus.kernels.epilogues import result_columns
from tilus.runtime.weights.weight import WeightFormat

LIBRARY: Any = torch.library.Library("tilus", "DEF")  # type: ignore[no-untyped-call]  # torch says no types here
LIBRARY.define(
    "quantized_matmul("
    "Tensor x, Tensor words, Tensor scales, Tensor? zero_points, Tensor? bias, str format, SymInt n, "
    "str activation='none') -> Tensor"
)
LIBRARY.define(
    "dequantize("
    "Tensor like, Tensor words, Tensor scales, Tensor? zero_points, str format, SymInt n, SymInt k) -> Tensor"
)


def _quantized_matmul(
    x: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    bias: torch.Tensor | None,
    format: str,  # the operator's name for it
    n: int,
    activation: str = "none",
) -> torch.Tensor:
    result: torch.Tensor = run(x, words, scales, zero_points, bias, WeightFormat.parse(format), n, activation)
    return result


def _quantized_matmul_fake(
    x: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    bias: torch.Tensor | None,
    format: str,
    n: int,
    activation: str = "none",
) -> torch.Tensor:
    check_operands(x, words, scales, zero_points, bias, WeightFormat.parse(format), n)
    return x.new_empty((*x.shape[:-1], result_columns(activation, n)))


def _dequantize(
    like: torch.Tensor,  # its type and device are those of the result
    words: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    format: str,
    n: int,
    k: int,
) -> torch.Tensor:
    result: torch.Tensor = expand(like, words, scales, zero_points, WeightFormat.parse(format), n, k)
    return result


def _dequantize_fake(
    like: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    format: str,
    n: int,
    k: int,
) -> torch.Tensor:
    return like.new_empty((n, k))


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("quantized_matmul", _quantized_matmul, _device)
    LIBRARY.impl("dequantize", _dequantize, _device)
torch.library.register_fake("tilus::quantized_matmul", _quantized_matmul_fake, lib=LIBRARY)
torch.library.register_fake("tilus::dequantize", _dequantize_fake, lib=LIBRARY)

QUANTIZED_MATMUL = torch.ops.tilus.quantized_matmul.default
DEQUANTIZE = torch.ops.tilus.dequantize.default


# --- gradients -------------------------------------------------------------------------------------------------------


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, words, scales, zero_points, bias, ctx.format, ctx.n, ctx.activation = inputs
    ctx.k = x.shape[-1]
    if scales.requires_grad:
        raise LaunchError(
            "the scales require a gradient, but a quantized weight is frozen",
            hint="pass scales.detach(); gradients pass to x and to the bias",
        )
    ctx.save_for_backward(words, scales, zero_points, *(() if ctx.activation == "none" else (x, bias)))


def _silu_slope(z: torch.Tensor) -> torch.Tensor:
    """Return the derivative of silu; torch's own operator for it has none itself."""
    wide = z.float()
    s = torch.sigmoid(wide)
    return (s * (1 + wide * (1 - s))).to(z.dtype)


def _before_pairs(grad: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    gate, up = z.chunk(2, -1)
    return torch.cat((grad * up * _silu_slope(gate), grad * torch.nn.functional.silu(gate)), -1)


# By activation: the gradient of what it is applied to, z, from that of its result.
_BEFORE = {
    "relu": lambda grad, z: torch.ops.aten.threshold_backward(grad, z, 0),
    "gelu": lambda grad, z: torch.ops.aten.gelu_backward(grad, z),
    "gelu_tanh": lambda grad, z: torch.ops.aten.gelu_backward(grad, z, approximate="tanh"),
    "silu": lambda grad, z: grad * _silu_slope(z),
    "silu_mul": _before_pairs,
}


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    wants_x, _, _, _, wants_bias, *_ = ctx.needs_input_grad
    words, scales, zero_points, *applied = ctx.saved_tensors
    if applied:
        x, added = applied
        z = QUANTIZED_MATMUL(x, words, scales, zero_points, added, ctx.format, ctx.n)
        grad = _BEFORE[ctx.activation](grad, z)
    dx = bias = None
    if wants_x:
        dx = grad @ DEQUANTIZE(grad.detach(), words, scales, zero_points, ctx.format, ctx.n, ctx.k)
    if wants_bias:
        bias = grad.sum(tuple(range(grad.dim() - 1)))
    return dx, None, None, None, bias, None, None, None


torch.library.register_autograd("tilus::quantized_matmul", _backward, setup_context=_keep, lib=LIBRARY)
