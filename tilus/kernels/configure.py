"""Choose program and compile-time constants of the quantized matmul."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilus.dtypes import DataType, f32
from tilus.kernels.configure_cpu import (
    CPU_BATCH_TILES,
    LARGEST_IN_REGISTERS,
    panel_constants,
    register_constants,
    ternary_constants,
)
from tilus.kernels.configure_gpu import gpu_batch_tiles, sliced_constants
from tilus.kernels.epilogues import PAIRED
from tilus.kernels.programs import add_parts, panel_matmul, quantized_matmul, sliced_matmul, ternary_matmul
from tilus.runtime.kernel import BoundKernel, Kernel
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
        Blocks that share K on a GPU; with more than one, `adding_kernel` adds up what they write.
    """
    form = form.of_stored
    on_cpu = form.pack.device == "cpu"
    if not on_cpu:
        return sliced_matmul, sliced_constants(form, activation, scale, bm, bias, k, split)
    if isinstance(form.pack, TritPack):
        return ternary_matmul, ternary_constants(form, activation, scale, bm, bias)
    if bm > LARGEST_IN_REGISTERS:
        return panel_matmul, panel_constants(form, activation, scale, bm, bias)
    return quantized_matmul, register_constants(form, activation, scale, bm, bias)


def ending(epilogue: str) -> dict[str, Any]:
    """Return the constants that say what a program's results go through: pairs are left to `adding_kernel`, in f32."""
    return {"ACTIVATION": epilogue} | ({"YT": f32} if epilogue == PAIRED else {})


def adding_kernel(constants: Mapping[str, Any]) -> BoundKernel | None:
    """Return what makes results of the sums that a program with these constants writes; None if it has made them.

    Sums are left where blocks share K, and where results are of pairs.
    """
    if constants.get("CLUSTERED"):
        return None
    names = {constant.name for constant in add_parts.definition.constants}
    chosen = {"SCALED": False, "SPLIT": 1} | {name: value for name, value in constants.items() if name in names}
    if chosen["SPLIT"] == 1:
        if chosen["ACTIVATION"] != PAIRED:
            return None
        chosen |= {"GROUP": 1, "SCALED": False, "BIAS": False}  # the sums have them
    return add_parts.bind(**chosen)
