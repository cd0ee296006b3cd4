"""Weights in a block-scaled format: what `tilus.dtypes.BlockScaled` makes, packed as every other weight."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilus.dtypes import BlockScaled, DataType, block_format
from tilus.dtypes.registry import BLOCK_NAME
from tilus.errors import DTypeError, QuantizeError
from tilus.runtime.targets import code_device
from tilus.runtime.weights.packing import native_pack
from tilus.runtime.weights.weight import QuantizedWeight, WeightFormat, ZeroPoint, like

_SCALES = ("f16", "bf16", "f32")


def format_named(name: Any) -> BlockScaled | None:
    """Return the block-scaled format that a name spells, None for anything else."""
    if isinstance(name, BlockScaled):
        return name
    if not isinstance(name, str):
        return None
    try:
        return block_format(name)
    except DTypeError:
        if ":" in name or BLOCK_NAME.match(name):
            raise
        return None


def quantize_blocks(
    values: np.ndarray, form: BlockScaled, weight: Any, weight_dtype: DataType, device: str
) -> QuantizedWeight:
    """Quantize a weight.

    Parameters
    ----------
    values : float64 array [N, K]
    form : BlockScaled
    weight : array
        The weight as it was given: what comes out is of its library and on its device.
    weight_dtype : DataType
    device : str
    """
    zero = _zero_point(form)
    quantized = form.quantize(values)
    pack = native_pack(form.element, code_device(device), weight_dtype)
    narrow = form.scale.nbits == 8
    scale_type = np.dtype(np.uint8) if narrow else form.scale.numpy_dtype
    assert scale_type is not None, "checked by _zero_point"
    return QuantizedWeight(
        WeightFormat(pack, form.block, zero, form.scale if narrow else None, float(quantized.tensor_scale)),
        (values.shape[0], values.shape[1]),
        like(pack.pack(quantized.codes.astype(form.element.code_dtype)), weight),
        like(np.ascontiguousarray(quantized.scales.T).view(scale_type), weight),
        None if zero != "tensor" else like(_zeros(form, quantized.zeros), weight),
        weight_dtype,
    )


def _zero_point(form: BlockScaled) -> ZeroPoint:
    """Return what kernels subtract, if they can; they know whole zero points and scales of 8 bits or of floats."""
    if form.scale.nbits != 8 and form.scale.name not in _SCALES:
        raise QuantizeError(f"{form}: scales are of 8 bits, f16, bf16 or f32, not {form.scale}")
    if form.block != -1 and form.block % 16:
        raise QuantizeError(f"{form}: a block is a multiple of 16 or -1, got {form.block}")
    if isinstance(form.zero, DataType):
        if not form.zero.is_integer or form.zero.nbits > 8:
            raise QuantizeError(f"{form}: zero points are integers of up to 8 bits, not {form.zero}")
        return "tensor"
    if form.zero == 0:
        return "none"
    if not form.element.is_signed and form.zero == 1 << (form.element.nbits - 1):
        return "half"
    raise QuantizeError(
        f"{form}: the zero point of every block is 0 or the middle of the range, got {form.zero}",
        hint="give each block its own, with a type",
    )


def _zeros(form: BlockScaled, codes: Any) -> np.ndarray:
    assert isinstance(form.zero, DataType)
    values = form.zero.decode(codes).T.astype("i1" if form.element.is_signed else "u1")
    return np.ascontiguousarray(values)
