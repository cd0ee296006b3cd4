"""Laws on random programs: what does not change the meaning does not change the result."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given

from tests.ir.strategies import BLOCKS, FIRST_OUTPUT, arguments, programs
from tilus import vm
from tilus.ir.expr import Tensor
from tilus.ir.node import rewrite, substitute, walk
from tilus.ir.parser import parse
from tilus.ir.program import Program
from tilus.ir.stmt import Assign, Let
from tilus.ir.types import RegisterType
from tilus.layouts import auto_local_spatial


def result(program: Program, **options) -> np.ndarray:
    """Return the bytes of all outputs."""
    args = arguments()
    vm.run(program, args, **options)
    return np.concatenate([a.view(np.uint8) for a in args[FIRST_OUTPUT:-1]])


@given(programs())
def test_text(program: Program) -> None:
    np.testing.assert_array_equal(result(parse(str(program))), result(program))


@given(programs())
def test_order_of_blocks(program: Program) -> None:
    grid = [(i, 0) if len(program.grid) == 2 else (i,) for i in range(BLOCKS)]
    np.testing.assert_array_equal(result(program, blocks=grid[::-1]), result(program))


@given(programs())
def test_layouts_do_not_change_values(program: Program) -> None:
    """Layouts say where elements lie, not what they are; `view`, which looks at bits, has its own in the programs."""
    tensors = {n for n in walk(program) if isinstance(n, Tensor) and isinstance(n.type, RegisterType)}
    table = {
        t: dataclasses.replace(
            t, type=dataclasses.replace(t.type, layout=auto_local_spatial(32 * program.num_warps, t.type.shape))
        )
        for t in tensors
        if t.type.layout is None
    }
    laid_out = dataclasses.replace(substitute(program, table), num_threads=32 * program.num_warps)
    np.testing.assert_array_equal(result(laid_out), result(program))


@given(programs())
def test_inputs_are_not_written(program: Program) -> None:
    args = arguments()
    vm.run(program, args)
    for before, after in zip(arguments()[:FIRST_OUTPUT], args[:FIRST_OUTPUT], strict=True):
        np.testing.assert_array_equal(before.view(np.uint8), after.view(np.uint8))


@given(programs())
def test_scalars_may_be_computed_twice(program: Program) -> None:
    """Expressions have no effect: a second evaluation, assigned over the first, changes nothing."""

    def twice(node):
        if isinstance(node, Let) and not any(n is node.var for n in walk(node.value)):
            return (node, Assign(node.var, node.value))
        return None

    np.testing.assert_array_equal(result(rewrite(program, twice)), result(program))
