"""`tilus.QuantLinear`: a `torch.nn.Linear` with a quantized weight."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch

from tilus.dtypes import DataType
from tilus.errors import LaunchError
from tilus.kernels import torch_ops  # noqa: F401  registers torch.ops.tilus
from tilus.kernels.epilogues import result_columns
from tilus.runtime.targets import code_device
from tilus.runtime.weights.packing import PackLayout, native_pack, native_packs
from tilus.runtime.weights.quantize import quantize
from tilus.runtime.weights.weight import QuantizedWeight, WeightFormat

_STATE = re.compile(r"(.+) \| shape (\d+) (\d+)(?: (\w+))?")  # format, N, K, activation unless none


def _read_state(state: torch.Tensor) -> tuple[WeightFormat, list[int], str]:
    """Return the format, the shape [N, K] and the activation that `get_extra_state` wrote."""
    found = _STATE.fullmatch(bytes(state.tolist()).decode(errors="replace"))
    if not found:
        raise LaunchError(
            "the state does not say which format and shape its weight has", hint="save it again with state_dict()"
        )
    return WeightFormat.parse(found[1]), [int(found[2]), int(found[3])], found[4] or "none"


class QuantLinear(torch.nn.Module):
    """`y = activation(x @ dequantize(W).T + bias)`, a drop-in for `torch.nn.Linear` whose weight is frozen.

    Gradients pass through it to the activations.

    Parameters
    ----------
    weight : QuantizedWeight
        [N, K], of torch tensors.
    bias : torch.Tensor, optional
        [N], of the type of the activations.
    activation : str
        As for `tilus.matmul`. `silu_mul` returns half of `out_features`, which are the weight's rows.
    """

    words: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: torch.Tensor | None = None, *, activation: str = "none") -> None:
        super().__init__()
        if not isinstance(weight, QuantizedWeight) or not isinstance(weight.words, torch.Tensor):
            raise LaunchError("QuantLinear needs a QuantizedWeight of torch tensors", hint="quantize a torch tensor")
        self.out_features, self.in_features = weight.shape
        if bias is not None and tuple(bias.shape) != (self.out_features,):
            raise LaunchError(f"bias must have shape [{self.out_features}], got {list(bias.shape)}")
        result_columns(activation, self.out_features)
        place = weight.words.device.type
        weight = weight.packed_for(code_device(place)) if place in ("cpu", "cuda") else weight
        self.activation = activation
        self.weight_dtype = weight.weight_dtype
        self.format = weight.format_text
        self.register_buffer("words", weight.words)
        self.register_buffer("scales", weight.scales)
        self.register_buffer("zero_points", weight.zero_points)
        self.register_buffer("bias", None if bias is None else bias.detach())

    @classmethod
    def from_linear(
        cls,
        linear: torch.nn.Linear,
        dtype: str | DataType,
        group_size: int = 128,
        *,
        activation: str = "none",
        **options: Any,
    ) -> QuantLinear:
        """Quantize a linear layer; options are those of `tilus.quantize`."""
        if not isinstance(linear, torch.nn.Linear):
            raise LaunchError(
                f"from_linear takes a torch.nn.Linear, got {type(linear).__name__}",
                hint="for other layers pass QuantLinear(tilus.quantize(weight, ...), bias), weight of shape [N, K]",
            )
        return cls(quantize(linear.weight, dtype, group_size, **options), linear.bias, activation=activation)

    @property
    def weight(self) -> QuantizedWeight:
        """The quantized weight: the buffers of this module with what describes them."""
        return QuantizedWeight(
            WeightFormat.parse(self.format),
            (self.out_features, self.in_features),
            self.words,
            self.scales,
            self.zero_points,
            self.weight_dtype,
        )

    def _apply(self, fn: Any, recurse: bool = True) -> QuantLinear:
        """Move and convert as every module does, with two exceptions.

        Scales keep their type: `half()` would flush small ones to zero. On another kind of device the codes take the
        order that its kernels read.
        """
        place, scales = self.words.device.type, self.scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scales.dtype != scales.dtype:
            self.scales = scales.to(self.scales.device)
        kind = self.words.device.type
        if kind != place and kind in ("cpu", "cuda"):
            dtype = self.weight.dtype
            if self.weight.format.pack not in native_packs(dtype, kind):
                self._repack(native_pack(dtype, kind, self.weight_dtype))
        return self

    def _repack(self, pack: PackLayout) -> None:
        weight = self.weight.repack(pack)
        self.words, self.format = weight.words, weight.format_text

    def get_extra_state(self) -> torch.Tensor:
        """Return format, shape and activation as bytes: a `state_dict` says what its words mean, wherever made."""
        text = f"{self.format} | shape {self.out_features} {self.in_features}"
        if self.activation != "none":
            text += f" {self.activation}"
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Do nothing: `_load_from_state_dict` has read it."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load words of any packed order; refuse another shape, activation, type, group size or kind of zero point."""
        key = prefix + "_extra_state"
        if key in state_dict and prefix + "words" in state_dict:
            given, shape, activation = _read_state(state_dict[key])
            mine = WeightFormat.parse(self.format)
            if shape != [self.out_features, self.in_features]:
                raise LaunchError(
                    f"{prefix or 'the state'} holds a weight of shape {shape}, "
                    f"this layer has [{self.out_features}, {self.in_features}]",
                    hint="make the layer with the extents that were saved: padding hides what differs",
                )
            if activation != self.activation:
                raise LaunchError(
                    f"{prefix or 'the state'} holds a layer with activation {activation!r}, "
                    f"this layer has {self.activation!r}",
                    hint="make the layer with the activation that was saved",
                )
            if given != mine:
                here = replace(given, pack=mine.pack)
                if replace(here, tensor_scale=mine.tensor_scale) != mine or given.dtype != mine.dtype:
                    raise LaunchError(
                        f"{prefix or 'the state'} holds a weight of format {given}, this layer has {mine}",
                        hint="make the layer with the type and group size that were saved",
                    )
                words = replace(self.weight, format=given, words=state_dict[prefix + "words"]).repack(mine.pack).words
                state_dict = {**state_dict, prefix + "words": words}
                self.format = str(here)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [..., N] for activations [..., K]."""
        if not x.shape or x.shape[-1] != self.in_features:
            raise LaunchError(f"x has shape {tuple(x.shape)}, expected [..., {self.in_features}]")
        y: torch.Tensor = torch.ops.tilus.quantized_matmul(
            x,
            self.words,
            self.scales,
            self.zero_points,
            self.bias,
            self.format,
            self.out_features,
            self.activation,
        )
        return y

    def extra_repr(self) -> str:
        """Describe the layer in `print(model)`."""
        text = f"{self.in_features} -> {self.out_features}, {self.format}, bias={self.bias is not None}"
        return text if self.activation == "none" else f"{text}, activation={self.activation}"
