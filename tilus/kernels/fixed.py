"""When a CPU multiplies in fixed point (see `programs/fixed_matmul.py`), and what it launches then."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from tilus.dtypes import DataType, f32
from tilus.kernels.calls import Call
from tilus.kernels.configure_cpu import FIXED_IN_REGISTERS, fixed_constants, fixed_rows, takes_fixed
from tilus.kernels.programs import fix_activations, fixed_matmul, fixed_panel_matmul
from tilus.runtime.arguments import element_type, is_torch
from tilus.runtime.kernel import BoundKernel
from tilus.runtime.knobs import knobs
from tilus.runtime.weights.weight import WeightFormat


def is_wanted(form: WeightFormat, x: Any) -> bool:
    """Whether a product with a weight in a CPU's order is one of fixed point: asked for, or not needed in f32."""
    chosen = knobs.cpu_activations
    wanted = chosen == "fixed16" or (chosen == "auto" and element_type(x.dtype) != f32)
    return wanted and takes_fixed(form)


def fixed_calls(
    x: Any, words: Any, scales: Any, zero_points: Any | None, bias: Any | None, form: WeightFormat, y: Any
) -> list[Call]:
    """Return what to launch, one after the other, for x [M, K] and y [M, N], none of them empty."""
    (m, n), k = y.shape, x.shape[1]
    x_type, scale_type = element_type(x.dtype), form.scale or element_type(scales.dtype)
    assert x_type is not None, "check_operands ran"
    assert scale_type is not None, "check_operands ran"
    any_scale = form if form.tensor_scale == 1.0 else replace(form, tensor_scale=2.0)  # one kernel for all
    bm = fixed_rows(m)
    product, rounding, chunk = _kernels(any_scale, x_type, scale_type, bm, bias is not None)
    # In place of what is not there stands any array: it is not read.
    zeros, added = words if zero_points is None else zero_points, y if bias is None else bias
    operands = words, scales, zeros, added, y, m, n, k, form.groups(k), form.tensor_scale
    if rounding is None:
        return [(product, (x, *operands))]
    tiles = -(-k // chunk), -(-m // bm), bm
    numbers, units = _empty(x, (*tiles, chunk), "int16"), _empty(x, (*tiles, 1), "float32")
    return [(rounding, (x, numbers, units, m, k)), (product, (numbers, units, *operands))]


@cache
def _kernels(
    form: WeightFormat, activation: DataType, scale: DataType, bm: int, bias: bool
) -> tuple[BoundKernel, BoundKernel | None, int]:
    """Return the product, the rounding of activations if that is apart, and the columns that share a unit."""
    constants = fixed_constants(form, activation, scale, bm, bias)
    chunk = constants["CHUNK"]
    if bm <= FIXED_IN_REGISTERS:
        return fixed_matmul.bind(**constants), None, chunk
    rounding = fix_activations.bind(XT=activation, BM=bm, CHUNK=chunk, ROWS=2)
    return fixed_panel_matmul.bind(**constants), rounding, chunk


def _empty(model: Any, shape: tuple[int, ...], kind: str) -> Any:
    if not is_torch(model):
        return np.empty(shape, kind)
    import torch  # the model is a tensor: torch is loaded already

    return model.new_empty(shape, dtype=getattr(torch, kind))
