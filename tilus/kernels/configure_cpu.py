"""Choose program and compile-time constants of the quantized matmul on a CPU."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import gcd
from typing import Any

from tilus.casts import linear
from tilus.dtypes import DataType, dtype
from tilus.kernels.configure_operands import operand_constants
from tilus.layouts import RegisterLayout, local, spatial
from tilus.runtime.weights.packing import PackLayout
from tilus.runtime.weights.trits import TritPack
from tilus.runtime.weights.weight import WeightFormat

# Up to the first bound weights are unpacked in registers, beyond it into a panel (see `panel_matmul`). Multiples of 6
# fill the registers best; activations beyond the last one are taken by further blocks.
LARGEST_IN_REGISTERS = 4
CPU_BATCH_TILES = (1, 2, LARGEST_IN_REGISTERS, 6, 8, 12, 16, 24, 48, 96)
PANEL_COLUMNS = 128
# In fixed point (see `fixed_matmul`) activations and weights are pairs; a batch tile is cut into parts that fill the
# registers. Unpacking a panel costs what so many rows of activations do.
FIXED_IN_REGISTERS = 4
FIXED_PANEL_TILES = (8, 12, 16, 24, 48, 96)
FEW_PRODUCTS = 3 << 20  # so many take less time than the second kernel's call, which rounds activations for all blocks
UNPACKING_ROWS = 6
MOST_SUMMED = 128  # products of 9-bit weights and 16-bit activations that 32 bits hold


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


@cache
def ternary_constants(form: WeightFormat, activation: DataType, scale: DataType, bm: int, bias: bool) -> dict[str, Any]:
    """Return those of `ternary_matmul`."""
    constants = operand_constants(form, activation, scale, bm, bias)
    del constants["ZERO"]  # digits have no zero points
    return constants


def takes_fixed(form: WeightFormat) -> bool:
    """Whether activations can be rounded to 16-bit integers: weights must be integers, groups whole tiles."""
    whole = max(form.group_size, 0) % form.pack.tile[1] == 0
    return whole and linear(form.dtype) is not None and not isinstance(form.pack, TritPack)


def fixed_rows(m: int, n: int, k: int) -> int:
    """Return the batch tile for a product [m, n] over k in fixed point; its results are the same for all tiles."""
    if m <= FIXED_IN_REGISTERS or m * n * k <= FEW_PRODUCTS:
        return m if m < 3 else FIXED_IN_REGISTERS
    return min(FIXED_PANEL_TILES, key=lambda bm: (-(-m // bm) * (bm + UNPACKING_ROWS), bm))


@cache
def fixed_constants(form: WeightFormat, activation: DataType, scale: DataType, bm: int, bias: bool) -> dict[str, Any]:
    """Return the compile-time constants of `fixed_matmul`, or of `fixed_panel_matmul` for larger tiles."""
    chunk, kind = gcd(max(form.group_size, 0), MOST_SUMMED), linear(form.dtype)
    assert kind is not None, "takes_fixed"
    # A codebook of neighbouring integers is its codes, and a constant.
    pack = form.pack if form.dtype.is_integer else replace(form.pack, dtype=dtype(f"u{kind.nbits}"))
    less = 2 ** (kind.nbits - 1) if form.zero_point == "half" else 0 if form.dtype.is_integer else -kind.offset
    shared = operand_constants(form, activation, scale, bm, bias) | {"CHUNK": chunk, "PACK": pack, "LESS": less}
    if bm <= FIXED_IN_REGISTERS:
        return shared
    (rows, columns), lanes = form.pack.tile, form.pack.fragment.num_threads
    height = rows // lanes
    return shared | {
        "BC": 4 if bm % 6 else 6,
        "WORDS": local(height, 1) * spatial(lanes, 1) * local(1, columns // 2),
        "PANEL": local(1, height) * local(chunk // 2, 1) * spatial(1, lanes),
        "PAIRS": local(height, 1) * spatial(lanes, 1) * local(1, chunk),
    }
