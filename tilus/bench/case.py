"""A weight to multiply by, and what a system makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from tilus.bench.shapes import Layer
from tilus.runtime.weights.quantize import quantize
from tilus.runtime.weights.weight import QuantizedWeight

PATTERN = 512  # rows that are made; a weight repeats them, which no kernel can notice


class Case:
    """A layer's weight [n, k] in a type: random numbers of a few rows, again and again.

    Parameters
    ----------
    layer : Layer
    weight : str
        Type, `f16` for none.
    group : int
    device : str
        Where tensors live.
    """

    def __init__(self, layer: Layer, weight: str, group: int, device: str) -> None:
        self.layer, self.weight, self.group, self.device = layer, weight, group, device
        self.rows = PATTERN if layer.n % PATTERN == 0 else layer.n
        self.repeats = layer.n // self.rows

    @cached_property
    def pattern(self) -> torch.Tensor:
        """The rows, f16 [rows, k]."""
        generator = torch.Generator().manual_seed(self.layer.k)
        return torch.randn(self.rows, self.layer.k, generator=generator).half().to(self.device)

    @cached_property
    def quantized(self) -> QuantizedWeight:
        """The rows in the type, unsigned integers with zero points."""
        return quantize(self.pattern, self.weight, self.group)

    @cached_property
    def symmetric(self) -> QuantizedWeight:
        """The rows in the type, unsigned integers with a constant in place of zero points."""
        return quantize(self.pattern, self.weight, self.group, zero_point=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole weight, scales and zero points included."""
        per_row: int = 2 * self.rows * self.layer.k if self.weight == "f16" else self.quantized.nbytes
        return per_row * self.repeats

    def integers(self, weight: QuantizedWeight) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return codes [n, k] and scales and zero points [n, groups] of an unsigned type, as uint8, f16 and uint8."""
        codes = torch.from_numpy(weight.codes()).to(self.device)
        scales = weight.scales.T
        middle = 1 << weight.dtype.nbits - 1
        zeros = torch.full_like(scales, middle) if weight.zero_points is None else weight.zero_points.T
        parts = codes, scales, zeros.to(torch.uint8)
        return tuple(part.repeat(self.repeats, 1) for part in parts)  # type: ignore[return-value]


def values_of(weight: QuantizedWeight, device: str) -> torch.Tensor:
    """Return the values of a weight, f32."""
    values: Any = weight.dequantize("f32")
    return torch.as_tensor(values).to(device)


@dataclass(frozen=True, slots=True)
class Product:
    """One copy of a weight, ready to multiply by.

    Attributes
    ----------
    run : callable
        Activations [m, k] to results [m, n].
    reference : tensor [rows, k]
        What the weight's rows stand for.
    dtype : torch.dtype
        Of activations and results.
    """

    run: Callable[[torch.Tensor], torch.Tensor]
    reference: torch.Tensor
    dtype: torch.dtype = torch.float16


@dataclass(frozen=True, slots=True)
class Peer:
    """A system to compare with: a small adapter to whatever the user has installed.

    Attributes
    ----------
    name : str
    missing : callable
        Returns why it cannot be used here, or None.
    refuses : callable
        Returns why it does not multiply by such a weight, or None.
    prepare : callable
        Returns a copy of the weight in its own order.
    """

    name: str
    missing: Callable[[], str | None]
    refuses: Callable[[Case], str | None]
    prepare: Callable[[Case], Product]


def pack_along_k(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes [n, k] of 1, 2, 4 or 8 bits into int32 [k / per, n], the first of `per` codes in the lowest bits."""
    n, k = codes.shape
    per = 32 // bits
    shifts = bits * torch.arange(per, device=codes.device, dtype=torch.int64)
    words = (codes.T.reshape(k // per, per, n).to(torch.int64) << shifts[:, None]).sum(1)
    return (words - ((words >> 31) << 32)).to(torch.int32)
