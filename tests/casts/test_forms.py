"""Forms by their definition: the number that a lane holds, times the scale, plus the bias, is the value of the code."""

from itertools import product

import numpy as np
import pytest

from tilus.casts import forms, linear, parts
from tilus.casts.forms import rounded_form
from tilus.casts.table import sources
from tilus.dtypes import codebook, dtype

TARGETS = ("f16", "bf16", "f8e4m3", "i8")
PAIRS = [(s, dtype(t)) for s in sources() for t in TARGETS if s.name != t]


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=lambda d: d.name)
def test_every_code_at_every_position_is_its_value(source, target):
    values = source.decode(np.arange(source.num_codes)).astype(float)
    finite = np.isfinite(values)
    for form in forms(source, target):
        turns = (False, True) if form.name != "exponent" and target.is_float else (False,)
        for p, turned in product(form.positions, turns):
            patterns = form.patterns(p, turned)
            assert patterns.max() < 1 << target.nbits
            numbers = target.decode(patterns).astype(float)
            assert np.isfinite(numbers[finite]).all()
            spelled = numbers * form.scale(p) + form.bias(p, turned)
            assert (spelled[finite] == values[finite]).all()


@pytest.mark.parametrize("name", ["u8", "i8"])
def test_parts_add_up(name):
    source, target = dtype(name), dtype("bf16")
    values = source.decode(np.arange(256)).astype(float)
    low, high = parts(source, target)
    for p, q, odd in product(low.positions, high.positions, (False, True)):
        numbers = [target.decode(form.patterns(at, odd)).astype(float) for form, at in ((low, p), (high, q))]
        spelled = [x * f.scale(at) + f.bias(at, odd) for x, f, at in zip(numbers, (low, high), (p, q), strict=True)]
        assert (sum(spelled) == values).all()
    assert parts(dtype("u7"), target) is None
    assert parts(dtype("f8e4m3"), target) is None


def test_which_types_have_a_form():
    without = {s.name for s in sources() if not forms(s, dtype("f16"))}
    assert without == {"f6e5m0", "f7e5m1", "f7e6m0", "f8e6m1", "f8e7m0"}  # f16 has not their range
    without = {s.name for s in sources() if not forms(s, dtype("bf16"))}
    assert without == {"u8", "i8"}  # bf16 has 7 bits of mantissa
    assert not forms(dtype("nf4"), dtype("f16"))
    assert not forms(dtype("u8"), dtype("f8e4m3"))


def test_the_form_whose_infinity_is_the_greatest_value():
    """Of no other type: the codes of f7e5m1 with that exponent are two numbers, of which f16 would make one a NaN."""
    f16 = dtype("f16")
    assert [s.name for s in sources() if rounded_form(s, f16)] == ["f6e5m0"]
    source = dtype("f6e5m0")
    patterns = rounded_form(source, f16).patterns(10)
    np.testing.assert_array_equal(patterns, f16.encode(source.decode(np.arange(64))))
    assert (f16.decode(patterns) == np.inf).sum() == 1


def test_the_kind_of_types_that_count():
    assert linear(dtype("i4")).offset == -8
    assert linear(dtype("t2")).offset == -1
    assert linear(dtype("nf4")) is None
    assert linear(codebook("steps", [3.0, 4.0, 5.0, 6.0])).offset == 3
    assert linear(codebook("halves", [0.0, 0.5, 1.0, 1.5])) is None
