"""Choose program and compile-time constants of the quantized matmul."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilus.dtypes import DataType
from tilus.kernels.configure_cpu import (
    CPU_BATCH_TILES,
    LARGEST_IN_REGISTERS,
    panel_constants,
    register_constants,
)
from tilus.kernels.configure_gpu import gpu_batch_tiles, sliced_constants, ternary_constants
from tilus.kernels.programs import add_parts, panel_matmul, quantized_matmul, sliced_matmul, ternary_matmul
from tilus.runtime.kernel import Kernel
from tilus.runtime.targets import Device
from tilus.runtime.weights.trits import TritPack
from tilus.runtime.weights.weight import WeightFormat


def rows_per_block(m: int, device: Device, weight: DataType, activation: DataType) -> int:
    """Return the batch tile BM for a batch of `m`."""
    sizes = CPU_BATCH_TILES if device == "cpu" else gpu_batch_tiles(weight, activation)
    return next((size for size in sizes if m <= size), sizes[-1])


def matmul_program(
    form: WeightFormat,
    activation: DataType,
    scale: DataType,
    bm: int,
    bias: bool,
    *,
    k: int | None = None,
    split: int = 1,
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
    k : int, optional
        Extent of K; by default one that tiles, groups and trips divide.
    split : int
        Blocks that share K on a GPU; with more than one, `adding_program` adds up what they write.
    """
    on_cpu = form.pack.device == "cpu"
    if isinstance(form.pack, TritPack):
        return ternary_matmul, ternary_constants(form, activation, scale, bm, bias, split)
    if not on_cpu:
        return sliced_matmul, sliced_constants(form, activation, scale, bm, bias, k, split)
    if bm > LARGEST_IN_REGISTERS:
        return panel_matmul, panel_constants(form, activation, scale, bm, bias)
    return quantized_matmul, register_constants(form, activation, scale, bm, bias)


def adding_program(constants: Mapping[str, Any]) -> tuple[Kernel, dict[str, Any]]:
    """Return the program that adds up parts of a product, by the constants of the program that makes them."""
    names = {constant.name for constant in add_parts.definition.constants}
    return add_parts, {"SCALED": False} | {name: value for name, value in constants.items() if name in names}
