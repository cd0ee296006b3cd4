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


def result(program: Program, args: list | None = None, **options) -> np.ndarray:
    """Return the bytes of all outputs."""
    args = arguments() if args is None else args
    vm.run(program, args, **options)
    return np.concatenate([a.view(np.uint8) for a in args[FIRST_OUTPUT:-1]])


def laid_out(program: Program) -> Program:
    """Layouts say where elements lie, not what they are; `view`, which looks at bits, has its own in the programs."""
    tensors = {n for n in walk(program) if isinstance(n, Tensor) and isinstance(n.type, RegisterType)}
    table = {
        t: dataclasses.replace(
            t, type=dataclasses.replace(t.type, layout=auto_local_spatial(32 * program.num_warps, t.type.shape))
        )
        for t in tensors
        if t.type.layout is None
    }
    return dataclasses.replace(substitute(program, table), num_threads=32 * program.num_warps)


def scalars_twice(program: Program) -> Program:
    """Expressions have no effect: a second evaluation, assigned over the first, changes nothing."""

    def twice(node):
        if isinstance(node, Let) and not any(n is node.var for n in walk(node.value)):
            return (node, Assign(node.var, node.value))
        return None

    return rewrite(program, twice)


@given(programs())
def test_what_does_not_change_the_meaning(program: Program) -> None:
    args = arguments()
    wanted = result(program, args)
    for before, after in zip(arguments()[:FIRST_OUTPUT], args[:FIRST_OUTPUT], strict=True):
        np.testing.assert_array_equal(before.view(np.uint8), after.view(np.uint8), err_msg="an input is written")
    grid = [(i, 0) if len(program.grid) == 2 else (i,) for i in range(BLOCKS)]
    for name, found in (
        ("text", result(parse(str(program)))),
        ("order of blocks", result(program, blocks=grid[::-1])),
        ("layouts", result(laid_out(program))),
        ("scalars computed twice", result(scalars_twice(program))),
    ):
        np.testing.assert_array_equal(found, wanted, err_msg=name)
