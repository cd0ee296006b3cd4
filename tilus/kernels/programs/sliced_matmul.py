"""y = x · dequant(w)ᵀ + bias for packed weights on GPUs, with K shared out to the warps of a block.

A block computes a tile `yᵀ[BN, BM] = W[BN, K] · xᵀ[K, BM]`. In a trip of its loop it takes SLICES neighbouring tiles of
the packed weight; each falls to warps of its own, as one product of a batch, and the sums over the slices are added up
once, behind the loop. So a warp has all rows of a tile: what a trip costs besides unpacking and multiplying, and the
activations' way from shared memory, is spread over more weights. A lane's rows are neighbours, whose scales it loads,
and whose results it stores, as whole vectors.
"""

from __future__ import annotations

from tilus.dtypes import DataType, f32, i32, u32
from tilus.kernels.programs.pieces import finish, product
from tilus.lang import (
    alloc_shared,
    block_id,
    cdiv,
    commit_group,
    copy_async,
    global_view,
    inline,
    launch,
    load_global,
    load_shared,
    ptr,
    static_range,
    store_global,
    sum,
    sync,
    view,
    wait_group,
    zeros,
)
from tilus.runtime.kernel import kernel
from tilus.runtime.weights.packing import PackLayout


@inline
def fetch(sw, sx, gw, gx, tile_n, col, t, stage):
    """Start copying trip `t` of the weights and of the activations into a stage; copies past K bring zeros."""
    SLICES, BK, first = sx.shape[1], sx.shape[3], t * sx.shape[1]
    copy_async(sw, gw, src_offset=(tile_n, first, 0, 0, 0), dst_offset=(stage, 0, 0, 0, 0), shape=sw.shape[1:])
    for s in static_range(SLICES):
        copy_async(sx, gx, src_offset=(col, (first + s) * BK), dst_offset=(stage, s, 0, 0), shape=sx.shape[2:])
    commit_group()


@inline
def of_rows(table, t, start, row, n, groups, PACK, SLICES, GROUP):
    """Return what a table [groups, n] has for the rows of trip t's tiles at their column `start`, [SLICES, BN, 1].

    Rows are in the order in which they are multiplied.
    """
    BN, BK = PACK.tile
    if GROUP and SLICES > 1:
        by_tile = global_view(table, shape=(groups // (BK // GROUP), BK // GROUP, n))
        tile = load_global(by_tile, offset=(t * SLICES, start // GROUP, row), shape=(SLICES, 1, BN))
    else:  # one group for all tiles
        group = (t * BK + start) // GROUP if GROUP else 0
        repeated = global_view(table, shape=(groups, SLICES, n), strides=(n, 0, 1))
        tile = load_global(repeated, offset=(group, 0, row), shape=(1, SLICES, BN))
    lanes = tile.reshape((SLICES, BN // PACK.interleave, PACK.interleave))
    return lanes.mT.reshape((SLICES, BN, 1))


@kernel
def sliced_matmul(
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
    SLICES: int,  # tiles along K that the warps share in a trip
    STAGES: int,  # trips in shared memory
):
    """Multiply activations [m, k] by a packed weight [n, k]; scales and zero points are [groups, n]."""
    (BN, BK), (words, fragment, bits) = PACK.tile, PACK.sliced(SLICES)
    launch(blocks=(cdiv(m, BM), cdiv(n, BN)), warps=PACK.warps)
    col, tile_n = block_id(0) * BM, block_id(1)
    row, gx, gs = tile_n * BN, global_view(x, shape=(m, k)), global_view(scales, shape=(n, groups), strides=(1, n))
    gw = global_view(w, shape=(cdiv(n, BN), cdiv(k, BK), *words.shape[1:]))
    sw, sx = alloc_shared(u32, (STAGES, *words.shape)), alloc_shared(XT, (STAGES, SLICES, BM, BK))
    for s in static_range(STAGES - 1):
        fetch(sw, sx, gw, gx, tile_n, col, s, s)
    acc = zeros((SLICES, BN, BM), f32)
    for t in range(cdiv(k, SLICES * BK)):
        wait_group(STAGES - 2)
        sync()  # trip t is there for all threads, and all have left trip t - 1, whose stage is filled next
        fetch(sw, sx, gw, gx, tile_n, col, t + (STAGES - 1), (t + (STAGES - 1)) % STAGES)
        packed = load_shared(sw, offset=(t % STAGES, 0, 0, 0, 0), shape=words.shape, layout=words)
        codes = view(packed, PACK.dtype, fragment, bits)
        for start in static_range(0, BK, STEP):
            weight = codes[:, :, start : start + STEP].to(CT)
            if ZERO == "half":
                weight = weight - float(2 ** (PACK.dtype.nbits - 1))
            if ZERO == "tensor":
                weight = weight - of_rows(zero_points, t, start, row, n, groups, PACK, SLICES, GROUP).to(CT)
            tile = load_shared(sx, offset=(t % STAGES, 0, 0, start), shape=(SLICES, BM, STEP))
            if GROUP:
                scale = of_rows(scales, t, start, row, n, groups, PACK, SLICES, GROUP).to(f32)
                acc = acc + product(weight, tile, zeros(acc.shape, f32), CT, PARTS) * scale
            else:
                acc = product(weight, tile, acc, CT, PARTS)
    by_lane = sum(acc, 0).reshape((PACK.interleave, BN // PACK.interleave, BM))
    rows = by_lane.transpose((1, 0, 2)).reshape((BN, BM))
    total = finish(rows, gs, tensor_scale, bias, row, n, GROUP, SCALED, BIAS)
    store_global(global_view(y, shape=(n, m), strides=(1, n)), total.to(XT), offset=(row, col))
