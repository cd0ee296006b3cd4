"""Codebooks by tables in shared memory: every code, pairs and single ones, in tiles large enough."""

from __future__ import annotations

import pytest

from tests.codegen.cuda.build import Bench, codes_of
from tests.codegen.cuda.compare import compare, lowered
from tilus.dtypes import Codebook, codebook, dtype
from tilus.ir.instructions import Cast
from tilus.layouts import local, spatial

BOOKS = [
    dtype("nf4"),
    codebook("three", [0.1, -3.0, 7.5, 0.0, 1e-3, 2.0, -0.25, 100.0]),
    codebook("five", [0.37 * i * (-1) ** i for i in range(32)]),
    codebook("eight", [i * i / 100 - 40 for i in range(256)]),
]


@pytest.mark.parametrize("to", ["f16", "bf16"])
@pytest.mark.parametrize("kind", BOOKS, ids=str)
def test_every_code(kind: Codebook, to: str) -> None:
    b = Bench()
    x = b.input(kind, codes_of(kind, (8, 128)), spatial(4, 8) * local(2, 16))
    b.output(b.inst(Cast(x, dtype(to)), "w"))
    program = b.done()
    source = lowered(program)[1]
    assert "banks_" in source.text
    assert source.dynamic_shared_bytes >= 128 << min(8, kind.nbits * (2 if kind.nbits <= 4 else 1))
    compare(program, b.args)


def test_small_casts_and_types_that_count_have_none() -> None:
    b = Bench()
    few = b.input(BOOKS[0], codes_of(BOOKS[0], (8, 32)), spatial(4, 8) * local(2, 4))
    b.output(b.inst(Cast(few, dtype("f16")), "w"))
    counts = b.input(dtype("t2"), codes_of(dtype("t2"), (8, 128)), spatial(4, 8) * local(2, 16))
    b.output(b.inst(Cast(counts, dtype("f16")), "v"))
    program = b.done()
    assert "banks_" not in lowered(program)[1].text
    compare(program, b.args)
