"""Quantization of a weight to any type of 1 to 8 bits: each group of K gets a scale, each weight the nearest code.

The scale makes the largest magnitude of the group the largest value of the type. Up to 3 bits that wastes most codes on
a few outliers; there the scale is the best of a few smaller ones, by the sum of squared errors of the group.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from tilus.dtypes import BlockScaled, DataType
from tilus.dtypes import dtype as find_dtype
from tilus.errors import QuantizeError
from tilus.runtime.arguments import as_numpy, describe, is_torch
from tilus.runtime.targets import code_device
from tilus.runtime.weights.block_scaled import format_named, quantize_blocks
from tilus.runtime.weights.packing import PACKS, native_pack
from tilus.runtime.weights.weight import QuantizedWeight, WeightFormat, ZeroPoint, as_dtype, like

FLOATS = ("f16", "bf16", "f32", "f64")
NUMPY_TYPES = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16), "f32": np.dtype(np.float32)}
CLIPS = 2.0 ** (-np.arange(1, 12) / 4)  # of the widest scale: 0.84 to 0.15
ELEMENTS = 1 << 18  # weights worked on at a time: float64 copies of them stay in the cache


def quantize(
    weight: Any,
    dtype: str | DataType,
    group_size: int = 128,
    *,
    zero_point: bool | None = None,
    scale_dtype: str | DataType | None = None,
) -> QuantizedWeight:
    """Quantize a weight [N, K], as `torch.nn.Linear` has it, group by group along K.

    Parameters
    ----------
    weight : NumPy array or torch tensor of f16, bf16, f32 or f64
        Need not be contiguous.
    dtype : str or DataType
        Any integer, `eXmY` float or codebook of 1 to 8 bits: `u4`, `i3`, `f4e2m1`, `nf4`, `t2`, `t1.6`, ...; or a
        block-scaled format: `mxfp4`, `mxfp6`, `mxfp8`, `nvfp4`, `u4:g64:bf16`, ..., which says the group size too.
    group_size : int
        Weights that share a scale: a multiple of 16, or -1 for whole rows. The last group may be shorter.
    zero_point : bool, optional
        Whether each group has an integer zero point, so that its whole range is used; by default unsigned integers
        have. Without one an unsigned code stands for code - 2^(bits-1).
    scale_dtype : optional
        f16, bf16 or f32; by default the type of the weight (f32 for f64).

    Raises
    ------
    QuantizeError
        A weight that is not a finite float matrix, or a type, group size or option that does not fit.
    """
    blocks = format_named(dtype)
    if blocks is not None:
        return _quantize_blocks(weight, blocks, group_size, zero_point, scale_dtype)
    kind = _check_dtype(dtype)
    source = _check_weight(weight)
    zero = _zero_point(kind, zero_point)
    if not isinstance(group_size, int | np.integer) or (group_size != -1 and (group_size <= 0 or group_size % 16)):
        raise QuantizeError(f"group_size must be a positive multiple of 16 or -1, got {group_size!r}")
    given = describe(weight)
    assert given is not None, "checked by _check_weight"
    scale_type = as_dtype(scale_dtype or ("f32" if given.dtype.name == "f64" else given.dtype))
    if scale_type.name not in FLOATS[:3]:
        raise QuantizeError(f"scale_dtype must be f16, bf16 or f32, got {scale_type}")
    codes, scales, zeros = _quantize_rows(source, kind, int(group_size), zero, scale_type)
    pack = native_pack(kind, code_device(given.device), given.dtype)
    return QuantizedWeight(
        WeightFormat(pack, int(group_size), zero),
        (source.shape[0], source.shape[1]),
        like(pack.pack(codes), weight),
        like(np.ascontiguousarray(scale_type.encode(scales.T)).view(NUMPY_TYPES[scale_type.name]), weight),
        None if zeros is None else like(np.ascontiguousarray(zeros.T).astype("i1" if kind.is_signed else "u1"), weight),
        given.dtype,
    )


def _quantize_blocks(
    weight: Any, form: BlockScaled, group_size: int, zero_point: bool | None, scale_dtype: str | DataType | None
) -> QuantizedWeight:
    source, given = _check_weight(weight), describe(weight)
    assert given is not None, "checked by _check_weight"
    if group_size not in (128, form.block) or zero_point is not None or scale_dtype is not None:
        raise QuantizeError(
            f"{form} says itself what its groups, zero points and scales are", hint=f"quantize(weight, {form.name!r})"
        )
    return quantize_blocks(source, form, weight, given.dtype, given.device)


def _check_dtype(name: str | DataType) -> DataType:
    kind = as_dtype(name)
    usable = kind.is_integer or kind.is_float or kind.is_codebook
    if kind.name in PACKS:
        return kind
    if not usable or not kind.is_bit_packed or kind.nbits > 8 or kind == find_dtype("e8m0"):
        raise QuantizeError(
            f"cannot quantize to {kind}: expected an integer, eXmY float or codebook of 1 to 8 bits",
            hint="u4, i3, f4e2m1, nf4 and t2 are such types",
        )
    return kind


def _check_weight(weight: Any) -> np.ndarray:
    buffer = describe(weight)
    if buffer is None or buffer.dtype.name not in FLOATS:
        came = f"dtype {weight.dtype}" if hasattr(weight, "dtype") else type(weight).__name__
        raise QuantizeError(f"the weight must be a float array of {', '.join(FLOATS)}, got {came}")
    if len(weight.shape) != 2:
        raise QuantizeError(f"the weight must be a matrix [N, K], got shape {tuple(weight.shape)}")
    source: np.ndarray = as_numpy(weight.detach().cpu() if is_torch(weight) else weight).astype(np.float64)
    bad = ~np.isfinite(source)
    if bad.any():
        n, k = np.argwhere(bad)[0]
        raise QuantizeError(
            f"the weight has {int(bad.sum())} values that are not finite, the first at [{n}, {k}]: {source[n, k]}",
            hint="a NaN or Inf usually means a damaged checkpoint; numpy.nan_to_num replaces them",
        )
    return source


def _zero_point(kind: DataType, wanted: bool | None) -> ZeroPoint:
    if not kind.is_integer:
        if wanted:
            raise QuantizeError(f"{kind} has a sign of its own and takes no zero point", hint="drop zero_point=True")
        return "none"
    if wanted is None:
        wanted = not kind.is_signed
    if wanted:
        return "tensor"
    return "none" if kind.is_signed else "half"


def _quantize_rows(
    source: np.ndarray, kind: DataType, group_size: int, zero: ZeroPoint, scale_type: DataType
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return codes [N, K], scales [N, groups] rounded to their type, and zero points [N, groups] or None."""
    n, k = source.shape
    size = group_size if group_size > 0 else max(k, 1)
    groups = 1 if group_size < 0 else -(-k // size)
    codes, scales, zeros = np.empty((n, k), kind.code_dtype), np.empty((n, groups)), np.empty((n, groups))
    step = max(ELEMENTS // max(k, 1), 1)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        blocks = np.zeros((rows.stop - start, groups, size))
        padded = blocks.reshape(rows.stop - start, groups * size)
        padded[:, :k] = source[rows]
        scales[rows], zeros[rows] = _scales(blocks, kind, zero, scale_type)
        codes[rows] = _encode(blocks, scales[rows], zeros[rows], kind).reshape(padded.shape)[:, :k]
    return codes, scales, zeros if zero == "tensor" else None


def _scales(blocks: np.ndarray, kind: DataType, zero: ZeroPoint, scale_type: DataType) -> tuple[np.ndarray, np.ndarray]:
    """Return scales [rows, groups], rounded to their type, and what is subtracted from the codes' values."""
    widest = _widest_scales(blocks, kind, zero)
    scales = _rounded(widest, scale_type)
    zeros = _zeros(blocks, scales, kind, zero)
    if kind.nbits > 3:
        return scales, zeros
    least = _error(blocks, scales, zeros, kind)
    for clip in CLIPS:
        narrower = _rounded(widest * clip, scale_type)
        moved = _zeros(blocks, narrower, kind, zero)
        error = _error(blocks, narrower, moved, kind)
        better = error < least
        least = np.where(better, error, least)
        scales, zeros = np.where(better, narrower, scales), np.where(better, moved, zeros)
    return scales, zeros


def _widest_scales(blocks: np.ndarray, kind: DataType, zero: ZeroPoint) -> np.ndarray:
    """Return the scales with which no weight lies beyond the codes' values; 1 for a group of zeros."""
    low, high = blocks.min(axis=2, initial=0.0), blocks.max(axis=2, initial=0.0)
    top = np.maximum(high, -low)
    if zero == "tensor":
        scales = (high - low) / (2**kind.nbits - 1)
    elif kind.is_integer:
        # The range of codes is one longer below zero: its middle half-width loses least at both ends.
        scales = top / max((2**kind.nbits - 1) / 2, 1)
    else:
        scales = top / max(abs(kind.max_value), abs(kind.min_value))
    return np.where(top == 0, 1.0, scales)


def _rounded(scales: np.ndarray, scale_type: DataType) -> np.ndarray:
    """Return scales rounded to their type, none of them to zero."""
    rounded: np.ndarray = scale_type.decode(scale_type.encode(scales))
    if not np.isfinite(rounded).all():
        raise QuantizeError(f"a scale of {scales.max():.3g} does not fit {scale_type}", hint='pass scale_dtype="f32"')
    smallest = scale_type.decode(np.ones(1, scale_type.code_dtype))
    np.maximum(rounded, smallest, out=rounded)
    return rounded


def _zeros(blocks: np.ndarray, scales: np.ndarray, kind: DataType, zero: ZeroPoint) -> np.ndarray:
    """Return what is subtracted from the values of each group's codes."""
    if zero != "tensor":
        return np.full(scales.shape, 2.0 ** (kind.nbits - 1) if zero == "half" else 0.0)
    least, most = int(kind.min_value), int(kind.max_value)
    zeros: np.ndarray = np.clip(np.rint(-blocks.min(axis=2, initial=0.0) / scales) + least, least, most)
    return zeros


def _encode(blocks: np.ndarray, scales: np.ndarray, zeros: np.ndarray, kind: DataType) -> np.ndarray:
    values = blocks / scales[:, :, None]
    codes: np.ndarray = kind.encode(np.rint(values) + zeros[:, :, None] if kind.is_integer else values)
    return codes


def _error(blocks: np.ndarray, scales: np.ndarray, zeros: np.ndarray, kind: DataType) -> np.ndarray:
    """Return the sum of squared errors of each group."""
    values = kind.decode(_encode(blocks, scales, zeros, kind)) - zeros[:, :, None]
    difference = values * scales[:, :, None] - blocks
    error: np.ndarray = np.einsum("rgk,rgk->rg", difference, difference)
    return error
