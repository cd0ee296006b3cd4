"""The second half of a product whose K is shared out to blocks: adds up their sums, always in the same order.

Where results are made of a gate and an up projection, which lie in different blocks, it brings the two together.
"""

from __future__ import annotations

from tilus.dtypes import DataType, f32, i32
from tilus.kernels.epilogues import PAIRED
from tilus.kernels.programs.pieces import activate, finish, follow
from tilus.lang import (
    block_id,
    cdiv,
    global_view,
    inline,
    launch,
    load_global,
    ptr,
    static_range,
    store_global,
)
from tilus.runtime.kernel import kernel


@inline
def total(by_row, gs, tensor_scale, bias, row, n, col, SPLIT, GROUP, SCALED, BIAS, ACTIVATION, BN):
    """Return BN results of a column from `row` on."""
    acc = load_global(by_row, offset=(0, row, col), shape=(BN, 1))
    for part in static_range(1, SPLIT):
        acc = acc + load_global(by_row, offset=(part, row, col), shape=(BN, 1))
    return finish(acc, gs, tensor_scale, bias, row, n, GROUP, SCALED, BIAS, ACTIVATION)


@kernel
def add_parts(
    parts: ptr[f32],
    scales: ptr[ST],
    bias: ptr[XT],
    y: ptr[XT],
    m: i32,
    n: i32,
    groups: i32,
    tensor_scale: f32,
    *,
    XT: DataType,  # bias and y
    ST: DataType,
    SPLIT: int,
    GROUP: int,  # 0: all of K shares a scale, which is applied here
    SCALED: bool,  # whether there is a tensor scale
    BIAS: bool,
    ACTIVATION: str = "none",
    BN: int = 256,
):
    """Add parts [SPLIT, m, n] to y [m, n], with the scales that all of K shares, bias and activation.

    With that of pairs y is [m, n / 2], of columns j and n / 2 + j of the sums.
    """
    columns = n // 2 if ACTIVATION == PAIRED else n
    launch(blocks=(m, cdiv(columns, BN)), warps=2)
    follow()
    col, row = block_id(0), block_id(1) * BN
    by_row = global_view(parts, shape=(SPLIT, n, m), strides=(m * n, 1, n))
    gs = global_view(scales, shape=(n, groups), strides=(1, n))
    acc = total(by_row, gs, tensor_scale, bias, row, n, col, SPLIT, GROUP, SCALED, BIAS, ACTIVATION, BN)
    if ACTIVATION == PAIRED:
        up = total(by_row, gs, tensor_scale, bias, row + columns, n, col, SPLIT, GROUP, SCALED, BIAS, ACTIVATION, BN)
        acc = activate(acc, "silu") * up
    store_global(global_view(y, shape=(columns, m), strides=(1, columns)), acc.to(XT), offset=(row, col))
