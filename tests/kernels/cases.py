"""The weights that tests multiply: every type of 1 to 8 bits with the zero points that make sense for it."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np

from tests.tolerance import numpy_type
from tilus.dtypes import dtype
from tilus.runtime.weights import quantize

UNSIGNED = [f"u{b}" for b in range(1, 9)]
SIGNED = [f"i{b}" for b in range(1, 9)]
FLOATS = [f"f{b}e{x}m{b - 1 - x}" for b in range(2, 9) for x in range(1, b)]
CODEBOOKS = ["nf4", "t2"]
TYPES = [*UNSIGNED, *SIGNED, *FLOATS, *CODEBOOKS]

# (type, zero_point): integers with zero points and without, all others without.
WEIGHTS = [*product([*UNSIGNED, *SIGNED], (False, True)), *((name, False) for name in [*FLOATS, *CODEBOOKS])]

ACTIVATIONS = ("f16", "bf16", "f32")


@cache
def weight(name, zero_point, group, n, k, scale="f16"):
    """Return a quantized weight [n, k] of normal numbers with a mean, so that zero points are not all the same."""
    rng = np.random.default_rng([n, k])
    values = rng.normal(size=(n, k)) + rng.normal(size=(n, 1))
    options = {"zero_point": zero_point} if dtype(name).is_integer else {}
    return quantize(values.astype(np.float32), name, group, scale_dtype=scale, **options)


def activations(kind, m, k):
    rng = np.random.default_rng([m, k, 7])
    return rng.normal(size=(m, k)).astype(numpy_type(dtype(kind)))


def bias_of(kind, n, wanted=True):
    return np.random.default_rng([n, 8]).normal(size=n).astype(numpy_type(dtype(kind))) if wanted else None
