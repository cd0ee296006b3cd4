"""Choose the compile-time constants of the quantized matmul."""

from __future__ import annotations

from functools import cache
from math import gcd, prod
from typing import Any

from tilus.dtypes import DataType, dtype
from tilus.kernels.configure_cpu import CPU_BATCH_TILES
from tilus.runtime.targets import Device
from tilus.runtime.weights.packing import WARPS, PackLayout
from tilus.runtime.weights.weight import WeightFormat

F32, BF16 = dtype("f32"), dtype("bf16")
LARGEST_BATCH_TILE = 64
SINGLE_STEP = 64
STAGE_BYTES = 76 * 1024  # of the 99 KiB of an sm_86 or sm_89 block; a conversion in f32 takes up to 18
ZERO_POINTS = {True: dtype("i8"), False: dtype("u8")}  # by whether the codes have a sign


def compute_dtype(weight: DataType, activation: DataType) -> DataType:
    """Return the type to multiply in on a GPU.

    That of the activations if tensor cores take it and it holds every code's value, else bf16, of which any activation
    is a sum of few. Codebooks are rounded to the type of the activations.
    """
    if weight.is_codebook:
        return activation
    tried = [BF16] if activation == F32 else [activation, BF16]
    return next((kind for kind in tried if _holds(kind, weight)), F32)


def _holds(kind: DataType, weight: DataType) -> bool:
    """Whether a type has every value of a weight's codes."""
    values = weight.decode(range(2**weight.nbits))
    rounded = kind.decode(kind.encode(values))
    return bool(((values == rounded) | ((values != values) & (rounded != rounded))).all())


def activation_parts(activation: DataType, compute: DataType) -> int:
    """Return how many numbers of a type add up to an activation exactly: bf16 has 8 bits of its 11 or 24."""
    return {"f16": 2, "f32": 3}.get(activation.name, 1) if compute == BF16 else 1


def rows_per_block(m: int, device: Device, weight: DataType, activation: DataType) -> int:
    """Return the batch tile BM for a batch of `m`."""
    sizes: tuple[int, ...] = CPU_BATCH_TILES if device == "cpu" else (8, 16, 32, LARGEST_BATCH_TILE)
    if device == "cuda":
        compute = compute_dtype(weight, activation)
        # What does not fit the registers: larger tiles in parts, and any but the smallest without tensor cores.
        largest = 8 if compute == F32 else LARGEST_BATCH_TILE // activation_parts(activation, compute)
        sizes = tuple(size for size in sizes if size <= largest)
    return next((size for size in sizes if m <= size), sizes[-1])


@cache
def constants(form: WeightFormat, activation: DataType, scale: DataType, bm: int, bias: bool) -> dict[str, Any]:
    """Return the compile-time constants of `quantized_matmul` for a weight format and batch tile."""
    on_cpu = form.pack.device == "cpu"
    compute = F32 if on_cpu else compute_dtype(form.dtype, activation)
    group, width = max(form.group_size, 0), form.pack.tile[1]
    # No step spans two groups. Activations of f32 take three registers' worth of parts: few at a time.
    step = gcd(group, width, SINGLE_STEP if activation == F32 and not on_cpu else width)
    return {
        "XT": activation,
        "CT": compute,
        "PARTS": activation_parts(activation, compute),
        "ST": scale,
        "ZT": ZERO_POINTS[form.dtype.is_signed] if form.zero_point == "tensor" else dtype("u32"),
        "PACK": form.pack,
        "BM": bm,
        "GROUP": group,
        "STEP": step,
        "ZERO": form.zero_point,
        "SCALED": form.tensor_scale != 1.0,
        "BIAS": bias,
        "STAGES": 0 if on_cpu else stages(form.pack, activation, bm),
        "WARPS": 1 if on_cpu else WARPS,
    }


@cache
def ternary_constants(form: WeightFormat, activation: DataType, scale: DataType, bm: int, bias: bool) -> dict[str, Any]:
    """Choose those of `ternary_matmul`."""
    on_cpu = form.pack.device == "cpu"
    compute = F32 if on_cpu else BF16 if activation == F32 else activation
    return {
        "XT": activation,
        "CT": compute,
        "PARTS": activation_parts(activation, compute),
        "ST": scale,
        "PACK": form.pack,
        "BM": bm,
        "GROUP": max(form.group_size, 0),
        "BIAS": bias,
        "STAGES": 0 if on_cpu else stages(form.pack, activation, bm),
        "WARPS": 1 if on_cpu else WARPS,
    }


def stages(pack: PackLayout, activation: DataType, bm: int) -> int:
    """Return how many tiles of weights and activations to keep in shared memory: what fits every GPU, 2 to 4."""
    width = pack.tile[1]
    tile_bytes = 4 * prod(pack.words.shape) + bm * width * activation.nbits // 8
    return min(max(STAGE_BYTES // tile_bytes, 2), 4)
