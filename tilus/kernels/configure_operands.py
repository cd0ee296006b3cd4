"""The compile-time constants that every program of the quantized matmul has."""

from __future__ import annotations

from typing import Any

from tilus.dtypes import DataType, dtype
from tilus.runtime.weights.weight import WeightFormat

ZERO_POINTS = {True: dtype("i8"), False: dtype("u8")}  # by whether the codes have a sign


def operand_constants(form: WeightFormat, activation: DataType, scale: DataType, bm: int, bias: bool) -> dict[str, Any]:
    """Return what follows from the operands: their types, the weight's packed order and groups, the batch tile."""
    return {
        "XT": activation,
        "YT": activation,
        "ST": scale,
        "ZT": ZERO_POINTS[form.dtype.is_signed] if form.zero_point == "tensor" else dtype("u32"),
        "PACK": form.pack,
        "BM": bm,
        "GROUP": max(form.group_size, 0),
        "ZERO": form.zero_point,
        "SCALED": form.tensor_scale != 1.0,
        "BIAS": bias,
    }
