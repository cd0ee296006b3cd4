"""y = x · dequant(w)ᵀ + bias for packed weights of any type of 1 to 8 bits: one program for GPUs and CPUs.

The weights are the left operand: a block computes a tile `yᵀ[BN, BM] = W[BN, K] · xᵀ[K, BM]`, so that on a GPU a batch
of up to 8 wastes nothing and on a CPU the batch is the small inner dimension. `PACK.fragment` says which thread holds
which weight; all other layouts follow from it. Scales are applied to the accumulators, once per group of K, in f32;
integer zero points are subtracted from the codes, which is exact.
"""

from __future__ import annotations

from tilus.dtypes import DataType, f32, i32, u32
from tilus.lang import (
    alloc_shared,
    block_id,
    cdiv,
    commit_group,
    copy_async,
    dot,
    global_view,
    inline,
    launch,
    load_global,
    load_shared,
    ptr,
    static_range,
    store_global,
    sync,
    view,
    wait_group,
    zeros,
)
from tilus.runtime.kernel import kernel
from tilus.runtime.weights.packing import PackLayout


@inline
def fetch(sw, sx, gw, gx, tile_n, col, t, stage):
    """Start copying tile `t` of the weights and of the activations into a stage; copies past K bring zeros."""
    copy_async(sw, gw, src_offset=(tile_n, t, 0, 0, 0), dst_offset=(stage, 0, 0, 0), shape=sw.shape[1:])
    copy_async(sx, gx, src_offset=(col, t * sx.shape[2]), dst_offset=(stage, 0, 0), shape=sx.shape[1:])
    commit_group()


@inline
def decode(codes, gz, row, group, CT, ZERO):
    """Return the weights of a slice of codes, without their scales: exact in CT for all but codebooks."""
    weight = codes.to(CT)
    if ZERO == "half":
        weight = weight - float(2 ** (codes.dtype.nbits - 1))
    if ZERO == "tensor":
        weight = weight - load_global(gz, offset=(row, group), shape=(codes.shape[0], 1)).to(CT)
    return weight


@inline
def product(weight, tile, acc, CT, PARTS):
    """Return weight · tileᵀ + acc, where the activations are as many numbers of type CT as add up to them exactly."""
    rest = tile
    for part in static_range(PARTS):
        head = rest.to(CT)
        acc = dot(weight, head.mT, acc)
        if part + 1 < PARTS:
            rest = rest.to(f32) - head.to(f32)
    return acc


@inline
def accumulate(acc, codes, tile, gs, gz, row, start, CT, PARTS, GROUP, ZERO):
    """Add the product of a slice of codes [BN, STEP] and activations [BM, STEP], scaled if groups have scales."""
    group = start // GROUP if GROUP else 0
    weight = decode(codes, gz, row, group, CT, ZERO)
    if not GROUP:
        return product(weight, tile, acc, CT, PARTS)
    part = product(weight, tile, zeros(acc.shape, f32), CT, PARTS)
    return acc + part * load_global(gs, offset=(row, group), shape=(codes.shape[0], 1)).to(f32)


@inline
def finish(acc, gs, tensor_scale, bias, row, n, GROUP, SCALED, BIAS):
    """Return the accumulators with the scales that all of K shares, and the bias."""
    if not GROUP:
        acc = acc * load_global(gs, offset=(row, 0), shape=(acc.shape[0], 1)).to(f32)
    if SCALED:
        acc = acc * tensor_scale
    if BIAS:
        acc += load_global(global_view(bias, shape=(n, 1)), offset=(row, 0), shape=(acc.shape[0], 1)).to(f32)
    return acc


@kernel
def quantized_matmul(
    x: ptr[XT],
    w: ptr[u32],
    scales: ptr[ST],
    zero_points: ptr[ZT],
    bias: ptr[XT],
    y: ptr[XT],
    m: i32,
    n: i32,
    k: i32,
    groups: i32,
    tensor_scale: f32,
    *,
    XT: DataType,  # x, bias and y
    CT: DataType,  # what is multiplied
    PARTS: int,  # numbers of that type that an activation is the sum of
    ST: DataType,
    ZT: DataType,
    PACK: PackLayout,
    BM: int,
    GROUP: int,  # weights along K that share a scale; 0: all do
    STEP: int,  # weights along K multiplied at once: divides GROUP and the tile
    ZERO: str,  # "none", "half" (2^(bits-1)) or "tensor"
    SCALED: bool,  # whether there is a tensor scale
    BIAS: bool,
    STAGES: int,  # tiles in shared memory; 0: straight from global memory
    WARPS: int,
):
    """Multiply activations [m, k] by a packed weight [n, k]; scales and zero points are [groups, n]."""
    (BN, BK), words = PACK.tile, PACK.words
    launch(blocks=(cdiv(m, BM), cdiv(n, BN)), warps=WARPS)
    col, tile_n, tiles_k = block_id(0) * BM, block_id(1), cdiv(k, BK)
    row, gx = tile_n * BN, global_view(x, shape=(m, k))
    gw = global_view(w, shape=(cdiv(n, BN), tiles_k, *words.shape))
    gs = global_view(scales, shape=(n, groups), strides=(1, n))
    gz = global_view(zero_points, shape=(n, groups), strides=(1, n))
    if STAGES:
        sw, sx = alloc_shared(u32, (STAGES, *words.shape)), alloc_shared(XT, (STAGES, BM, BK))
        for s in static_range(STAGES - 1):
            fetch(sw, sx, gw, gx, tile_n, col, s, s)
    acc = zeros((BN, BM), f32)
    for t in range(tiles_k):
        if STAGES:
            wait_group(STAGES - 2)
            sync()  # tile t is there for all threads, and all have left tile t - 1, whose stage is filled next
            fetch(sw, sx, gw, gx, tile_n, col, t + (STAGES - 1), (t + (STAGES - 1)) % STAGES)
            packed = load_shared(sw, offset=(t % STAGES, 0, 0, 0), shape=words.shape, layout=words)
        else:
            packed = load_global(gw, offset=(tile_n, t, 0, 0, 0), shape=words.shape, layout=words)
        codes = view(packed, PACK.dtype, PACK.fragment, PACK.bits)
        for j in static_range(BK // STEP):
            start = t * BK + j * STEP
            if STAGES:
                tile = load_shared(sx, offset=(t % STAGES, 0, j * STEP), shape=(BM, STEP))
            else:
                tile = load_global(gx, offset=(col, start), shape=(BM, STEP))
            acc = accumulate(acc, codes[:, j * STEP : (j + 1) * STEP], tile, gs, gz, row, start, CT, PARTS, GROUP, ZERO)
    acc = finish(acc, gs, tensor_scale, bias, row, n, GROUP, SCALED, BIAS)
    store_global(global_view(y, shape=(n, m), strides=(1, n)), acc.to(XT), offset=(row, col))
