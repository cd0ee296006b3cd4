"""Choose program and compile-time constants of the quantized matmul on a GPU."""

from __future__ import annotations

from functools import cache
from math import gcd, prod
from typing import Any

import numpy as np

from tilus.casts import forms
from tilus.dtypes import DataType, dtype
from tilus.kernels.configure_operands import operand_constants
from tilus.runtime.weights.packing import WARPS, PackLayout, native_pack
from tilus.runtime.weights.weight import WeightFormat

F32, BF16 = dtype("f32"), dtype("bf16")
BATCH_TILES = (8, 16, 32, 64)
TILE_WIDTH = 128  # columns of most types' packed tiles; some have twice as many
SINGLE_STEP = 64
LARGEST_PRODUCED = 16  # batch tile whose activations one warp copies in less time than the others multiply
# Rows of weights, columns and batch that a warp takes at a time: sums, activations and codes fill its registers.
WARP_ROOM = 128 * TILE_WIDTH * 8
MOST_BYTES = 84 * 1024  # of the 99 KiB of an sm_86 or sm_89 block; sums take 4 besides, conversions up to 18
WANTED_BYTES = 77 * 1024  # so that two blocks, and one more on an H100, fit an SM with their sums


def compute_dtype(weight: DataType, activation: DataType) -> DataType:
    """Return the type to multiply in on a GPU.

    That of the activations if tensor cores take it and it holds every code's value, else bf16, of which any activation
    is a sum of few. Codebooks are rounded to the type of the activations, f32 where bf16 has not their values.
    """
    if weight.is_codebook:
        return BF16 if activation == F32 and _holds(BF16, weight) else activation
    tried = [BF16] if activation == F32 else [activation, BF16]
    return next((kind for kind in tried if _holds(kind, weight)), F32)


def _holds(kind: DataType, weight: DataType) -> bool:
    """Whether a type has every value of a weight's codes."""
    values = weight.decode(np.arange(weight.num_codes))
    rounded = kind.decode(kind.encode(values))
    return bool(((values == rounded) | ((values != values) & (rounded != rounded))).all())


def activation_parts(activation: DataType, compute: DataType) -> int:
    """Return how many numbers of a type add up to an activation exactly: bf16 has 8 bits of its 11 or 24."""
    return {"f16": 2, "f32": 3}.get(activation.name, 1) if compute == BF16 else 1


