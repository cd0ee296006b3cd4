"""What the programs of the quantized matmul share."""

from __future__ import annotations

from math import pi

from tilus.dtypes import f32
from tilus.lang import (
    cdiv,
    dot,
    erf,
    exp,
    global_view,
    grid_dependency_wait,
    inline,
    launch_dependents,
    load_global,
    maximum,
    minimum,
    rsqrt,
    static_range,
)

ROOT_HALF = 0.5**0.5
TANH_SLOPE, TANH_CUBE = (8 / pi) ** 0.5, 0.044715  # of the usual approximation of gelu


@inline
def weight_views(w, scales, zero_points, n, k, groups, PACK):
    """Return views of packed words, by tile, and of scales and zero points [n, groups]."""
    (BN, BK), words = PACK.tile, PACK.words
    gw = global_view(w, shape=(cdiv(n, BN), cdiv(k, BK), *words.shape))
    gs = global_view(scales, shape=(n, groups), strides=(1, n))
    gz = global_view(zero_points, shape=(n, groups), strides=(1, n))
    return gw, gs, gz


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
def by_lane(tile, PACK):
    """Return a table's values [SLICES, ..., rows] as [SLICES, rows, 1], each tile's rows in the order of products."""
    SLICES, ROWS = tile.shape[0], tile.shape[-1]
    lanes = tile.reshape((SLICES * ROWS // PACK.tile[0], PACK.tile[0] // PACK.interleave, PACK.interleave))
    return lanes.mT.reshape((SLICES, ROWS, 1))


@inline
def follow():
    """Wait for the kernels before this one, and let the next one start while this one ends."""
    grid_dependency_wait()
    launch_dependents()


@inline
def share_of(part, trips, SPLIT):
    """Return how many trips along K a part of SPLIT has at most, and how many part number `part` has."""
    most = cdiv(trips, SPLIT)
    return most, maximum(minimum(most, trips - part * most), 0)


@inline
def times_sigmoid(x, t):
    """Return x / (1 + exp(-t)): a GPU has an instruction for the root, and divides in a subroutine."""
    root = rsqrt(1.0 + exp(-t))
    return x * root * root


@inline
def activate(rows, ACTIVATION):
    """Return f32 values with an activation applied, one of `EPILOGUES`; that of pairs is left to `add_parts`.

    1 + tanh(u) is 2 sigmoid(2u), which loses no digits where the sum cancels.
    """
    if ACTIVATION == "relu":
        rows = maximum(rows, 0.0)
    if ACTIVATION == "gelu":
        rows = rows * 0.5 * (1.0 + erf(rows * ROOT_HALF))
    if ACTIVATION == "gelu_tanh":
        rows = times_sigmoid(rows, TANH_SLOPE * (rows + TANH_CUBE * rows * rows * rows))
    if ACTIVATION == "silu":
        rows = times_sigmoid(rows, rows)
    return rows


@inline
def finish(acc, gs, tensor_scale, bias, row, n, GROUP, SCALED, BIAS, ACTIVATION):
    """Return the results that accumulators come to: with the scales that all of K shares, bias and activation."""
    if not GROUP:
        acc = acc * load_global(gs, offset=(row, 0), shape=(acc.shape[0], 1)).to(f32)
    if SCALED:
        acc = acc * tensor_scale
    if BIAS:
        acc += load_global(global_view(bias, shape=(n, 1)), offset=(row, 0), shape=(acc.shape[0], 1)).to(f32)
    return activate(acc, ACTIVATION)
