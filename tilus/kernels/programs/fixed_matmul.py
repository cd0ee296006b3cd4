"""y = x · dequant(w)ᵀ + bias on a CPU in fixed point: products of 16-bit integers, two by one instruction.

A row of activations is rounded, CHUNK columns at a time, to integers of which the largest is ±32767; what one of them
is worth, its *unit*, is that largest activation / 32767. Weights are integers too: codes less a constant or their zero
points, less than 512. So sums of their products over 128 columns are exact in 32 bits; they are scaled by the group's
scale and the unit. A result is off by no more than its activations are, half a unit each. An activation that is no
finite number makes NaN of its row.

`fixed_matmul` takes few rows and does all in registers. For more, `fix_activations` rounds them once for all blocks;
`fixed_panel_matmul` unpacks a *panel* of weights into memory that stays in the cache next to the core.
"""

from __future__ import annotations

from tilus.dtypes import DataType, f32, i16, i32, u32
from tilus.kernels.programs.pieces import finish, weight_views
from tilus.lang import (
    abs,
    alloc_shared,
    annotate,
    block_id,
    cdiv,
    dot,
    global_view,
    inline,
    launch,
    load_global,
    load_shared,
    max,
    maximum,
    ptr,
    round,
    static_range,
    store_global,
    store_shared,
    sum,
    sync,
    view,
    zeros,
)
from tilus.layouts import RegisterLayout
from tilus.runtime.kernel import kernel
from tilus.runtime.weights.packing import PackLayout

LARGEST = 32767.0
LEAST = 2.0**-100  # the largest activation counts as no smaller: the reciprocal must not overflow


@inline
def fix(tile):
    """Return activations [rows, CHUNK] as integers up to LARGEST, and the unit [rows, 1] of every row."""
    size = maximum(max(abs(tile), dim=1, keepdims=True), LEAST)
    return round(tile * (LARGEST / size)).to(i16), size * (1.0 / LARGEST)


@inline
def begin(numbers, gz, row, group, PACK, ZERO, LESS):
    """Return what the zero points take off products with integers [BM, CHUNK], as sums [BN, BM] begin."""
    start = zeros((PACK.tile[0], numbers.shape[0]), i32)
    sums = sum(numbers.to(i32), dim=1, keepdims=True).T
    if LESS:
        start = start - sums * LESS
    if ZERO == "tensor":
        start = start - load_global(gz, offset=(row, group), shape=(PACK.tile[0], 1)).to(i32) * sums
    return start


@inline
def scaled(part, gs, unit, row, group, GROUP):
    """Return sums [rows, BM] of a group as what they are worth; the scale that all of K shares is left out."""
    values = part.to(f32) * unit.T
    if GROUP:
        return values * load_global(gs, offset=(row, group), shape=(part.shape[0], 1)).to(f32)
    return values


@inline
def unpack(panel, codes, gz, row, group, column, ZERO, LESS, LAYOUT, WORDS):
    """Write codes [BN, BK] less their zero points to the panel, in pairs, from pair `column` on."""
    weight = codes.to(i16)
    if LESS:
        weight = weight - LESS
    if ZERO == "tensor":
        weight = weight - load_global(gz, offset=(row, group), shape=(codes.shape[0], 1)).to(i16)
    weight = annotate(weight, LAYOUT)
    store_shared(panel, view(weight, u32, WORDS).T, offset=(column, 0))


@inline
def add_up(sums, part, gs, unit, row, group, column, LANES, GROUP):
    """Add what sums [BN, BC] of a group are worth, few rows at once: they and their scales take registers."""
    for r in static_range(0, part.shape[0], LANES):
        acc = load_shared(sums, offset=(column, r), shape=(part.shape[1], LANES)).T
        sync()
        acc += scaled(part[r : r + LANES], gs, unit, row + r, group, GROUP)
        store_shared(sums, acc.T, offset=(column, r))


@kernel
def fixed_matmul(
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
    CHUNK: int,  # columns of activations that share a unit: whole tiles, at most 128, that divide GROUP
    GROUP: int,  # weights along K that share a scale; 0: all do
    ZERO: str,  # "tensor": each group has a zero point
    LESS: int,  # what is taken off every code
    SCALED: bool,  # whether there is a tensor scale
    BIAS: bool,
    ACTIVATION: str = "none",
):
    """Multiply few activations [m, k] by a packed weight [n, k]; scales and zero points are [groups, n]."""
    (BN, BK), words, tiles = PACK.tile, PACK.words, CHUNK // PACK.tile[1]
    launch(blocks=(cdiv(m, BM), cdiv(n, BN)), warps=1)
    col, tile_n = block_id(0) * BM, block_id(1)
    row, gx = tile_n * BN, global_view(x, shape=(m, k))
    gw, gs, gz = weight_views(w, scales, zero_points, n, k, groups, PACK)
    fixed = alloc_shared(i16, (BM, CHUNK))
    acc = zeros((BN, BM), f32)
    for p in range(cdiv(k, CHUNK)):
        numbers, unit = fix(load_global(gx, offset=(col, p * CHUNK), shape=(BM, CHUNK)).to(f32))
        store_shared(fixed, numbers)
        sync()
        group = p * CHUNK // GROUP if GROUP else 0
        total = begin(numbers, gz, row, group, PACK, ZERO, LESS)
        for t in range(tiles):
            packed = load_global(gw, offset=(tile_n, p * tiles + t, 0, 0, 0), shape=words.shape, layout=words)
            codes = view(packed, PACK.dtype, PACK.fragment, PACK.bits)
            tile = load_shared(fixed, offset=(0, t * BK), shape=(BM, BK))
            total = dot(codes.to(i16), tile.T, total)
        acc += scaled(total, gs, unit, row, group, GROUP)
        sync()
    acc = finish(acc, gs, tensor_scale, bias, row, n, GROUP, SCALED, BIAS, ACTIVATION)
    store_global(global_view(y, shape=(n, m), strides=(1, n)), acc.to(YT), offset=(row, col))


