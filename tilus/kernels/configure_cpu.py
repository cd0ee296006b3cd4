"""Choose program and compile-time constants of the quantized matmul on a CPU."""

from __future__ import annotations

from functools import cache
from math import gcd
from typing import Any

from tilus.dtypes import DataType
from tilus.kernels.configure_operands import operand_constants
from tilus.layouts import RegisterLayout, local, spatial
from tilus.runtime.weights.packing import PackLayout
from tilus.runtime.weights.weight import WeightFormat

# Up to the first bound weights are unpacked in registers, beyond it into a panel (see `panel_matmul`). Multiples of 6
# fill the registers best; activations beyond the last one are taken by further blocks.
LARGEST_IN_REGISTERS = 4
CPU_BATCH_TILES = (1, 2, LARGEST_IN_REGISTERS, 6, 8, 12, 16, 24, 48, 96)
PANEL_COLUMNS = 128


def panel_layout(pack: PackLayout) -> RegisterLayout:
    """Return the layout of a panel [columns, BN]: lanes have neighbouring weight rows, as codes have."""
    rows, lanes = pack.tile[0], pack.fragment.num_threads
    return local(PANEL_COLUMNS, 1) * local(1, rows // lanes) * spatial(1, lanes)


@cache
def register_constants(
    form: WeightFormat, activation: DataType, scale: DataType, bm: int, bias: bool
) -> dict[str, Any]:
    """Return the compile-time constants of `quantized_matmul` for a weight format and batch tile."""
    step = gcd(max(form.group_size, 0), form.pack.tile[1])
    return operand_constants(form, activation, scale, bm, bias) | {"STEP": step}


@cache
def panel_constants(form: WeightFormat, activation: DataType, scale: DataType, bm: int, bias: bool) -> dict[str, Any]:
    """Return those of `panel_matmul`."""
    return register_constants(form, activation, scale, bm, bias) | {"PANEL": panel_layout(form.pack)}
