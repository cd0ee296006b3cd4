"""y = x · dequant(w)ᵀ + bias for weights of -1, 0 and 1, five to a byte: a program for GPUs and CPUs.

Two bytes lie in the 16-bit lanes of a word. Times 3, the next digit of each stands above its byte, in bits 8 and 9. A
GPU multiplies the digit where it is: as the f16 subnormal `digit * 2^-16`, or moved under the exponent of the bf16
`128 + 32 digit`. A second product takes off the number of digit 1, and the unit is left to the end.
"""

from __future__ import annotations

from tilus.dtypes import DataType, bf16, f16, f32, i32, u32
from tilus.kernels.programs.pieces import finish, follow, product, share_of
from tilus.lang import (
    alloc_shared,
    block_id,
    cdiv,
    commit_group,
    copy_async,
    full,
    global_view,
    inline,
    launch,
    load_global,
    load_shared,
    minimum,
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

# By what is multiplied: what a digit's place in its number stands for.
UNITS = {f16: 65536.0, bf16: 1.0 / 32.0, f32: 1.0}


@inline
def operand_views(w, x, m, n, k, last, PACK, SPLIT):
    """Return views of weights, by tile, and activations, up to the tile behind a part's last one."""
    (BN, BK), size, tiles = PACK.tile, PACK.words.shape, cdiv(k, PACK.tile[1])
    step = size[0] * size[1] * size[2]
    strides = (tiles * step, step, size[1] * size[2], size[2], 1)
    gx = global_view(x, shape=(m, minimum(k, last * BK) if SPLIT > 1 else k), strides=(k, 1))
    return global_view(w, shape=(cdiv(n, BN), last, *size), strides=strides), gx


@inline
def fetch(sw, sx, gw, gx, tile_n, col, t, stage):
    """Start copying tile `t` of the weights and of the activations into a stage; copies past K bring zeros."""
    copy_async(sw, gw, src_offset=(tile_n, t, 0, 0, 0), dst_offset=(stage, 0, 0, 0), shape=sw.shape[1:])
    copy_async(sx, gx, src_offset=(col, t * sx.shape[2]), dst_offset=(stage, 0, 0), shape=sx.shape[1:])
    commit_group()


@inline
def after(lanes, packed, j):
    """Return lanes with digit `j` in bits 8 and 9; those given have digit j - 1 there."""
    return ((packed >> (8 * (j // 5)) if j % 5 == 0 else lanes) & 0x00FF00FF) * 3


@inline
def numbers(lanes, CT, FRAGMENT):
    """Return the digits in bits 8 and 9 of lanes as numbers of a type."""
    if bf16 == CT:
        return view((lanes >> 3) & 0x00600060 | 0x43004300, bf16, FRAGMENT)
    return view(lanes & 0x03000300, f16, FRAGMENT).to(CT)


@inline
def weighted(digits, tile, acc, CT, PARTS):
    """Return acc + (digits - 1) · tileᵀ, in units of `UNITS[CT]`."""
    if f32 == CT:
        return product(digits * 65536.0 - 1.0, tile, acc, CT, PARTS)
    middle = full(digits.shape, -160.0 if bf16 == CT else -1.0 / 65536.0, CT)
    return product(middle, tile, product(digits, tile, acc, CT, PARTS), CT, PARTS)


@kernel
def ternary_matmul(
    x: ptr[XT], w: ptr[u32], scales: ptr[ST], bias: ptr[XT], y: ptr[f32 if SPLIT > 1 else YT],
    m: i32, n: i32, k: i32, groups: i32, *,
    XT: DataType,  # x and bias
    YT: DataType,  # y where blocks do not share K
    CT: DataType,  # what is multiplied
    PARTS: int,  # numbers of that type that an activation is the sum of
    ST: DataType,
    PACK: PackLayout,
    BM: int,
    GROUP: int,  # weights along K that share a scale, a multiple of the fragment's width; 0: all do
    BIAS: bool,
    ACTIVATION: str = "none",
    STAGES: int,  # tiles in shared memory; 0: straight from global memory
    SPLIT: int,  # blocks that share K
):  # fmt: skip
    """Multiply activations [m, k] by a packed weight [n, k]; scales are [groups, n].

    With SPLIT > 1, y has the shape [SPLIT, m, n]: sums over each block's share of K, for `add_parts`.
    """
    (BN, BK), words, width = PACK.tile, PACK.words, PACK.fragment.shape[1]
    launch(blocks=(cdiv(m, BM), cdiv(n, BN), SPLIT), warps=PACK.warps)
    col, tile_n, part, tiles = block_id(0) * BM, block_id(1), block_id(2), cdiv(k, BK)
    row, (most, count) = tile_n * BN, share_of(part, tiles, SPLIT)
    first, last = part * most, part * most + count
    gw, gx = operand_views(w, x, m, n, k, last, PACK, SPLIT)
    gs = global_view(scales, shape=(n, groups), strides=(1, n))
    follow()
    if STAGES:
        sw, sx = alloc_shared(u32, (STAGES, *words.shape)), alloc_shared(XT, (STAGES, BM, BK))
        for s in static_range(STAGES - 1):
            fetch(sw, sx, gw, gx, tile_n, col, first + s, s)
    acc = zeros((BN, BM), f32)
    for t in range(first, last):
        done = t - first
        if STAGES:
            wait_group(STAGES - 2)
            sync()  # tile t is there for all threads, and all have left tile t - 1, whose stage is filled next
            fetch(sw, sx, gw, gx, tile_n, col, t + (STAGES - 1), (done + (STAGES - 1)) % STAGES)
            packed = load_shared(sw, offset=(done % STAGES, 0, 0, 0), shape=words.shape, layout=words)
        else:
            packed = load_global(gw, offset=(tile_n, t, 0, 0, 0), shape=words.shape, layout=words)
        lanes = packed
        for j in static_range(10):
            lanes = after(lanes, packed, j)
            digits = numbers(lanes, CT, PACK.fragment)
            if STAGES:
                tile = load_shared(sx, offset=(done % STAGES, 0, j * width), shape=(BM, width))
            else:
                tile = load_global(gx, offset=(col, t * BK + j * width), shape=(BM, width))
            if GROUP:
                scale = load_global(gs, offset=(row, (t * BK + j * width) // GROUP), shape=(BN, 1)).to(f32)
                acc = acc + weighted(digits, tile, zeros(acc.shape, f32), CT, PARTS) * scale
            else:
                acc = weighted(digits, tile, acc, CT, PARTS)
    acc = acc * UNITS[CT]
    if SPLIT == 1:
        acc = finish(acc, gs, 1.0, bias, row, n, GROUP, False, BIAS, ACTIVATION)
    result = acc.to(f32 if SPLIT > 1 else YT)
    store_global(global_view(y, shape=(SPLIT, n, m), strides=(m * n, 1, n)), result, offset=(part, row, col))
