"""y = x · dequant(w)ᵀ + bias for packed weights of any type of 1 to 8 bits, on CPUs and for small batches.

The weights are the left operand: a block computes a tile `yᵀ[BN, BM] = W[BN, K] · xᵀ[K, BM]`, so that the batch is the
small inner dimension. `PACK.fragment` says which lane holds which weight; all other layouts follow from it. Scales are
applied to the accumulators, once per group of K; integer zero points are subtracted from the codes, which is exact.
"""

from __future__ import annotations

from tilus.dtypes import DataType, f32, i32, u32
from tilus.kernels.programs.pieces import decode, finish, weight_views
from tilus.lang import (
    block_id,
    cdiv,
    dot,
    global_view,
    launch,
    load_global,
    ptr,
    static_range,
    store_global,
    view,
    zeros,
)
from tilus.runtime.kernel import kernel
from tilus.runtime.weights.packing import PackLayout


@kernel
def quantized_matmul(
    x: ptr[XT],
    w: ptr[u32],
    scales: ptr[ST],
    zero_points: ptr[ZT],
    bias: ptr[XT],
    y: ptr[YT],
    m: i32,
    n: i32,
    k: i32,
    groups: i32,
    tensor_scale: f32,
    *,
    XT: DataType,  # x and bias
    YT: DataType,
    ST: DataType,
    ZT: DataType,
    PACK: PackLayout,
    BM: int,
    GROUP: int,  # weights along K that share a scale; 0: all do
    STEP: int,  # weights along K multiplied at once: divides GROUP and the tile
    ZERO: str,  # "none", "half" (2^(bits-1)) or "tensor"
    SCALED: bool,  # whether there is a tensor scale
    BIAS: bool,
    ACTIVATION: str = "none",
):
    """Multiply activations [m, k] by a packed weight [n, k]; scales and zero points are [groups, n]."""
    (BN, BK), words = PACK.tile, PACK.words
    launch(blocks=(cdiv(m, BM), cdiv(n, BN)), warps=1)
    col, tile_n, tiles_k = block_id(0) * BM, block_id(1), cdiv(k, BK)
    row, gx = tile_n * BN, global_view(x, shape=(m, k))
    gw, gs, gz = weight_views(w, scales, zero_points, n, k, groups, PACK)
    acc = zeros((BN, BM), f32)
    for t in range(tiles_k):
        packed = load_global(gw, offset=(tile_n, t, 0, 0, 0), shape=words.shape, layout=words)
        codes = view(packed, PACK.dtype, PACK.fragment, PACK.bits)
        for j in static_range(BK // STEP):
            start = t * BK + j * STEP
            group = start // GROUP if GROUP else 0
            tile = load_global(gx, offset=(col, start), shape=(BM, STEP)).to(f32)
            weight = decode(codes[:, j * STEP : (j + 1) * STEP], gz, row, group, f32, ZERO)
            if GROUP:
                part = dot(weight, tile.T)
                acc = acc + part * load_global(gs, offset=(row, group), shape=(BN, 1)).to(f32)
            else:
                acc = dot(weight, tile.T, acc)
    acc = finish(acc, gs, tensor_scale, bias, row, n, GROUP, SCALED, BIAS, ACTIVATION)
    store_global(global_view(y, shape=(n, m), strides=(1, n)), acc.to(YT), offset=(row, col))
