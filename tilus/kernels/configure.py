"""Choose program and compile-time constants of the quantized matmul."""

from __future__ import annotations

from typing import Any

from tilus.dtypes import DataType
from tilus.kernels.configure_cpu import (
    CPU_BATCH_TILES,
    LARGEST_IN_REGISTERS,
    panel_constants,
    register_constants,
)
from tilus.kernels.configure_gpu import gpu_batch_tiles, sliced_constants, ternary_constants
from tilus.kernels.programs import panel_matmul, quantized_matmul, sliced_matmul, ternary_matmul
from tilus.runtime.kernel import Kernel
from tilus.runtime.targets import Device
from tilus.runtime.weights.trits import TritPack
from tilus.runtime.weights.weight import WeightFormat


def rows_per_block(m: int, device: Device, weight: DataType, activation: DataType) -> int:
    """Return the batch tile BM for a batch of `m`."""
    sizes = CPU_BATCH_TILES if device == "cpu" else gpu_batch_tiles(weight, activation)
    return next((size for size in sizes if m <= size), sizes[-1])


def matmul_program(
    form: WeightFormat, activation: DataType, scale: DataType, bm: int, bias: bool, *, whole: bool = True
) -> tuple[Kernel, dict[str, Any]]:
    """Return the program that multiplies by a weight, and its compile-time constants.

    Parameters
    ----------
    form : WeightFormat
        In an order that is native to a device.
    activation, scale : DataType
        Of the arrays.
    bm : int
        Batch tile, from `rows_per_block`.
    bias : bool
        Whether there is one.
    whole : bool
        Whether every tile along K has all its groups, as it has where K is a multiple of the tile's.
    """
    on_cpu = form.pack.device == "cpu"
    if isinstance(form.pack, TritPack):
        return ternary_matmul, ternary_constants(form, activation, scale, bm, bias)
    if not on_cpu:
        return sliced_matmul, sliced_constants(form, activation, scale, bm, bias, whole)
    if bm > LARGEST_IN_REGISTERS:
        return panel_matmul, panel_constants(form, activation, scale, bm, bias)
    return quantized_matmul, register_constants(form, activation, scale, bm, bias)
