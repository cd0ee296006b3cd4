"""`tilus.matmul`: activations times a quantized weight, on the device where they live."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from tilus.dtypes import DataType
from tilus.errors import LaunchError
from tilus.kernels.configure import Device, constants, rows_per_block
from tilus.kernels.programs import quantized_matmul
from tilus.runtime.arguments import describe, is_torch
from tilus.runtime.kernel import BoundKernel
from tilus.runtime.weights.weight import QuantizedWeight, WeightFormat, as_dtype

ACTIVATIONS = ("f16", "bf16", "f32")


def matmul(x: Any, weight: QuantizedWeight, bias: Any | None = None) -> Any:
    """Return `x @ weight.dequantize().T + bias`, summed in f32, in the type of `x`.

    Parameters
    ----------
    x : array [..., K] of f16, bf16 or f32
        NumPy or torch, as the weight is; need not be contiguous.
    weight : QuantizedWeight
        [N, K]
    bias : array [N] of the type of `x`, optional

    Raises
    ------
    LaunchError
        Shapes, types or devices that do not fit.
    """
    n, k = weight.shape
    buffer = describe(x)
    if buffer is None or buffer.dtype.name not in ACTIVATIONS:
        came = f"dtype {x.dtype}" if hasattr(x, "dtype") else type(x).__name__
        raise LaunchError(f"x must be an array of {', '.join(ACTIVATIONS)}, got {came}", hint="convert it first")
    if len(x.shape) < 1 or x.shape[-1] != k:
        raise LaunchError(f"x has shape {tuple(x.shape)}, expected [..., {k}] for a weight of [{n}, {k}]")
    _check_company(x, weight, bias, buffer.dtype)
    weight = weight.packed_for(_device(x))
    return run(x, weight.words, weight.scales, weight.zero_points, bias, weight.format, n)


def _check_company(x: Any, weight: QuantizedWeight, bias: Any | None, kind: DataType) -> None:
    """Check that weight and bias are of the same library and device as `x`."""
    place = describe(x)
    for name, array in (("weight", weight.scales), ("bias", bias)):
        if array is None:
            continue
        other = describe(array)
        if is_torch(array) != is_torch(x) or other is None or place is None or other.device != place.device:
            raise LaunchError(
                f"x is {_kind(x)}, but the {name} is {_kind(array)}",
                hint="quantize and call with arrays of one library and device",
            )
    if bias is not None:
        found = describe(bias)
        if tuple(bias.shape) != (weight.shape[0],) or found is None or found.dtype != kind:
            raise LaunchError(
                f"bias must be an array [{weight.shape[0]}] of {kind}, got {tuple(bias.shape)} of {bias.dtype}"
            )


def _kind(x: Any) -> str:
    buffer = describe(x)
    return f"a {'torch tensor' if is_torch(x) else 'NumPy array'} on {buffer.device if buffer else 'an unknown device'}"


def run(x: Any, words: Any, scales: Any, zero_points: Any | None, bias: Any | None, form: WeightFormat, n: int) -> Any:
    """Run the kernel on checked arrays; what `torch.ops.tilus.quantized_matmul` calls."""
    k = x.shape[-1]
    flat = x.reshape(-1, k) if k else x.reshape(int(np.prod(x.shape[:-1])), 0)
    m = flat.shape[0]
    y = x.new_empty((m, n)) if is_torch(x) else np.empty((m, n), x.dtype)
    if m and n and k:
        launch = _kernel(form, str(x.dtype), str(scales.dtype), rows_per_block(m, _device(x)), bias is not None)
        zeros = zero_points if zero_points is not None else _no_zero_points(form, x)
        launch(flat, words, scales, zeros, bias if bias is not None else y, y, m, n, k, form.groups(k))
    elif m and n:
        y[...] = 0 if bias is None else bias
    return y.reshape(*x.shape[:-1], n)


def _device(x: Any) -> Device:
    buffer = describe(x)
    return "cpu" if buffer is None or buffer.device == "cpu" else "cuda"


@cache
def _kernel(form: WeightFormat, activation: str, scale: str, bm: int, bias: bool) -> BoundKernel:
    """Return the kernel of one configuration."""
    return quantized_matmul.bind(**constants(form, as_dtype(activation), as_dtype(scale), bm, bias))


def _no_zero_points(form: WeightFormat, x: Any) -> Any:
    """Return an array of the right type that a kernel without zero points is given and never reads."""
    name = "int8" if form.dtype.is_signed else "uint8"
    if not is_torch(x):
        return np.empty(1, name)
    import torch  # x is a tensor: torch is loaded already

    return torch.empty(1, dtype=getattr(torch, name), device=x.device)
