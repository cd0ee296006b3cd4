"""Sums over lanes, put off until somebody needs them.

A `dot` whose lanes hold different k's leaves in every lane a part of each result; adding the parts up takes a
butterfly of shuffles. But sums and multiples of such parts are parts of the sum and of the multiple:

    sum(p) + sum(q) = sum(p + q)        s * sum(p) = sum(s * p)

so a loop that accumulates scaled products can keep parts throughout, and one butterfly after the loop is enough.
Here is decided which tensors hold parts: the largest set in which every definition keeps to these laws.
"""

from __future__ import annotations

import numpy as np

from tilus.codegen.llvm.lanes import steps_of_group
from tilus.dtypes import f32, f64
from tilus.ir.expr import Const, Tensor
from tilus.ir.instructions import Copy, Dot, Elementwise, Full, Instruction
from tilus.ir.node import walk
from tilus.ir.program import Program
from tilus.ir.stmt import InstStmt
from tilus.ir.types import RegisterType
from tilus.layouts import RegisterLayout, index_table

Steps = tuple[int, ...]


def register_layout(t: Tensor) -> RegisterLayout:
    """Return the layout of a register tensor of a lowered program."""
    assert isinstance(t.type, RegisterType)
    assert t.type.layout is not None
    return t.type.layout


def lane_steps(out: Tensor, inst: Dot) -> Steps:
    """Return the lane distances of the butterfly that adds up the parts of a product; empty if lanes hold all k's."""
    table, a_table = index_table(register_layout(out)), index_table(register_layout(inst.a))
    rows = table[:, 0, :-1]
    ks = [tuple(np.unique(a[(a[:, :-1] == row).all(1), -1]).tolist()) for a, row in zip(a_table, rows, strict=True)]
    return tuple(steps_of_group([tuple(i) for i in table[:, 0].tolist()], ks))


def partial_tensors(program: Program) -> dict[Tensor, Steps]:
    """Return the tensors that hold parts, with the butterfly that adds them up."""
    definitions: dict[Tensor, list[Instruction]] = {}
    for node in walk(program):
        if isinstance(node, InstStmt) and isinstance(node.out, Tensor):
            definitions.setdefault(node.out, []).append(node.inst)
    found = {s for t, insts in definitions.items() for i in insts if isinstance(i, Dot) and (s := lane_steps(t, i))}
    parts: dict[Tensor, Steps] = {}
    for steps in found:
        members = _largest_set(definitions, steps)
        parts |= {t: steps for t in members if not all(isinstance(i, Full) for i in definitions[t])}
    return parts


def _largest_set(definitions: dict[Tensor, list[Instruction]], steps: Steps) -> set[Tensor]:
    """Start with every tensor and drop those whose definitions break a law, until none does.

    A product keeps to the law if exactly one factor holds parts. Which factors can at all is settled first, by asking
    for at least one.
    """
    members = {t for t in definitions if isinstance(t.type, RegisterType) and t.type.dtype in (f32, f64)}
    for factors in ((1, 2), (1,)):
        while broken := {t for t in members if not all(_keeps(t, i, members, steps, factors) for i in definitions[t])}:
            members -= broken
    return members


def _keeps(out: Tensor, inst: Instruction, members: set[Tensor], steps: Steps, factors: tuple[int, ...]) -> bool:
    """Whether an instruction defines parts if the members are parts."""
    match inst:
        case Full(value=Const(value=0)):
            return True
        case Dot(c=c):
            return c in members and lane_steps(out, inst) == steps
        case Copy(x=x):
            return x in members
        case Elementwise(op="add", args=args):
            return all(a in members and _same_lanes(a, out) for a in args)
        case Elementwise(op="mul", args=args):
            parts = [a for a in args if a in members]
            return len(parts) in factors and _same_lanes(parts[0], out)
        case _:
            return False


def _same_lanes(x: object, out: Tensor) -> bool:
    """Whether an operand's elements lie where the result's do: a broadcast one has its parts elsewhere."""
    return isinstance(x, Tensor) and register_layout(x) == register_layout(out)
