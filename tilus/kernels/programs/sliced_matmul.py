"""y = x · dequant(w)ᵀ + bias for packed weights on GPUs, with K shared out to the warps of a block.

A block computes a tile `yᵀ[BN, BM] = W[BN, K] · xᵀ[K, BM]`. In a trip of its loop it takes SLICES neighbouring tiles of
the packed weight; each falls to warps of its own, as one product of a batch, and the sums over the slices are added up
once, behind the loop. So a warp has all rows of a tile: what a trip costs besides unpacking and multiplying, and the
activations' way from shared memory, is spread over more weights. A lane's rows are neighbours, whose scales it loads,
and whose results it stores, as whole vectors.
"""

from __future__ import annotations

from math import gcd

from tilus.dtypes import DataType, f32, i32, u32
from tilus.kernels.programs.digits import UNITS, multiply_digits
from tilus.kernels.programs.pieces import by_lane, finish, follow, product, share_of
from tilus.lang import (
    alloc_shared,
    block_id,
    cdiv,
    cluster_sum,
    commit_group,
    copy_async,
    global_view,
    inline,
    launch,
    load_global,
    load_shared,
    maximum,
    minimum,
    prefetch,
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
def operand_views(w, x, m, n, k, part, most, count, PACK, SLICES, SPLIT, EVEN):
    """Return views of weights and activations: by part of K and trip if trips are whole, else by tile and column."""
    (BN, BK), words, tiles = PACK.tile, PACK.words.shape, cdiv(k, PACK.tile[1])
    tile, step = words[0] * words[1] * words[2], SLICES * BK
    inner = (tile, tile // words[0], words[2], 1)
    if EVEN:
        strides = (tiles * tile, most * SLICES * tile, SLICES * tile, *inner)
        gw = global_view(w, shape=(cdiv(n, BN), SPLIT, count, SLICES, *words), strides=strides)
        return gw, global_view(x, shape=(SPLIT, count, SLICES, m, BK), strides=(most * step, step, BK, k, 1))
    last = minimum(tiles, (part * most + count) * SLICES) if SPLIT > 1 else tiles
    gw = global_view(w, shape=(cdiv(n, BN), last, *words), strides=(tiles * tile, *inner))
    return gw, global_view(x, shape=(m, minimum(k, last * BK) if SPLIT > 1 else k), strides=(k, 1))


@inline
def weights_at(tile_n, part, t, most, SLICES, EVEN):
    """Return where the weights of a part's trip `t` begin in the view of `operand_views`."""
    return (tile_n, part, t, 0, 0, 0, 0) if EVEN else (tile_n, (part * most + t) * SLICES, 0, 0, 0)


@inline
def begin(stages, views, tile_n, col, part, most, PACK, TILES, GROUP, EVEN, PRODUCERS):
    """Start copying the first trips, all but the last stage; weights are prefetched while earlier kernels end."""
    gw, STAGES, SLICES, tile = views[0], stages[0].shape[0], stages[1].shape[1], stages[0].shape[2:]
    for s in static_range(STAGES - 1):
        for r in static_range(TILES):
            prefetch(gw, offset=weights_at(tile_n + r, part, s, most, SLICES, EVEN), shape=(SLICES, *tile))
    follow()
    for s in static_range(STAGES - 1):
        fetch(stages, views, tile_n, col, part, s, most, s, PACK, TILES, GROUP, EVEN, PRODUCERS)


@inline
def fetch(stages, views, tile_n, col, part, t, most, stage, PACK, TILES, GROUP, EVEN, PRODUCERS):
    """Start copying what a part's trip `t` needs into a stage; copies past its end bring zeros."""
    (sw, sx), (gw, gx), BN = stages[:2], views[:2], PACK.tile[0]
    SLICES, BM, BK = sx.shape[1:]
    first, once = (part * most + t) * SLICES, gx.shape[-2] <= BM  # who has all of the batch reads weights alone
    for r in static_range(TILES):
        place = weights_at(tile_n + r, part, t, most, SLICES, EVEN)
        there, shape = (stage, r * SLICES, 0, 0, 0), (SLICES, *sw.shape[2:])
        copy_async(sw, gw, src_offset=place, dst_offset=there, shape=shape, once=once)
    if EVEN and PRODUCERS:  # from fewer addresses, if the threads of one warp copy
        copy_async(sx, gx, src_offset=(part, t, 0, col, 0), dst_offset=(stage, 0, 0, 0), shape=sx.shape[1:])
    else:
        for s in static_range(SLICES):
            place = (part, t, s, col, 0) if EVEN else (col, (first + s) * BK)
            copy_async(sx, gx, src_offset=place, dst_offset=(stage, s, 0, 0), shape=sx.shape[2:])
    trips = gw.shape[2] if EVEN else cdiv(gw.shape[1] - part * most * SLICES, SLICES)
    for shared, table in zip(stages[2:], views[2:], strict=True):
        fetch_table(shared, table, tile_n * BN, part, t, most, trips, stage, BK, GROUP, EVEN)
    commit_group()


@inline
def fetch_table(shared, table, row, part, t, most, trips, stage, BK, GROUP, EVEN):
    """Start copying what a table has for the rows and groups of a part's trip into a stage, [SLICES, groups, rows].

    A group that ends beyond the part's last trip is there for later ones too: those are sent beyond the table.
    """
    SLICES, COLUMNS, ROWS = shared.shape[1:]
    first = (part * most + t) * SLICES
    if len(table.shape) > 2:
        place = (part, t, 0, 0, row) if EVEN else (first, 0, row)
        copy_async(shared, table, src_offset=place, dst_offset=(stage, 0, 0, 0), shape=shared.shape[1:])
    else:
        for s in static_range(SLICES):
            for column in static_range(COLUMNS):
                group = ((first + s) * BK + column * (BK // COLUMNS)) // GROUP
                if GROUP * COLUMNS != BK:
                    group += maximum(t + 1 - trips, 0) * table.shape[0]
                copy_async(shared, table, src_offset=(group, row), dst_offset=(stage, s, column, 0), shape=(1, ROWS))


@inline
def table_view(table, n, groups, part, most, count, BK, SLICES, SPLIT, GROUP, EVEN, WHOLE):
    """View a table [groups, n] by part of K and trip if trips are whole, by tile if groups end where tiles do.

    It ends where the part ends: copies past it bring zeros, and are none that a block could leave under way.
    """
    each = BK // GROUP if GROUP and BK % GROUP == 0 else 0  # groups of a tile
    step = SLICES * each * n
    if each and EVEN:
        strides = (most * step, step, each * n, n, 1)
        return global_view(table, shape=(SPLIT, count, SLICES, each, n), strides=strides)
    ends = minimum(groups, cdiv((part * most + count) * SLICES * BK, GROUP)) if SPLIT > 1 else groups
    if SLICES > 1 and (each == 1 or (each and WHOLE)):
        return global_view(table, shape=(ends // each, each, n))
    return global_view(table, shape=(ends, n))


@inline
def views_of(tables, n, groups, part, most, count, operands, BK, SLICES, SPLIT, GROUP, EVEN, WHOLE):
    """Return the views of weights and activations, and then those of tables."""
    each = [table_view(x, n, groups, part, most, count, BK, SLICES, SPLIT, GROUP, EVEN, WHOLE) for x in tables]
    return (*operands, *each)


@inline
def tables_of(scales, zero_points, GROUP, ZERO):
    """Return what a trip needs besides weights and activations."""
    if not GROUP:
        return ()
    return (scales, zero_points) if ZERO == "tensor" else (scales,)


@inline
def zeros_of_rows(zero_points, row, n, PACK, SLICES, TILES):
    """Return the zero points that all of K shares, for the slices of a trip."""
    table = global_view(zero_points, shape=(SLICES, n), strides=(0, 1))
    return by_lane(load_global(table, offset=(0, row), shape=(SLICES, TILES * PACK.tile[0])), PACK)


@inline
def multiply(codes, stages, stage, zero, acc, CT, PARTS, PACK, GROUP, FOLDED, STEP, ZERO):
    """Return acc with a trip's codes, times its activations, added; `zero` are points that all of K shares."""
    sx, tables, ROWS = stages[1], stages[2:], acc.shape[1]
    SLICES, BM, BK = sx.shape[1:]
    span = gcd(GROUP, BK)  # columns that share a scale
    for first in static_range(0, BK, span):
        part, place = zeros(acc.shape, f32) if GROUP and not FOLDED else acc, (stage, 0, first // span, 0)
        if GROUP and ZERO == "tensor":
            zero = by_lane(load_shared(tables[1], offset=place, shape=(SLICES, 1, ROWS)), PACK)
        if FOLDED:
            folded = by_lane(load_shared(tables[0], offset=place, shape=(SLICES, 1, ROWS)), PACK).to(CT)
        for start in static_range(first, first + span, STEP):
            weight = codes[:, :, start : start + STEP].to(CT)
            if ZERO == "half":
                weight = weight - float(2 ** (PACK.dtype.nbits - 1))
            if ZERO == "tensor":
                weight = weight - zero.to(CT)
            if FOLDED:
                weight = weight * folded
            tile = load_shared(sx, offset=(stage, 0, 0, start), shape=(SLICES, BM, STEP))
            part = product(weight, tile, part, CT, PARTS)
        if GROUP and not FOLDED:
            scale = load_shared(tables[0], offset=place, shape=(SLICES, 1, ROWS))
            part = acc + part * by_lane(scale, PACK).to(f32)
        acc = part
    return acc


@inline
def sums_of_rows(acc, PACK, CLUSTERED):
    """Return the sums over slices, and over the blocks of a cluster, [rows, BM], each tile's rows in their order."""
    ROWS, BM = acc.shape[1:]
    lanes = sum(acc, 0).reshape((ROWS // PACK.tile[0], PACK.interleave, PACK.tile[0] // PACK.interleave, BM))
    rows = lanes.transpose((0, 2, 1, 3)).reshape((ROWS, BM))
    return cluster_sum(rows) if CLUSTERED else rows


@kernel
def sliced_matmul(
    x: ptr[XT], w: ptr[u32], scales: ptr[ST], zero_points: ptr[ZT], bias: ptr[XT],
    y: ptr[f32 if SPLIT > 1 and not CLUSTERED else YT], m: i32, n: i32, k: i32, groups: i32, tensor_scale: f32, *,
    XT: DataType, YT: DataType,  # x and bias; y, unless it has sums over shares of K
    CT: DataType,  # what is multiplied
    PARTS: int,  # numbers of that type that an activation is the sum of
    ST: DataType, ZT: DataType,
    PACK: PackLayout, BM: int,
    GROUP: int,  # weights along K that share a scale; 0: all do
    FOLDED: bool,  # whether scales multiply weights, not the sums of a group
    STEP: int,  # weights along K multiplied at once: divides GROUP and the tile
    ZERO: str,  # "none", "half" (2^(bits-1)) or "tensor"
    SCALED: bool, BIAS: bool,  # whether there are a tensor scale and a bias
    ACTIVATION: str = "none",
    SLICES: int, STAGES: int,  # tiles along K that the warps share in a trip; trips in shared memory
    TILES: int = 1, WARPS: int = 4,  # tiles along N that the warps share, and these
    PRODUCERS: int = 0,  # warps more that only copy, 0 or 1
    EVEN: bool, WHOLE: bool = False,  # whether K is a multiple of SLICES tiles, of one tile
    SPLIT: int,  # blocks that share K
    CLUSTERED: int = 0,  # whether they are a cluster, which adds up their sums, 0 or 1
):  # fmt: skip
    """Multiply activations [m, k] by a packed weight [n, k]; scales and zero points are [groups, n].

    With SPLIT > 1 blocks share K: a cluster adds up its sums, without one y is [SPLIT, m, n], for `add_parts`.
    """
    (BN, BK), (words, fragment, bits) = PACK.tile, PACK.sliced(SLICES, TILES, WARPS)
    cluster, alone = (1, 1, SPLIT) if CLUSTERED else (), SPLIT == 1 or CLUSTERED > 0
    launch(blocks=(cdiv(m, BM), cdiv(n, TILES * BN), SPLIT), warps=WARPS, producer=PRODUCERS > 0, cluster=cluster)
    col, tile_n, part = block_id(0) * BM, block_id(1) * TILES, block_id(2)
    row, (most, count) = tile_n * BN, share_of(part, cdiv(k, SLICES * BK), SPLIT)
    gw, gx = operand_views(w, x, m, n, k, part, most, count, PACK, SLICES, SPLIT, EVEN)
    tables = tables_of(scales, zero_points, GROUP, ZERO)
    views = views_of(tables, n, groups, part, most, count, (gw, gx), BK, SLICES, SPLIT, GROUP, EVEN, WHOLE)
    sw, sx = alloc_shared(u32, (STAGES, *words.shape)), alloc_shared(XT, (STAGES, SLICES, BM, BK))
    columns = BK // gcd(GROUP, BK)
    stages = (sw, sx, *[alloc_shared(x.dtype, (STAGES, SLICES, columns, TILES * BN)) for x in tables])
    begin(stages, views, tile_n, col, part, most, PACK, TILES, GROUP, EVEN, PRODUCERS)
    zero = zeros_of_rows(zero_points, row, n, PACK, SLICES, TILES) if ZERO == "tensor" and not GROUP else 0
    acc = zeros((SLICES, TILES * BN, BM), f32)
    stage, free = 0, STAGES - 1
    for t in range(count):
        wait_group(STAGES - 2)
        sync()  # trip t is there for all threads, and all have left trip t - 1, whose stage is filled next
        fetch(stages, views, tile_n, col, part, t + (STAGES - 1), most, free, PACK, TILES, GROUP, EVEN, PRODUCERS)
        packed = load_shared(sw, offset=(stage, 0, 0, 0, 0), shape=words.shape, layout=words)
        if PACK.digits > 1:
            acc = multiply_digits(packed, stages, stage, acc, CT, PARTS, PACK, fragment, GROUP, WARPS)
        else:
            codes = view(packed, PACK.dtype, fragment, bits)
            acc = multiply(codes, stages, stage, zero, acc, CT, PARTS, PACK, GROUP, FOLDED, STEP, ZERO)
        free = stage
        stage += 1
        if stage == STAGES:
            stage = 0
    rows = sums_of_rows(acc * UNITS[CT] if PACK.digits > 1 else acc, PACK, CLUSTERED)
    if alone:
        shared = global_view(scales, shape=(n, groups), strides=(1, n))
        rows = finish(rows, shared, tensor_scale, bias, row, n, GROUP, SCALED, BIAS, ACTIVATION)
    gy = global_view(y, shape=(1 if alone else SPLIT, n, m), strides=(m * n, 1, n))
    store_global(gy, rows.to(YT if alone else f32), offset=(part, row, col))
