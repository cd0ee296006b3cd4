"""How far a right quantized matmul may be from the exact one: an error bound for every element, derived, not tuned.

With u the unit roundoff of f32 (2^-24), v a weight without its scale and g its group, a kernel computes

    y[m, n] = round( bias[n] + sum_g scale[g, n] * sum_{k in g} v[n, k] * x[m, k] )

where everything but the last rounding is done in f32, in any order. To first order each product passes through at most
K + G + 4 roundings: its own, the additions within its group and across the G groups, the scale and the bias. So
(Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., section 3.1) what is rounded last is off by at most

    E = gamma(K + G + 4) * (|bias| + sum |x| |w|),        gamma(n) = n u / (1 - n u)

Values v are exact in the type that is multiplied, but for codebooks, whose entries are rounded to it: this adds
u(type) * sum |x| |v| scale. In fixed point activations are rounded to integers of which the largest of a group of at
most 128 is 32767: each is off by half of that group's unit, max |x| / 32767, and a term passes through 6 more roundings,
of the unit, of its reciprocal and of their products. Rounding the result moves it by at most half a unit in the last place at |y| + E.

Tensor cores are given integers above powers of two (`tilus.casts.forms`), so what is rounded there is larger than |x| |w|.
Neighbours' offsets all but cancel, and E leaves room for what remains but where K is a few dozen and a result lies
between two numbers: `tests/kernels/test_accuracy.py` says how much it is. Sums that are exact are so with offsets, too.

An activation f turns an error E of its argument z into at most 1.13 E, for no f' here is greater (gelu's is 1.129), and
adds its own: exp, erf and a reciprocal root, which counts twice, are off by 2 units in the last place each, other steps
by half a unit, and f moves with the argument of exp or erf by at most 0.3 |z| times that one's relative error, of no
more than 7 roundings: less than 20 u |z| in all.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from tilus.dtypes import DataType, dtype
from tilus.runtime.arguments import DTYPES
from tilus.runtime.weights.weight import host

UNIT = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 2.0**-24}
# Tensor cores align the products of one instruction to the largest and cut what lies below: measured errors stay
# within 2 bits of f32 (Fasi et al., "Numerical behavior of NVIDIA tensor cores", PeerJ CS 7:e330).
TENSOR_CORE = 2.0**-22

ACTIVATED = {
    "none": lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "gelu": lambda z: z / 2 * np.vectorize(lambda one: math.erfc(-one / math.sqrt(2)))(z),
    "gelu_tanh": lambda z: z / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "silu": lambda z: z * np.exp(-np.logaddexp(0, -z)),
    "silu_mul": None,  # a product: see `activated`
}


def exact(x, weight, bias=None, activation="none"):
    """Return the result in float64, which is exact here up to 2^-53 relative, from codes, scales and zero points."""
    y = _float64(x) @ weights(weight).T
    return activated(activation, y if bias is None else y + _float64(bias))[0]


def activated(activation, z, error=0.0):
    """Return an activation of z, and the error that it may have where z is off by `error`."""
    if activation == "silu_mul":
        (gate, up), (gate_error, up_error) = (np.split(a, 2, -1) for a in (z, np.broadcast_to(error, z.shape)))
        gate, gate_error = activated("silu", gate, gate_error)
        value, moved = gate * up, np.abs(gate) * up_error + gate_error * (np.abs(up) + up_error)
        return value, moved + UNIT["f32"] * (np.abs(value) + moved)
    value = ACTIVATED[activation](z)
    return value, error if activation == "none" else 1.13 * error + 20 * UNIT["f32"] * (np.abs(z) + error)


def weights(weight):
    """Return (decode(code) - zero point) * scale [N, K] in float64, straight from the definition."""
    return unscaled(weight) * _float64(weight.scales).T[:, _group_of_each(weight)]


def unscaled(weight):
    """Return decode(code) - zero point [N, K] in float64."""
    values = weight.dtype.decode(weight.codes()).astype(np.float64)
    if weight.format.zero_point == "half":
        return values - 2 ** (weight.dtype.nbits - 1)
    if weight.format.zero_point == "tensor":
        return values - _float64(weight.zero_points).T[:, _group_of_each(weight)]
    return values


def _group_of_each(weight):
    k, size = weight.shape[1], weight.format.group_size
    return np.arange(k) // (size if size > 0 else max(k, 1))


def bound(x, weight, bias=None, activation="none", *, compute: DataType | None = None, unit=UNIT["f32"], fixed=False):
    """Return the largest error that each element of a right result may have, of the shape of the result.

    Parameters
    ----------
    x, weight, bias, activation
        As for `tilus.matmul`; x of f16, bf16 or f32.
    compute : DataType, optional
        What weights and activations are multiplied in; f32 if not given.
    unit : float
        Roundoff of the accumulator: that of f32, or `TENSOR_CORE`.
    fixed : bool
        Whether activations are rounded to 16 bits.
    """
    k = weight.shape[1]
    kind = array_dtype(x)
    moved = np.abs(_float64(x)) @ np.abs(weights(weight)).T
    total = moved if bias is None else moved + np.abs(_float64(bias))
    count = k + weight.format.groups(k) + 4 + 6 * fixed
    error = count * unit / (1 - count * unit) * total
    if fixed:
        error = error + (_half_units(x) @ np.abs(weights(weight)).T) * (1 + count * unit)
    if weight.dtype.is_codebook:
        error = error + UNIT[(compute or dtype("f32")).name] * moved * (1 + 2**-7)
    error = error + count * 2.0**-149  # below the smallest subnormal of f32 every rounding may lose that much
    value, error = activated(activation, exact(x, weight, bias), error)
    return error + half_ulp(kind, np.abs(value) + error)


def _half_units(x):
    """Return what activations [M, K] are off by in fixed point; groups of fewer columns have smaller units."""
    units = np.abs(_float64(x))
    for k in range(0, units.shape[1], 128):
        units[:, k : k + 128] = units[:, k : k + 128].max(1, keepdims=True)
    return np.maximum(units, 2.0**-100) / 32767 / 2


def half_ulp(kind: DataType, magnitude):
    """Return half the distance between the neighbours of a type around `magnitude`, among subnormals too."""
    digits, least = {"f16": (10, -14), "bf16": (7, -126), "f32": (23, -126)}[kind.name]
    exponent = np.maximum(np.frexp(np.asarray(magnitude, np.float64))[1] - 1, least)
    return np.ldexp(0.5, exponent - digits)


def mismatch(y, x, weight, bias=None, activation="none", **options):
    """Return None if `y` is right within the bound, else a text that says where it is furthest off."""
    wanted, allowed = exact(x, weight, bias, activation), bound(x, weight, bias, activation, **options)
    if tuple(y.shape) != wanted.shape or array_dtype(y) != array_dtype(x):
        return f"expected {wanted.shape} of {array_dtype(x)}, got {tuple(y.shape)} of {array_dtype(y)}"
    found = _float64(y)
    with np.errstate(invalid="ignore"):
        excess = np.where(np.isfinite(found), np.abs(found - wanted) / allowed, np.inf)
    if not excess.size or excess.max() <= 1:
        return None
    worst = np.unravel_index(excess.argmax(), excess.shape)
    return (
        f"{int((excess > 1).sum())} of {excess.size} elements are wrong; at {tuple(int(i) for i in worst)} expected "
        f"{wanted[worst]:.9g} within {allowed[worst]:.3g}, got {found[worst]:.9g}"
    )


def check(y, x, weight, bias=None, activation="none", **options):
    """Assert that `y` is x times the weight plus bias, within the bound."""
    problem = mismatch(y, x, weight, bias, activation, **options)
    assert problem is None, problem


def array_dtype(array) -> DataType:
    return DTYPES[str(array.dtype).removeprefix("torch.")]


def _float64(array):
    return host(array).astype(np.float64)


def numpy_type(kind: DataType):
    return {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32}[kind.name]
