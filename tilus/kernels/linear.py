"""`tilus.QuantLinear`: a `torch.nn.Linear` with a quantized weight."""

from __future__ import annotations

from typing import Any

import torch

from tilus.dtypes import DataType
from tilus.errors import LaunchError
from tilus.kernels import torch_ops  # noqa: F401  registers torch.ops.tilus
from tilus.runtime.weights.packing import native_pack
from tilus.runtime.weights.quantize import quantize
from tilus.runtime.weights.weight import QuantizedWeight, WeightFormat


class QuantLinear(torch.nn.Module):
    """`y = x @ dequantize(W).T + bias`, a drop-in for `torch.nn.Linear` at inference.

    Parameters
    ----------
    weight : QuantizedWeight
        [N, K], of torch tensors.
    bias : torch.Tensor, optional
        [N], of the type of the activations.
    """

    def __init__(self, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        if not isinstance(weight.words, torch.Tensor):
            raise LaunchError("QuantLinear needs a weight of torch tensors", hint="quantize a torch tensor")
        self.out_features, self.in_features = weight.shape
        self.weight_dtype = weight.weight_dtype
        self.format = str(weight.format)
        self.register_buffer("words", weight.words)
        self.register_buffer("scales", weight.scales)
        self.register_buffer("zero_points", weight.zero_points)
        self.register_buffer("bias", None if bias is None else bias.detach())

    @classmethod
    def from_linear(
        cls, linear: torch.nn.Linear, dtype: str | DataType, group_size: int = 128, **options: Any
    ) -> QuantLinear:
        """Quantize a linear layer; options are those of `tilus.quantize`."""
        return cls(quantize(linear.weight, dtype, group_size, **options), linear.bias)

    @property
    def weight(self) -> QuantizedWeight:
        """The quantized weight: the buffers of this module with what describes them."""
        shape = (self.out_features, self.in_features)
        return QuantizedWeight(
            WeightFormat.parse(self.format), shape, self.words, self.scales, self.zero_points, self.weight_dtype
        )

    def _apply(self, fn: Any, recurse: bool = True) -> QuantLinear:
        """Move as every module does; on another kind of device the codes take the order its kernels read."""
        before = self.words.device.type
        super()._apply(fn, recurse)
        after = self.words.device.type
        if after != before and after in ("cpu", "cuda"):
            weight = self.weight.repack(native_pack(self.weight.dtype, after))
            self.words, self.format = weight.words, str(weight.format)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [..., N] for activations [..., K]."""
        if x.shape[-1] != self.in_features:
            raise LaunchError(f"x has shape {tuple(x.shape)}, expected [..., {self.in_features}]")
        y: torch.Tensor = torch.ops.tilus.quantized_matmul(
            x, self.words, self.scales, self.zero_points, self.bias, self.format, self.out_features
        )
        return y

    def extra_repr(self) -> str:
        """Describe the layer in `print(model)`."""
        return f"{self.in_features} -> {self.out_features}, {self.format}, bias={self.bias is not None}"
