"""A packed weight as a matrix, on the device where it lies."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from tilus.dtypes import DataType
from tilus.kernels.configure import matmul_program
from tilus.kernels.dispatch import check_operands
from tilus.kernels.programs.dequantize import dequantize, dequantize_ternary
from tilus.runtime.arguments import element_type, is_torch
from tilus.runtime.kernel import BoundKernel
from tilus.runtime.weights.packing import PACKS
from tilus.runtime.weights.weight import WeightFormat


def expand(model: Any, words: Any, scales: Any, zero_points: Any | None, form: WeightFormat, n: int, k: int) -> Any:
    """Return the weight [n, k] in the type of an array `model`, each value rounded from f32.

    Raises
    ------
    LaunchError
        If the operands do not fit together, or `model` is of a type that kernels do not multiply.
    """
    probe = model.new_empty((1, k)) if is_torch(model) else np.empty((1, k), model.dtype)
    check_operands(probe, words, scales, zero_points, None, form, n)
    y = model.new_empty((n, k)) if is_torch(model) else np.empty((n, k), model.dtype)
    if n and k:
        form = form.of_stored
        kind, scale = element_type(y.dtype), form.scale or element_type(scales.dtype)
        assert kind is not None, "check_operands ran"
        assert scale is not None, "check_operands ran"
        any_scale = form if form.tensor_scale == 1.0 else replace(form, tensor_scale=2.0)  # one kernel for all
        launch = _kernel(any_scale, kind, scale)
        zeros = words if zero_points is None else zero_points  # any array: it is not read
        launch(words, scales, zeros, y, n, k, form.groups(k), form.tensor_scale)
    return y


@cache
def _kernel(form: WeightFormat, kind: DataType, scale: DataType) -> BoundKernel:
    ternary = form.dtype.name in PACKS
    program = dequantize_ternary if ternary else dequantize
    _, shared = matmul_program(form, kind, scale, 1, bias=False)
    names = [c.name for c in program.definition.constants]
    return program.bind(**{"YT": kind} | {name: shared[name] for name in names if name in shared})
