"""A cast and the addition of a constant in one function: the same results, and only where nothing else is asked for."""

from __future__ import annotations

import pytest

from tests.codegen.cuda.build import Bench, codes_of
from tests.codegen.cuda.compare import compare, lowered
from tilus.dtypes import dtype
from tilus.ir.expr import Const
from tilus.ir.instructions import Cast, Elementwise
from tilus.layouts import local, spatial

LAYOUT = spatial(4, 8) * local(2, 8)


@pytest.mark.parametrize("to", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["u1", "u2", "u3", "u4", "u5", "u6", "u7", "u8", "i1", "i3", "i4", "i6", "i8", "t2"])
def test_zero_points(name: str, to: str) -> None:
    """The half of the range, one, and a zero point outside of the range; minus and plus, on either side."""
    kind, target = dtype(name), dtype(to)
    b = Bench()
    x = b.input(kind, codes_of(kind, (8, 64)), LAYOUT)
    numbers = [float(2 ** (kind.nbits - 1)), 1.0, 97.0, 2.5]
    for number in numbers:
        b.output(b.inst(Elementwise("sub", (b.inst(Cast(x, target), "w"), Const(number, target))), "r"))
        b.output(b.inst(Elementwise("add", (Const(-number, target), b.inst(Cast(x, target), "w"))), "r"))
    b.output(b.inst(Elementwise("sub", (Const(3.0, target), b.inst(Cast(x, target), "w"))), "r"))
    program = b.done()
    # Whole numbers of so many bits that the target holds all results, and the constants on the way, exactly.
    limit = 1024 if to == "f16" else 128
    low, high = min(kind.decode(range(kind.num_codes))), max(kind.decode(range(kind.num_codes)))
    fits = [x.is_integer() and -limit <= low - x and high + 1 - x <= limit for x in numbers]
    assert lowered(program)[1].text.count("done by the addition") == 2 * sum(fits)
    compare(program, b.args)


def test_casts_that_are_used_twice_or_whose_operand_changes() -> None:
    kind, target = dtype("u4"), dtype("f16")
    b = Bench()
    x = b.input(kind, codes_of(kind, (8, 64)), LAYOUT)
    twice = b.inst(Cast(x, target), "twice")
    b.output(b.inst(Elementwise("sub", (twice, Const(8.0, target))), "r"))
    b.output(twice)
    early = b.inst(Cast(x, target), "early")
    b.inst(Elementwise("xor", (x, Const(5, kind))), out=x)
    b.output(b.inst(Elementwise("sub", (early, Const(8.0, target))), "r"))
    both = b.inst(Cast(x, target), "both")
    b.output(b.inst(Elementwise("add", (both, both)), "r"))
    program = b.done()
    assert "done by the addition" not in lowered(program)[1].text
    compare(program, b.args)
