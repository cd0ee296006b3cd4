"""Ternary digits, five to a byte: how the programs take them out of their words and multiply by them.

Two bytes lie in the 16-bit lanes of a word. Times 3, the next digit of each stands above its byte, in bits 8 and 9. A
GPU multiplies the digit where it is: as the f16 subnormal `digit * 2^-16`, or moved under the exponent of the bf16
`128 + 32 digit`. A second product takes off the number of digit 1, and the unit is left to the end.
"""

from __future__ import annotations

from math import gcd

from tilus.dtypes import bf16, f16, f32
from tilus.kernels.programs.pieces import by_lane, product
from tilus.lang import full, inline, load_shared, static_range, view, zeros

# By what is multiplied: what a digit's place in its number stands for, and the number of digit 1.
UNITS = {f16: 65536.0, bf16: 1.0 / 32.0}
ONE = {f16: 1.0 / 65536.0, bf16: 160.0}


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
def values(lanes, FRAGMENT):
    """Return -1, 0 and 1 for the digits in bits 8 and 9 of lanes, in f32."""
    return numbers(lanes, f32, FRAGMENT) * UNITS[f16] - 1.0


@inline
def multiply_digits(packed, stages, stage, acc, CT, PARTS, PACK, FRAGMENT, GROUP, WARPS):
    """Return acc with a trip's ternary digits, times its activations, added, in units of `UNITS`.

    What the numbers are too much by is taken off first, by a product with as many rows as each warp multiplies at once:
    it is the same for all of its rows.
    """
    sx, tables, ROWS = stages[1], stages[2:], acc.shape[1]
    (SLICES, BM, BK), WIDTH = sx.shape[1:], FRAGMENT.shape[2]
    SHARING = max(WARPS // SLICES, 1) * 16
    ones = full((SLICES, SHARING, WIDTH), -ONE[CT], CT)
    span = gcd(GROUP, BK) // WIDTH if GROUP else PACK.digits  # digits that share a scale
    lanes = packed
    for first in static_range(0, PACK.digits, span):
        places = [(stage, 0, 0, (first + j) * WIDTH) for j in static_range(span)]
        tiles = [load_shared(sx, offset=place, shape=(SLICES, BM, WIDTH)) for place in places]
        less = zeros((SLICES, SHARING, BM), f32)
        for tile in tiles:
            less = product(ones, tile, less, CT, PARTS)
        part = with_rest(full(acc.shape, -0.0, f32) if GROUP else acc, less)
        for j in static_range(span):
            lanes = after(lanes, packed, first + j)
            part = product(numbers(lanes, CT, FRAGMENT), tiles[j], part, CT, PARTS)
        if GROUP:
            scale = load_shared(tables[0], offset=(stage, 0, first // span, 0), shape=(SLICES, 1, ROWS))
            part = acc + part * by_lane(scale, PACK).to(f32)
        acc = part
    return acc


@inline
def with_rest(acc, less):
    """Return sums [slices, rows, BM] with what each warp has for all of its fragments, [slices, warps * 16, BM]."""
    (SLICES, ROWS, BM), SHARING = acc.shape, less.shape[1] // 16
    by_warp = acc.reshape((SLICES, SHARING, ROWS // (SHARING * 16), 16, BM))
    return (by_warp + less.reshape((SLICES, SHARING, 1, 16, BM))).reshape(acc.shape)
