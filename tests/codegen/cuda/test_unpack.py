"""Codes in bit layouts: views, casts and numbers in generated CUDA, against the reference machine."""

from __future__ import annotations

import numpy as np
import pytest

from tests.codegen.cuda.build import Bench
from tests.codegen.cuda.compare import compare, lowered
from tilus.casts import best_unpacking, parts, unpack
from tilus.dtypes import dtype, u32
from tilus.ir.expr import Const
from tilus.ir.instructions import Cast, Elementwise, Unpack, View
from tilus.layouts import local, spatial

UNITS = 2
TYPES = [
    "u1",
    "u2",
    "u3",
    "i4",
    "u5",
    "u6",
    "i7",
    "u8",
    "f2e1m0",
    "f4e2m1",
    "f6e3m2",
    "f7e5m1",
    "f8e4m3",
    "f8e5m2",
    "t2",
]


def words_of(bench: Bench, bits, kind):
    """Random codes of a type, packed, in the registers of a warp; NaN has many codes, and machines choose their own."""
    finite = np.flatnonzero(np.isfinite(kind.decode(np.arange(kind.num_codes))))
    codes = np.random.default_rng(4).choice(finite, (32, bits.num_elements)).astype(np.uint8)
    return bench.input(u32, bits.pack(codes), spatial(32, 1) * local(1, bits.num_words))


@pytest.mark.parametrize("to", ["f16", "bf16"])
@pytest.mark.parametrize("name", TYPES)
def test_numbers_values_and_codes(name: str, to: str) -> None:
    kind, target = dtype(name), dtype(to)
    found = best_unpacking(kind, target)
    best = found or best_unpacking(kind, dtype("bf16")) or best_unpacking(kind, dtype("f16"))
    assert best is not None
    bits = best.bits.repeated(UNITS)
    layout = spatial(32, 1) * local(1, bits.num_elements)
    b = Bench()
    x = words_of(b, bits, kind)
    forms = (
        [(found.form, found.positions)]
        if found
        else [(f, unpack(best.bits, f).positions) for f in parts(kind, target) or ()]
    )
    for form, positions in forms:
        b.output(b.inst(Unpack(x, kind, target, layout, bits, form.name, positions), "n"))
    codes = b.inst(View(x, kind, layout, bits), "codes")
    b.output(b.inst(Cast(codes, target), "values"))
    b.output(codes)
    program = b.done()
    text = lowered(program)[1].text
    assert "stream_" in text, "the codes themselves are asked for"
    compare(program, b.args)


def test_a_cast_that_something_is_added_to() -> None:
    kind, target = dtype("u4"), dtype("f16")
    bits = best_unpacking(kind, target).bits.repeated(UNITS)
    b = Bench()
    x = words_of(b, bits, kind)
    codes = b.inst(View(x, kind, spatial(32, 1) * local(1, bits.num_elements), bits), "codes")
    b.output(b.inst(Elementwise("sub", (b.inst(Cast(codes, target), "w"), Const(8.0, target))), "r"))
    program = b.done()
    text = lowered(program)[1].text
    assert "unpack_u4_f16_value" in text
    assert "stream_" not in text
    compare(program, b.args)