def gpu_batch_tiles(weight: DataType, activation: DataType) -> tuple[int, ...]:
    """Return the batch tiles BM that fit the registers: fewer for parts or wide tiles, one without tensor cores."""
    compute, width = compute_dtype(weight, activation), native_pack(weight, "cuda", activation).tile[1]
    shares = activation_parts(activation, compute) * max(width // TILE_WIDTH, 1)
    largest = BATCH_TILES[0] if compute == F32 else max(BATCH_TILES[-1] // shares, BATCH_TILES[0])
    return tuple(size for size in BATCH_TILES if size <= largest)


@cache
def sliced_constants(
    form: WeightFormat, activation: DataType, scale: DataType, bm: int, bias: bool, k: int | None, split: int
) -> dict[str, Any]:
    """Return the compile-time constants of `sliced_matmul`; see `matmul_program`."""
    compute = compute_dtype(form.dtype, activation)
    group, width = max(form.group_size, 0), form.pack.tile[1]
    tiles, slices, warps = _shares(form, activation, scale, bm)
    while k is not None and slices // 2 * width >= k > 0:  # fewer tiles than slices: none is left over
        slices, warps = slices // 2, warps // 2
    return operand_constants(form, activation, scale, bm, bias) | {
        "CT": compute,
        "PARTS": activation_parts(activation, compute),
        "FOLDED": _folds(form, compute, bm),
        "STEP": gcd(group, _step(activation, compute, width, bm)),
        "SLICES": slices,
        "TILES": tiles,
        "WARPS": warps,
        # Beside a producer ptxas computes the address of every look-up in a table anew.
        "PRODUCERS": int(bm <= LARGEST_PRODUCED and not _is_looked_up(form.pack)),
        "STAGES": _stages(form.pack, slices * tile_bytes(form, activation, scale, bm, tiles)),
        "EVEN": divides(slices * width, k),
        "WHOLE": divides(width, k),
        "SPLIT": split,
        "CLUSTERED": 0,
    }


def _folds(form: WeightFormat, compute: DataType, bm: int) -> bool:
    """Whether scales multiply weights rather than sums: where that takes fewer instructions, and rounds no weight.

    Of a fragment's 16 rows and columns a thread has 8 weights and, for each 8 of the batch, 4 sums, a group at a time;
    to make values of weights and to multiply them takes two instructions for a pair.
    """
    if form.scale is None or form.group_size < 0 or form.zero_point == "tensor" or form.pack.digits > 1:
        return False
    return bm > gcd(form.group_size, form.pack.tile[1]) and _has_products(form, form.scale, compute)


@cache
def _has_products(form: WeightFormat, scale: DataType, compute: DataType) -> bool:
    """Whether a type has every product of a weight and a scale that f32 has; beyond its range both are infinite."""
    values = form.dtype.decode(np.arange(form.dtype.num_codes)).astype(float)
    if form.zero_point == "half":
        values -= 2 ** (form.dtype.nbits - 1)
    with np.errstate(invalid="ignore"):  # infinite scales of zeros
        products = np.multiply.outer(values, scale.decode(np.arange(scale.num_codes)))
    kept, wanted = (kind.decode(kind.encode(products)) for kind in (compute, F32))
    return np.array_equal(kept, wanted, equal_nan=True)


def divides(columns: int, k: int | None) -> bool:
    """Whether K is made of whole numbers of columns."""
    return k is None or k % columns == 0


def fair_split(blocks: int, trips: int, multiprocessors: int) -> int:
    """Return how many blocks should share K: two for every multiprocessor in all, two trips of the loop for each."""
    wanted = max(min(2 * multiprocessors // blocks, trips // 2), 1)
    return parts_of(trips, wanted)


def parts_of(trips: int, wanted: int) -> int:
    """Return in how many parts trips fall where each but the last has as many: no more than wanted, none empty."""
    return -(-trips // -(-trips // wanted))


def _step(activation: DataType, compute: DataType, width: int, bm: int) -> int:
    """Return how many columns of a tile to multiply at once: few of activations in parts, which take registers each."""
    if activation == F32:
        return SINGLE_STEP if width <= TILE_WIDTH else SINGLE_STEP // 4
    return width if activation_parts(activation, compute) == 1 else SINGLE_STEP * BATCH_TILES[0] // bm


def _shares(form: WeightFormat, activation: DataType, scale: DataType, bm: int) -> tuple[int, int, int]:
    """Return how many tiles along N and along K a block takes in a trip, and its warps."""
    pack, rows = form.pack, form.pack.tile[0]
    own = rows_of_warp(form, activation, bm)
    tiles, sharing = max(own // rows, 1), max(rows // own, 1)
    one, table = tile_bytes(form, activation, scale, bm, tiles), table_bytes(pack)
    slices = max(WARPS // sharing, 1)
    while slices > 2 and 3 * slices * one > WANTED_BYTES and not table:
        slices //= 2
    if slices > 1 and 2 * slices * one > MOST_BYTES - table:
        slices = 1
    return tiles, slices, slices * sharing


def rows_of_warp(form: WeightFormat, activation: DataType, bm: int) -> int:
    """Return how many rows a warp multiplies: the more, the less each costs of what does not depend on rows.

    That are activations, sums of them, and the loop itself.
    """
    pack, compute = form.pack, compute_dtype(form.dtype, activation)
    rows, width = pack.tile
    span = gcd(max(form.group_size, 0), width)  # columns that share a scale
    least = rows // pack.warps
    if compute == F32:
        return least  # multiply-adds take registers enough
    parts = activation_parts(activation, compute)
    held = bm * parts * (width if pack.digits == 1 else TILE_WIDTH)
    if span <= TILE_WIDTH // 4 and (form.zero_point == "tensor" or (span <= TILE_WIDTH // 8 and bm == BATCH_TILES[0])):
        held *= 2  # many zero points, or scales
    elif _is_looked_up(pack) or (pack.bits is not None and not forms(form.dtype, compute)):
        held *= 2  # addresses in a table, or codes in two parts
    elif parts == 2 and bm > BATCH_TILES[0]:
        held //= 2  # few columns at a time
    elif parts == 1 and bm <= LARGEST_PRODUCED and span >= TILE_WIDTH and _unpacks_in_few(pack, bm):
        held //= 2
    return min(max(_power_of_two(WARP_ROOM // held), least), 2 * rows)


def _unpacks_in_few(pack: PackLayout, bm: int) -> bool:
    """Whether unpacking takes few registers: of integers in words of their own one word follows the other.

    Floats are unpacked in more steps; theirs are few beside what a larger batch takes.
    """
    if pack.dtype.is_float:
        return bm > BATCH_TILES[0] and (pack.dtype.nbits <= 4 or pack.tile[1] > TILE_WIDTH)
    return pack.bits is not None and pack.bits.unit_words == 1


def _power_of_two(most: int) -> int:
    """Return the largest power of two up to a number, 0 below 1."""
    return 1 << most.bit_length() >> 1


def table_bytes(pack: PackLayout) -> int:
    """Return the bytes of the table of pairs of a codebook's values, in a copy for each of 32 banks."""
    return 4 * 32 << 2 * pack.dtype.nbits if _is_looked_up(pack) else 0


def _is_looked_up(pack: PackLayout) -> bool:
    """Whether values come out of a table."""
    return pack.bits is None and pack.digits == 1


def tile_bytes(form: WeightFormat, activation: DataType, scale: DataType, bm: int, tiles: int = 1) -> int:
    """Return the bytes of shared memory that activations and neighbouring tiles of a weight take for a trip."""
    (rows, width), pack = form.pack.tile, form.pack
    tables = 0 if form.group_size < 0 else width // gcd(form.group_size, width)
    entry = (form.scale or scale).nbits + 8 * (form.zero_point == "tensor")
    return tiles * (4 * prod(pack.words.shape) + rows * tables * entry // 8) + bm * width * activation.nbits // 8


def _stages(pack: PackLayout, trip: int) -> int:
    """Return how many trips' bytes to keep in shared memory: what fits every GPU, 2 to 4."""
    return min(max((WANTED_BYTES - table_bytes(pack)) // trip, 2), 4)