@kernel
def fix_activations(
    x: ptr[XT],
    numbers: ptr[i16],
    units: ptr[f32],
    m: i32,
    k: i32,
    *,
    XT: DataType,
    BM: int,
    CHUNK: int,
    ROWS: int,  # rounded at once: divides BM
):
    """Round activations [m, k] to integers [chunks, tiles, BM, CHUNK] and units [chunks, tiles, BM]."""
    tiles, chunks = cdiv(m, BM), cdiv(k, CHUNK)
    launch(blocks=(tiles, chunks), warps=1)
    i, p, gx = block_id(0), block_id(1), global_view(x, shape=(m, k))
    gi = global_view(numbers, shape=(chunks, tiles, BM, CHUNK))
    gu = global_view(units, shape=(chunks, tiles, BM, 1))
    for r in range(BM // ROWS):
        fixed, unit = fix(load_global(gx, offset=(i * BM + r * ROWS, p * CHUNK), shape=(ROWS, CHUNK)).to(f32))
        store_global(gi, fixed, offset=(p, i, r * ROWS, 0), dims=(2, 3))
        store_global(gu, unit, offset=(p, i, r * ROWS, 0), dims=(2, 3))


@kernel
def fixed_panel_matmul(
    numbers: ptr[i16],
    units: ptr[f32],
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
    XT: DataType,  # bias
    YT: DataType,
    ST: DataType,
    ZT: DataType,
    PACK: PackLayout,
    WORDS: RegisterLayout,  # of a tile's weights [BN, BK / 2], in pairs
    PANEL: RegisterLayout,  # of the pairs [CHUNK / 2, BN] of a panel
    PAIRS: RegisterLayout,  # of the weights [BN, CHUNK] in them
    BM: int,
    BC: int,  # activations multiplied at once: divides BM
    CHUNK: int,
    GROUP: int,
    ZERO: str,
    LESS: int,
    SCALED: bool,
    BIAS: bool,
    ACTIVATION: str = "none",
):
    """Multiply activations that `fix_activations` rounded; the rest as for `fixed_matmul`."""
    (BN, BK), words, tiles, LANES = PACK.tile, PACK.words, CHUNK // PACK.tile[1], PACK.fragment.num_threads
    launch(blocks=(cdiv(m, BM), cdiv(n, BN)), warps=1)
    i, tile_n, chunks = block_id(0), block_id(1), cdiv(k, CHUNK)
    row, gi = tile_n * BN, global_view(numbers, shape=(chunks, cdiv(m, BM), BM, CHUNK))
    gu = global_view(units, shape=(chunks, cdiv(m, BM), BM, 1))
    gw, gs, gz = weight_views(w, scales, zero_points, n, k, groups, PACK)
    panel, sums = alloc_shared(u32, PANEL.shape), alloc_shared(f32, (BM, BN))
    for c in range(BM // BC):
        store_shared(sums, zeros((BC, BN), f32), offset=(c * BC, 0))
    for p in range(chunks):
        group = p * CHUNK // GROUP if GROUP else 0
        for t in range(tiles):
            packed = load_global(gw, offset=(tile_n, p * tiles + t, 0, 0, 0), shape=words.shape, layout=words)
            codes = view(packed, PACK.dtype, PACK.fragment, PACK.bits)
            unpack(panel, codes, gz, row, group, t * (BK // 2), ZERO, LESS, PACK.fragment, WORDS)
        sync()
        for c in range(BM // BC):
            tile = load_global(gi, offset=(p, i, c * BC, 0), shape=(BC, CHUNK), dims=(2, 3))
            unit = load_global(gu, offset=(p, i, c * BC, 0), shape=(BC, 1), dims=(2, 3))
            pairs = annotate(load_shared(panel, layout=PANEL).T, PANEL.permute(1, 0))
            part = dot(view(pairs, i16, PAIRS), tile.T, zeros((BN, BC), i32))
            add_up(sums, part, gs, unit, row, group, c * BC, LANES, GROUP)
        sync()
    for c in range(BM // BC):
        acc = load_shared(sums, offset=(c * BC, 0), shape=(BC, BN)).T
        acc = finish(acc, gs, tensor_scale, bias, row, n, GROUP, SCALED, BIAS, ACTIVATION)
        store_global(global_view(y, shape=(n, m), strides=(1, n)), acc.to(YT), offset=(row, i * BM + c * BC))
