"""Products with floats of more range than f16, whose numbers are small until activations make up for it.

Every code by activations of every magnitude, one at a time and so without a rounding before the last. A scale for each
row, which has one code only, keeps results in the range of their type.
"""

from __future__ import annotations

import numpy as np
import pytest

import tilus
from tests.tolerance import numpy_type
from tilus.dtypes import dtype
from tilus.kernels.configure_gpu import compute_dtype
from tilus.runtime.weights import native_pack
from tilus.runtime.weights.weight import QuantizedWeight, WeightFormat

NAMES = ("f6e5m0", "f7e5m1", "f7e6m0", "f8e6m1", "f8e7m0")
ACTIVATIONS = {  # the greatest, the least, all bits of a significand, and what lies between
    "f16": [65504.0, -65504.0, 2.0**-24, -(2.0**-14), 2047.0, 1 + 2.0**-10, -0.1, 0.0],
    "bf16": [2.0**60, -(2.0**-60), 255.0, -0.1, 1 + 2.0**-7, 3.0, 2.0**-24, 0.0],
    "f32": [2.0**60, -(2.0**-60), 2.0**24 - 1, -0.1, 1 + 2.0**-23, 3.0, 2.0**-24, 0.0],
}
K = 128


def every_code(name: str, activation: str, group: int) -> QuantizedWeight:
    """Return a weight whose row n has code n; its scales make values 1/2 to 1, and of subnormal numbers less."""
    kind = dtype(name)
    codes = np.repeat(np.arange(kind.num_codes, dtype=np.uint8)[:, None], K, 1)
    size = np.abs(kind.decode(codes[:, 0]))
    scales = 2.0 ** (-1 - np.floor(np.log2(np.where(size == 0, 1.0, size))))
    form = WeightFormat(native_pack(kind, "cuda", dtype(activation)), group, "none")
    words = form.pack.pack(codes)
    tables = np.repeat(scales[None].astype(np.float32), form.groups(K), 0)
    return QuantizedWeight(form, codes.shape, words, tables, None, dtype(activation))


# By f16's activations all of them are multiplied as small numbers; by the others two show what three or one part do.
CASES = [
    pytest.param(
        activation, name, marks=() if activation == "f16" or name in ("f7e5m1", "f8e7m0") else pytest.mark.long
    )
    for activation in ACTIVATIONS
    for name in NAMES
]


@pytest.mark.parametrize(("activation", "name"), CASES)
def test_every_code_times_activations_of_every_magnitude(activation: str, name: str) -> None:
    kind, values = dtype(activation), ACTIVATIONS[activation]
    assert compute_dtype(dtype(name), kind) == dtype("bf16")
    x = np.zeros((len(values), K))
    x[np.arange(len(values)), 17 * np.arange(len(values))] = values
    x = kind.encode(x).view(numpy_type(kind))
    weight = every_code(name, activation, 64 if activation == "f16" else -1)
    with tilus.knobs.scope(target="simt:sm_90a"):
        y = tilus.matmul(x, weight)
    wanted = x.astype(float) @ weight.dequantize("f64").T
    np.testing.assert_array_equal(y, kind.encode(wanted).view(y.dtype))
    assert np.isfinite(y).all()
    assert y.any()


def test_a_batch_of_more_than_a_tile_has_the_same_results() -> None:
    rng = np.random.default_rng(3)
    weight = every_code("f7e6m0", "f16", 64)
    x = rng.integers(-8, 9, (19, K)).astype(np.float16)
    with tilus.knobs.scope(target="simt:sm_80"):
        y = tilus.matmul(x, weight)
    np.testing.assert_array_equal(y, (x.astype(float) @ weight.dequantize("f64").T).astype(np.float16))
