"""A product of random numbers: the kernels that `tilus.matmul` launches on a GPU, and what to call them with."""

from __future__ import annotations

import numpy as np

from tilus.dtypes import DataType
from tilus.kernels.calls import Call, Operands
from tilus.kernels.dispatch import prepare
from tilus.runtime.knobs import knobs
from tilus.runtime.weights.quantize import NUMPY_TYPES, quantize


def sample_product(
    weight: str | DataType, activation: DataType, group_size: int, shape: tuple[int, int, int], seed: int = 0
) -> list[Call]:
    """Return the kernels for a product with a bias, and arguments on the CPU.

    Parameters
    ----------
    weight : str or DataType
        What `tilus.quantize` takes.
    activation : DataType
        f16, bf16 or f32.
    group_size : int
    shape : (int, int, int)
        M, N and K.
    seed : int
        Of the random numbers.
    """
    (m, n, k), rng = shape, np.random.default_rng(seed)

    def normal(*extents: int) -> np.ndarray:
        codes: np.ndarray = activation.encode(rng.standard_normal(extents))
        return codes.view(NUMPY_TYPES[activation.name])

    with knobs.scope(target="simt"):
        w = quantize(normal(n, k), weight, group_size)
        x, bias, y = normal(m, k), normal(n), normal(m, n)
        return prepare(Operands(x, w.words, w.scales, w.zero_points, bias, y, w.format))
