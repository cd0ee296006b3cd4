"""The second half of a product whose K is shared out to blocks: adds up their sums, always in the same order."""

from __future__ import annotations

from tilus.dtypes import DataType, f32, i32
from tilus.kernels.programs.pieces import finish
from tilus.lang import block_id, cdiv, global_view, launch, load_global, ptr, static_range, store_global
from tilus.runtime.kernel import kernel


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
    """Add parts [SPLIT, m, n] to y [m, n], with the scales that all of K shares, bias and activation."""
    launch(blocks=(m, cdiv(n, BN)), warps=2)
    col, row = block_id(0), block_id(1) * BN
    by_row = global_view(parts, shape=(SPLIT, n, m), strides=(m * n, 1, n))
    acc = load_global(by_row, offset=(0, row, col), shape=(BN, 1))
    for part in static_range(1, SPLIT):
        acc = acc + load_global(by_row, offset=(part, row, col), shape=(BN, 1))
    gs = global_view(scales, shape=(n, groups), strides=(1, n))
    acc = finish(acc, gs, tensor_scale, bias, row, n, GROUP, SCALED, BIAS, ACTIVATION)
    store_global(global_view(y, shape=(n, m), strides=(1, n)), acc.to(XT), offset=(row, col))
