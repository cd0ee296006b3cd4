"""The kernels of one product in their order, and what to call each with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tilus.dtypes import f32
from tilus.kernels.candidates import Configuration
from tilus.kernels.programs import add_parts
from tilus.runtime.arguments import element_type, is_torch
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
    """The arrays of a product: x [M, K] and y [M, N], not empty but for K = 0, and those of a weight."""

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
        result = self.y if kernels.adder is None else new_array(self.x, (kernels.split, *self.y.shape), "float32")
        args = self.arguments(result)
        adding = (result, self.scales, args[4], self.y, *args[6:8], *args[9:])
        if isinstance(self.form.pack, TritPack):  # has neither zero points nor a tensor scale
            args = (*args[:3], *args[4:-1])
        product = kernels.product, args
        return [product] if kernels.adder is None else [product, (kernels.adder, adding)]

    def sums_of_nothing(self, epilogue: str) -> Call:
        """Return the call for K = 0: bias and activation are left."""
        zeros = new_array(self.x, (1, *self.y.shape), "float32")
        zeros[...] = 0
        kernel = add_parts.bind(
            XT=element_type(self.y.dtype), ST=f32, SPLIT=1, GROUP=1, SCALED=False, BIAS=self.bias is not None,
            ACTIVATION=epilogue,
        )  # fmt: skip
        return kernel, (zeros, zeros, self.y if self.bias is None else self.bias, self.y, *self.y.shape, 0, 1.0)

    def arguments(self, result: Any) -> tuple[Any, ...]:
        """Return what products are called with: arrays, the last one `result`, M, N, K, groups and tensor scale."""
        (m, n), k, form = self.y.shape, self.x.shape[1], self.form
        # In place of what is not there stands any array: it is not read.
        zeros = self.words if self.zero_points is None else self.zero_points
        bias = self.y if self.bias is None else self.bias
        return self.x, self.words, self.scales, zeros, bias, result, m, n, k, form.groups(k), form.tensor_scale


def new_array(model: Any, shape: tuple[int, ...], kind: str) -> Any:
    """Return an array where another one lives, not filled, of a type that NumPy and torch call by the same name."""
    if not is_torch(model):
        return np.empty(shape, kind)
    import torch  # the model is a tensor: torch is loaded already

    return model.new_empty(shape, dtype=getattr(torch, kind))
