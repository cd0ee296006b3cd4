"""Round-to-nearest quantization of a weight to any type of 1 to 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilus.dtypes import DataType
from tilus.dtypes import dtype as find_dtype
from tilus.errors import QuantizeError
from tilus.runtime.arguments import as_numpy, describe, is_torch
from tilus.runtime.weights.packing import native_pack
from tilus.runtime.weights.weight import QuantizedWeight, WeightFormat, ZeroPoint, as_dtype, like

FLOATS = ("f16", "bf16", "f32", "f64")


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
        Any integer, `eXmY` float or codebook of 1 to 8 bits: `u4`, `i3`, `f4e2m1`, `nf4`, `t2`, ...
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
    kind = _check_dtype(dtype)
    source = _check_weight(weight)
    zero = _zero_point(kind, zero_point)
    if group_size != -1 and (group_size <= 0 or group_size % 16):
        raise QuantizeError(f"group_size must be a positive multiple of 16 or -1, got {group_size}")
    given = describe(weight)
    assert given is not None
    weight_dtype = given.dtype
    scale_type = as_dtype(scale_dtype or ("f32" if weight_dtype.name == "f64" else weight_dtype))
    if scale_type.name not in FLOATS[:3]:
        raise QuantizeError(f"scale_dtype must be f16, bf16 or f32, got {scale_type}")
    n, k = source.shape
    size = group_size if group_size > 0 else max(k, 1)
    groups = 1 if group_size < 0 else -(-k // size)
    blocks = np.zeros((n, groups * size))
    blocks[:, :k] = source
    blocks = blocks.reshape(n, groups, size)
    scales, zeros = _scales(blocks, kind, zero, scale_type)
    codes = _encode(blocks, scales, zeros, kind, zero).reshape(n, groups * size)[:, :k]
    on_gpu = given.device != "cpu"
    pack = native_pack(kind, "cuda" if on_gpu else "cpu")
    return QuantizedWeight(
        WeightFormat(pack, group_size, zero),
        (n, k),
        like(pack.pack(codes), weight),
        like(np.ascontiguousarray(scale_type.encode(scales.T).view(scale_type.numpy_dtype)), weight),
        None if zeros is None else like(np.ascontiguousarray(zeros.T).astype("i1" if kind.is_signed else "u1"), weight),
        weight_dtype,
    )


def _check_dtype(name: str | DataType) -> DataType:
    kind = as_dtype(name)
    usable = kind.is_integer or kind.is_float or kind.is_codebook
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


def _scales(
    blocks: np.ndarray, kind: DataType, zero: ZeroPoint, scale_type: DataType
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return scales [N, groups], rounded to their type, and integer zero points or None."""
    top = np.abs(blocks).max(axis=2, initial=0.0)
    if zero == "tensor":
        low, high = blocks.min(axis=2, initial=0.0), blocks.max(axis=2, initial=0.0)
        ideal = (high - low) / max(2**kind.nbits - 1, 1)
    elif kind.name == "t2":
        # The mean magnitude, the least-squares choice of BitNet b1.58 (arXiv 2402.17764), keeps most weights off zero.
        ideal = np.abs(blocks).mean(axis=2) if blocks.shape[2] else top
    elif kind.is_integer:
        # The range of codes is one longer below zero: its middle half-width loses least at both ends.
        ideal = top / max((2**kind.nbits - 1) / 2, 1)
    else:
        ideal = top / max(abs(kind.max_value), abs(kind.min_value))
    scales = scale_type.decode(scale_type.encode(ideal))
    if not np.isfinite(scales).all():
        raise QuantizeError(f"a scale of {ideal.max():.3g} does not fit {scale_type}", hint='pass scale_dtype="f32"')
    scales = np.where(scales == 0, _least(scale_type) if top.any() else 1.0, scales)
    scales = np.where(top == 0, 1.0, scales)
    if zero != "tensor":
        return scales, None
    least = int(kind.min_value)
    zeros = np.clip(np.rint(-blocks.min(axis=2, initial=0.0) / scales) + least, least, int(kind.max_value))
    return scales, zeros


def _least(scale_type: DataType) -> float:
    """Return the smallest positive value of a float type."""
    return float(scale_type.decode(np.array([1], scale_type.code_dtype))[0])


def _encode(
    blocks: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, kind: DataType, zero: ZeroPoint
) -> np.ndarray:
    values = blocks / scales[:, :, None]
    if zeros is not None:
        values = np.rint(values) + zeros[:, :, None]
    if zero == "half":
        values = np.rint(values) + 2 ** (kind.nbits - 1)
    return kind.encode(values)
