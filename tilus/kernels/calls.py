"""The kernels of one product in their order, and what to call each with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tilus.kernels.candidates import Configuration
from tilus.kernels.programs import add_parts
from tilus.runtime.arguments import element_type, is_torch
from tilus.runtime.kernel import BoundKernel
from tilus.runtime.weights.weight import WeightFormat

Call = tuple[BoundKernel, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Kernels:
    """What a product runs.

    Attributes
    ----------
    product : BoundKernel
    adder : BoundKernel, optional
        Adds up what `product` writes, if blocks share K or there are pairs of results.
    split : int
        How many do.
    """

    product: BoundKernel
    adder: BoundKernel | None = None
    split: int = 1

    @staticmethod
    def of(configuration: Configuration) -> Kernels:
        """Return the kernels of a configuration for a GPU."""
        return Kernels(configuration.kernel, configuration.adder, configuration.get("SPLIT", 1))


@dataclass(frozen=True, slots=True)
class Operands:
    """The arrays of a product, x [M, K] and y, and those of a weight; none of M, N and the columns of y is 0."""

    x: Any
    words: Any
    scales: Any
    zero_points: Any | None
    bias: Any | None
    y: Any
    form: WeightFormat

    @property
    def rows(self) -> int:
        """N of the weight: of y too, but for pairs."""
        n: int = self.scales.shape[1]
        return n

    def calls(self, kernels: Kernels) -> list[Call]:
        """Return the calls.

        Where blocks share K, an array is between the two kernels that belongs to this call: calls on several streams
        share nothing, and in a CUDA graph it is memory of the graph.
        """
        result = self.y if kernels.adder is None else self.sums(kernels.split)
        args = self.arguments(result)
        product = kernels.product, args
        return [product] if kernels.adder is None else [product, self.adding(kernels.adder, result)]

    def sums(self, split: int = 1) -> Any:
        """Return an array for what `adding` reads, [split, M, N]."""
        return new_array(self.x, (split, self.y.shape[0], self.rows), "float32")

    def adding(self, adder: BoundKernel, sums: Any) -> Call:
        """Return the call that makes results of sums."""
        *_, bias, _, m, n, _, groups, tensor_scale = self.arguments(sums)
        return adder, (sums, self.scales, bias, self.y, m, n, groups, tensor_scale)

    def sums_of_nothing(self, epilogue: str) -> Call:
        """Return the call for K = 0: bias and activation are left."""
        zeros = self.sums()
        zeros[...] = 0
        types = {"XT": element_type(self.y.dtype), "ST": element_type(self.scales.dtype)}
        rest = {"SPLIT": 1, "GROUP": 1, "SCALED": False, "BIAS": self.bias is not None, "ACTIVATION": epilogue}
        return self.adding(add_parts.bind(**types, **rest), zeros)

    def arguments(self, result: Any) -> tuple[Any, ...]:
        """Return what products are called with: arrays, the last one `result`, M, N, K, groups and tensor scale."""
        m, n, k, form = self.y.shape[0], self.rows, self.x.shape[1], self.form.of_stored
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
