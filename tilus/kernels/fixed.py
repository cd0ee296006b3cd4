"""When a CPU multiplies in fixed point (see `programs/fixed_matmul.py`), and what it launches then."""

from __future__ import annotations

from functools import cache
from typing import Any

from tilus.dtypes import DataType, f32
from tilus.kernels.calls import Call, Operands, new_array
from tilus.kernels.configure import adding_kernel, ending
from tilus.kernels.configure_cpu import FIXED_IN_REGISTERS, fixed_constants, fixed_rows, takes_fixed
from tilus.kernels.programs import fix_activations, fixed_matmul, fixed_panel_matmul
from tilus.runtime.arguments import element_type
from tilus.runtime.kernel import BoundKernel
from tilus.runtime.knobs import knobs
from tilus.runtime.weights.weight import WeightFormat


def is_wanted(form: WeightFormat, x: Any) -> bool:
    """Whether a product with a weight in a CPU's order is one of fixed point: asked for, or not needed in f32."""
    chosen = knobs.cpu_activations
    wanted = chosen == "fixed16" or (chosen == "auto" and element_type(x.dtype) != f32)
    return wanted and takes_fixed(form)


def fixed_calls(
    operands: Operands, form: WeightFormat, activation: DataType, scale: DataType, epilogue: str
) -> list[Call]:
    """Return what to launch, one after the other; `form` is the operands' with a tensor scale that stands for all."""
    m, k = operands.x.shape
    bm = fixed_rows(m, operands.rows, k)
    product, rounding, adder, chunk = _kernels(form, activation, scale, bm, operands.bias is not None, epilogue)
    result = operands.y if adder is None else operands.sums()
    x, *rest = operands.arguments(result)
    adding = [] if adder is None else [operands.adding(adder, result)]
    if rounding is None:
        return [(product, (x, *rest)), *adding]
    tiles = -(-k // chunk), -(-m // bm), bm
    numbers, units = new_array(x, (*tiles, chunk), "int16"), new_array(x, (*tiles, 1), "float32")
    return [(rounding, (x, numbers, units, m, k)), (product, (numbers, units, *rest)), *adding]


@cache
def _kernels(
    form: WeightFormat, activation: DataType, scale: DataType, bm: int, bias: bool, epilogue: str
) -> tuple[BoundKernel, BoundKernel | None, BoundKernel | None, int]:
    """Return the product, what rounds activations and what makes results of pairs, if any, and a unit's columns."""
    constants = fixed_constants(form, activation, scale, bm, bias) | ending(epilogue)
    chunk, adder = constants["CHUNK"], adding_kernel(constants)
    if bm <= FIXED_IN_REGISTERS:
        return fixed_matmul.bind(**constants), None, adder, chunk
    rounding = fix_activations.bind(XT=activation, BM=bm, CHUNK=chunk, ROWS=2)
    return fixed_panel_matmul.bind(**constants), rounding, adder, chunk
