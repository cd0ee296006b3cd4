"""The passes in order, on one screen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tilus.errors import PassError
from tilus.ir.program import Program
from tilus.ir.target import Target, has_clusters
from tilus.ir.verify import verify
from tilus.passes.absorb_casts import absorb_casts
from tilus.passes.check_lowered import check_lowered
from tilus.passes.infer_layouts import infer_layouts
from tilus.passes.infer_shared import infer_shared
from tilus.passes.plan_shared import plan_shared
from tilus.passes.select import select
from tilus.passes.simplify import simplify

Pass: TypeAlias = Callable[[Program, Target], Program]
Hook: TypeAlias = Callable[[str, Program], None]


def pipeline(target: Target) -> tuple[Pass, ...]:
    """Return the passes for a target; every target takes the same ones: what one has no use for changes nothing."""
    return (simplify, absorb_casts, infer_layouts, infer_shared, select, plan_shared, check_lowered)


def lower(program: Program, target: Target, *, hook: Hook | None = None) -> Program:
    """Return the lowered form of a program, which the emitters accept.

    Parameters
    ----------
    program : Program
        As the front end made it.
    target : Target
    hook : callable, optional
        Called with the name of each pass and the program after it: for dumps and timing.

    Raises
    ------
    VerifyError
        If the program breaks a rule of the IR, or a pass made it so: then the message names the pass.
    PassError
        If the program cannot run on the target.
    """
    verify(program)
    if program.cluster and not has_clusters(target):
        raise PassError(
            f"{target.name} has no clusters of blocks, which {program.name!r} asks for",
            loc=program.loc,
            hint="compile it for sm_90a, or launch it without cluster=...",
        )
    for step in pipeline(target):
        after = step(program, target)
        if after is not program:
            verify(after, after=step.__name__)
        program = after
        if hook is not None:
            hook(step.__name__, program)
    return program
