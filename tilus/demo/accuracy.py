"""How far a quantized layer is from two references: its own definition (the kernel's error) and the original layer.

The kernel sums K products, scaled by group, in f32 and rounds the result to f32. Each product passes through at most
K + G + 4 roundings: its own, the additions within its group and across the G groups, the scale and the bias. So the
result is off by at most gamma(K + G + 4) * (|bias| + sum |x| |w|), gamma(n) = n u / (1 - n u), u = 2^-24, whatever the
order of the sum (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., section 3.1), and half a unit in
the last place. A codebook's entries are rounded to f32 before: one rounding more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tilus.demo.model import LayerData
from tilus.kernels.linear import QuantLinear

_UNIT = 2.0**-24


@dataclass(frozen=True, slots=True)
class LayerErrors:
    """Errors of one layer, each a ratio of Frobenius norms but the last.

    Attributes
    ----------
    weight : float
        Dequantized weight to the original weight.
    output : float
        Result to that of the original layer on the same activations.
    kernel : float
        Result to the float64 product with the dequantized weight.
    of_bound : float
        Greatest error of an element of the result as a part of what rounding allows; more than 1 is a wrong kernel.
    """

    weight: float
    output: float
    kernel: float
    of_bound: float


def layer_errors(layer: QuantLinear, original: torch.nn.Linear, data: LayerData) -> LayerErrors:
    """Run a quantized layer on the activations that the original one saw, and compare."""
    with torch.inference_mode():
        found = _float64(layer(data.x))
    x, weight = _float64(data.x), layer.weight.dequantize("f64").numpy()
    bias = np.zeros(weight.shape[0]) if original.bias is None else _float64(original.bias)
    exact = x @ weight.T + bias
    size = np.abs(x) @ np.abs(weight).T + np.abs(bias)
    count = weight.shape[1] + layer.weight.format.groups(weight.shape[1]) + 5
    bound = count * _UNIT / (1 - count * _UNIT) * size
    bound = bound + _UNIT * (np.abs(exact) + bound)
    with np.errstate(invalid="ignore"):
        off = np.where(np.isfinite(found), np.abs(found - exact) / bound, np.inf)
    return LayerErrors(
        _relative(weight, _float64(original.weight)),
        _relative(found, _float64(data.y)),
        _relative(found, exact),
        float(off.max()),
    )


def cosines(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """Return the cosine of each row of `a` to the same row of `b`."""
    result: np.ndarray = torch.nn.functional.cosine_similarity(a, b, dim=1).numpy()
    return result


def _float64(tensor: torch.Tensor) -> np.ndarray:
    result: np.ndarray = tensor.detach().double().numpy()
    return result


def _relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
