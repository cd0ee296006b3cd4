"""What is derived is what the machine runs: instructions of casts counted in compiled code."""

import pytest

from tilus.casts import best_unpacking
from tilus.dtypes import dtype
from tilus.kernels.cast_cost import cast_cost

NAMES = ["u1", "i2", "u3", "u4", "i5", "u6", "u7", "i8", "f4e2m1", "f6e3m2", "f8e4m3", "t2"]


@pytest.mark.parametrize(
    ("name", "arch"), [*((name, "sm_80") for name in NAMES), ("u3", "sm_90a"), ("f8e4m3", "sm_90a")]
)
def test_no_more_than_the_recipe(name, arch):
    """The compiler may do a left shift on the other pipe, and adds an instruction or two of its own per thread."""
    best = best_unpacking(dtype(name), dtype("f16"))
    cost = cast_cost(dtype(name), dtype("f16"), arch)
    assert cost.issue <= best.issue + 0.04
    assert cost.alu <= best.alu + 0.13
    assert cost.other == 0


@pytest.mark.parametrize(
    ("name", "to", "alu", "issue"),
    [("nf4", "bf16", 0.9, 1.6), ("u8", "bf16", 1.8, 2.8), ("f7e5m1", "f16", 2.2, 3.7), ("f8e5m2", "bf16", 1.7, 3.1)],
)
def test_values_that_no_form_gives(name, to, alu, issue):
    """A table in memory, a sum of two halves, and twice by way of the other half: the dearest casts there are."""
    cost = cast_cost(dtype(name), dtype(to), "sm_80", numbers=False)
    assert cost.alu <= alu
    assert cost.issue <= issue
