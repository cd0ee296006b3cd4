"""y = x · dequant(w)ᵀ + bias on a CPU for larger batches: weights are unpacked once for many rows of activations.

A block has BN weight rows and BM activation rows. Of its weights it unpacks a *panel* of some columns at a time, scaled
and in f32, into memory that stays in the cache next to the core. The product of panel and activations is then an
ordinary one: what unpacking costs is divided by BM.
"""

from __future__ import annotations

from tilus.dtypes import DataType, f32, i32, u32
from tilus.kernels.programs.pieces import decode, finish, weight_views
from tilus.lang import (
    alloc_shared,
    block_id,
    cdiv,
    dot,
    global_view,
    inline,
    launch,
    load_global,
    load_shared,
    ptr,
    static_range,
    store_global,
    store_shared,
    sync,
    view,
    zeros,
)
from tilus.layouts import RegisterLayout
from tilus.runtime.kernel import kernel
from tilus.runtime.weights.packing import PackLayout


@inline
def unpack(panel, codes, gs, gz, row, start, column, GROUP, ZERO):
    """Write codes [BN, STEP], which begin at column `start` of the weight, to the panel as f32 with their scales."""
    group = start // GROUP if GROUP else 0
    weight = decode(codes, gz, row, group, f32, ZERO)
    if GROUP:
        weight = weight * load_global(gs, offset=(row, group), shape=(codes.shape[0], 1)).to(f32)
    store_shared(panel, weight.T, offset=(column, 0))


@kernel
def panel_matmul(
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
    PANEL: RegisterLayout,  # of a panel [columns, BN] in lanes; whole tiles of columns
    GROUP: int,  # weights along K that share a scale; 0: all do
    STEP: int,  # weights along K that share a group: divides GROUP and the tile
    ZERO: str,  # "none", "half" (2^(bits-1)) or "tensor"
    SCALED: bool,  # whether there is a tensor scale
    BIAS: bool,
    ACTIVATION: str = "none",
):
    """Multiply activations [m, k] by a packed weight [n, k]; scales and zero points are [groups, n]."""
    (BN, BK), words = PACK.tile, PACK.words
    launch(blocks=(cdiv(m, BM), cdiv(n, BN)), warps=1)
    col, tile_n, width = block_id(0) * BM, block_id(1), PANEL.shape[0]
    row, gx = tile_n * BN, global_view(x, shape=(m, k))
    gw, gs, gz = weight_views(w, scales, zero_points, n, k, groups, PACK)
    panel = alloc_shared(f32, PANEL.shape)
    acc = zeros((BN, BM), f32)
    for p in range(cdiv(k, width)):
        for t in range(width // BK):
            tile = p * (width // BK) + t
            packed = load_global(gw, offset=(tile_n, tile, 0, 0, 0), shape=words.shape, layout=words)
            codes = view(packed, PACK.dtype, PACK.fragment, PACK.bits)
            for j in static_range(BK // STEP):
                some, column = codes[:, j * STEP : (j + 1) * STEP], t * BK + j * STEP
                unpack(panel, some, gs, gz, row, p * width + column, column, GROUP, ZERO)
        sync()
        activations = load_global(gx, offset=(col, p * width), shape=(BM, width)).to(f32)
        acc = dot(load_shared(panel, layout=PANEL).T, activations.T, acc)
        sync()
    acc = finish(acc, gs, tensor_scale, bias, row, n, GROUP, SCALED, BIAS, ACTIVATION)
    store_global(global_view(y, shape=(n, m), strides=(1, n)), acc.to(YT), offset=(row, col))
