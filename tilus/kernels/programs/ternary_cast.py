"""One warp takes the digits of bytes of five apart and stores them: what `cast_cost` counts for ternary weights."""

from __future__ import annotations

from tilus.dtypes import DataType, u32
from tilus.kernels.programs.digits import after, numbers, values
from tilus.lang import global_view, launch, load_global, ptr, static_range, store_global
from tilus.runtime.kernel import kernel
from tilus.runtime.weights.packing import PackLayout


@kernel
def ternary_cast(
    w: ptr[u32],
    y: ptr[CT],
    *,
    CT: DataType,  # f16 or bf16
    PACK: PackLayout,
    VALUES: bool,  # -1, 0, 1 by way of f32, as `dequantize` makes them; else the numbers that products take
):
    """Write the digits of one packed tile [n, k]."""
    (BN, BK), words, width = PACK.tile, PACK.words, PACK.fragment.shape[1]
    launch(blocks=1, warps=PACK.warps)
    gy = global_view(y, shape=(BN, BK))
    packed = load_global(global_view(w, shape=words.shape), offset=(0, 0, 0), shape=words.shape, layout=words)
    lanes = packed
    for j in static_range(PACK.digits):
        lanes = after(lanes, packed, j)
        result = values(lanes, PACK.fragment).to(CT) if VALUES else numbers(lanes, CT, PACK.fragment)
        store_global(gy, result, offset=(0, j * width))
