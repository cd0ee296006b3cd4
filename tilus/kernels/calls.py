"""The kernels of one product in their order, and what to call each with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tilus.kernels.candidates import Configuration
from tilus.runtime.arguments import is_torch
from tilus.runtime.kernel import BoundKernel
from tilus.runtime.weights.trits import TritPack
from tilus.runtime.weights.weight import WeightFormat

Call = tuple[BoundKernel, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Kernels:
    """What a product runs.

    Attributes
    ----------
    product : BoundKernel
    adder : BoundKernel, optional
        Adds up what `product` writes, if blocks share K.
    split : int
        How many do.
    """

    product: BoundKernel
    adder: BoundKernel | None = None
    split: int = 1

    @staticmethod
    def of(configuration: Configuration) -> Kernels:
        """Return the kernels of a configuration for a GPU."""
        split = configuration.get("SPLIT", 1)
        return Kernels(configuration.kernel, configuration.adder if split > 1 else None, split)


@dataclass(frozen=True, slots=True)
class Operands:
    """The arrays of a product: x [M, K] and y [M, N], none of them empty, and those of a weight."""

    x: Any
    words: Any
    scales: Any
    zero_points: Any | None
    bias: Any | None
    y: Any
    form: WeightFormat

    def calls(self, kernels: Kernels) -> list[Call]:
        """Return the calls.

        Where blocks share K, an array is between the two kernels that belongs to this call: calls on several streams
        share nothing, and in a CUDA graph it is memory of the graph.
        """
        (m, n), k, form = self.y.shape, self.x.shape[1], self.form
        # In place of what is not there stands any array: it is not read.
        zeros = self.words if self.zero_points is None else self.zero_points
        bias = self.y if self.bias is None else self.bias
        result = self.y if kernels.adder is None else _new_f32(self.x, (kernels.split, m, n))
        args: tuple[Any, ...]
        args = (self.x, self.words, self.scales, zeros, bias, result, m, n, k, form.groups(k), form.tensor_scale)
        if isinstance(form.pack, TritPack):  # has neither zero points nor a tensor scale
            args = (*args[:3], *args[4:-1])
        if kernels.adder is None:
            return [(kernels.product, args)]
        adding = result, self.scales, bias, self.y, m, n, form.groups(k), form.tensor_scale
        return [(kernels.product, args), (kernels.adder, adding)]


def _new_f32(x: Any, shape: tuple[int, ...]) -> Any:
    """Return an array of f32 where `x` lives, not filled."""
    if not is_torch(x):
        return np.empty(shape, np.float32)
    import torch  # x is a tensor: torch is loaded already

    return x.new_empty(shape, dtype=torch.float32)
