"""W[N, K] of a packed weight, for what needs the matrix itself: gradients with respect to activations."""

from __future__ import annotations

from tilus.dtypes import DataType, f32, i32, u32
from tilus.kernels.programs.digits import after, values
from tilus.kernels.programs.pieces import decode, weight_views
from tilus.lang import block_id, cdiv, global_view, launch, load_global, ptr, static_range, store_global, view
from tilus.runtime.kernel import kernel
from tilus.runtime.weights.packing import PackLayout


@kernel
def dequantize(
    w: ptr[u32],
    scales: ptr[ST],
    zero_points: ptr[ZT],
    y: ptr[YT],
    n: i32,
    k: i32,
    groups: i32,
    tensor_scale: f32,
    *,
    YT: DataType,
    ST: DataType,
    ZT: DataType,
    PACK: PackLayout,
    GROUP: int,  # weights along K that share a scale; 0: all do
    STEP: int,  # weights along K expanded at once: divides GROUP and the tile
    ZERO: str,  # "none", "half" (2^(bits-1)) or "tensor"
    SCALED: bool,  # whether there is a tensor scale
):
    """Write (decode(code) - zero point) * scale, computed in f32 and rounded once; scales are [groups, n]."""
    (BN, BK), words = PACK.tile, PACK.words
    launch(blocks=(cdiv(n, BN), cdiv(k, BK)), warps=PACK.warps)
    row, t = block_id(0) * BN, block_id(1)
    gy = global_view(y, shape=(n, k))
    gw, gs, gz = weight_views(w, scales, zero_points, n, k, groups, PACK)
    packed = load_global(gw, offset=(block_id(0), t, 0, 0, 0), shape=words.shape, layout=words)
    codes = view(packed, PACK.dtype, PACK.fragment, PACK.bits)
    for j in static_range(BK // STEP):
        start = t * BK + j * STEP
        group = start // GROUP if GROUP else 0
        weight = decode(codes[:, j * STEP : (j + 1) * STEP], gz, row, group, f32, ZERO)
        weight = weight * load_global(gs, offset=(row, group), shape=(BN, 1)).to(f32)
        if SCALED:
            weight = weight * tensor_scale
        store_global(gy, weight.to(YT), offset=(row, start))


@kernel
def dequantize_ternary(
    w: ptr[u32],
    scales: ptr[ST],
    zero_points: ptr[ZT],
    y: ptr[YT],
    n: i32,
    k: i32,
    groups: i32,
    tensor_scale: f32,
    *,
    YT: DataType,
    ST: DataType,
    ZT: DataType,
    PACK: PackLayout,
    GROUP: int,  # weights along K that share a scale, a multiple of the fragment's width; 0: all do
    SCALED: bool,
):
    """Write (digit - 1) * scale for weights of five digits a byte; see `digits`."""
    (BN, BK), words, width = PACK.tile, PACK.words, PACK.fragment.shape[1]
    launch(blocks=(cdiv(n, BN), cdiv(k, BK)), warps=PACK.warps)
    row, t = block_id(0) * BN, block_id(1)
    gw, gy = global_view(w, shape=(cdiv(n, BN), cdiv(k, BK), *words.shape)), global_view(y, shape=(n, k))
    gs = global_view(scales, shape=(n, groups), strides=(1, n))
    packed = load_global(gw, offset=(block_id(0), t, 0, 0, 0), shape=words.shape, layout=words)
    lanes = packed
    for j in static_range(PACK.digits):
        lanes = after(lanes, packed, j)
        start = t * BK + j * width
        scale = load_global(gs, offset=(row, start // GROUP if GROUP else 0), shape=(BN, 1)).to(f32)
        weight = values(lanes, PACK.fragment) * scale
        if SCALED:
            weight = weight * tensor_scale
        store_global(gy, weight.to(YT), offset=(row, start))
