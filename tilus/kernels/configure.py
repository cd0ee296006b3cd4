"""Choose the compile-time constants of the quantized matmul."""

from __future__ import annotations

from functools import cache
from typing import Any

from tilus.dtypes import DataType, dtype
from tilus.runtime.weights.packing import LANES, WARPS, Device
from tilus.runtime.weights.weight import WeightFormat

ZERO_POINTS = {True: dtype("i8"), False: dtype("u8")}  # by whether the codes have a sign


def compute_dtype(weight: DataType, activation: DataType) -> DataType:
    """Return the type to multiply in: that of the activations if it holds every code's value (codebooks: rounded)."""
    if activation.name == "f32" or weight.is_codebook:
        return activation
    values = weight.decode(range(2**weight.nbits))
    rounded = activation.decode(activation.encode(values))
    same = (values == rounded) | ((values != values) & (rounded != rounded))
    return activation if bool(same.all()) else dtype("f32")


def rows_per_block(m: int, device: Device) -> int:
    """Return the batch tile BM for a batch of `m`."""
    sizes = (1, 4) if device == "cpu" else (8, 16, 32, 64)
    return next((size for size in sizes if m <= size), sizes[-1])


@cache
def constants(form: WeightFormat, activation: DataType, scale: DataType, bm: int, bias: bool) -> dict[str, Any]:
    """Return the compile-time constants of `quantized_matmul` for a weight format and batch tile."""
    on_cpu = form.pack.fragment.num_threads == LANES
    return {
        "XT": activation,
        "CT": dtype("f32") if on_cpu else compute_dtype(form.dtype, activation),
        "ST": scale,
        "ZT": ZERO_POINTS[form.dtype.is_signed] if form.zero_point == "tensor" else dtype("u32"),
        "PACK": form.pack,
        "BM": bm,
        "GROUP": max(form.group_size, 0),
        "ZERO": form.zero_point,
        "BIAS": bias,
        "STAGES": 0 if on_cpu else 3,
        "WARPS": 1 if on_cpu else WARPS,
    }
