"""y = x · dequant(w)ᵀ + bias for weights of -1, 0 and 1, five to a byte: a program for CPUs, which multiply in f32."""

from __future__ import annotations

from tilus.dtypes import DataType, f32, i32, u32
from tilus.kernels.programs.digits import after, values
from tilus.kernels.programs.pieces import finish, product
from tilus.lang import block_id, cdiv, global_view, launch, load_global, ptr, static_range, store_global, zeros
from tilus.runtime.kernel import kernel
from tilus.runtime.weights.packing import PackLayout


@kernel
def ternary_matmul(
    x: ptr[XT], w: ptr[u32], scales: ptr[ST], zero_points: ptr[ZT], bias: ptr[XT], y: ptr[YT],
    m: i32, n: i32, k: i32, groups: i32, tensor_scale: f32, *,
    XT: DataType,  # x and bias
    YT: DataType,
    ST: DataType, ZT: DataType,
    PACK: PackLayout,
    BM: int,
    GROUP: int,  # weights along K that share a scale, a multiple of the fragment's width; 0: all do
    SCALED: bool, BIAS: bool,  # whether there are a tensor scale and a bias
    ACTIVATION: str = "none",
):  # fmt: skip
    """Multiply activations [m, k] by a packed weight [n, k]; scales are [groups, n]."""
    (BN, BK), words, width = PACK.tile, PACK.words, PACK.fragment.shape[1]
    launch(blocks=(cdiv(m, BM), cdiv(n, BN)), warps=PACK.warps)
    col, tile_n, row = block_id(0) * BM, block_id(1), block_id(1) * BN
    gw, gx = global_view(w, shape=(cdiv(n, BN), cdiv(k, BK), *words.shape)), global_view(x, shape=(m, k))
    gs = global_view(scales, shape=(n, groups), strides=(1, n))
    acc = zeros((BN, BM), f32)
    for t in range(cdiv(k, BK)):
        packed = load_global(gw, offset=(tile_n, t, 0, 0, 0), shape=words.shape, layout=words)
        lanes = packed
        for j in static_range(PACK.digits):
            lanes = after(lanes, packed, j)
            weight = values(lanes, PACK.fragment)
            tile = load_global(gx, offset=(col, t * BK + j * width), shape=(BM, width))
            part = product(weight, tile, zeros(acc.shape, f32) if GROUP else acc, f32, 1)
            if GROUP:
                scale = load_global(gs, offset=(row, (t * BK + j * width) // GROUP), shape=(BN, 1)).to(f32)
                part = acc + part * scale
            acc = part
    acc = finish(acc, gs, tensor_scale, bias, row, n, GROUP, SCALED, BIAS, ACTIVATION)
    store_global(global_view(y, shape=(n, m), strides=(1, n)), acc.to(YT), offset=(row, col))
