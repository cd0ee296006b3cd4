"""Instructions that no launch runs: ways there are decided by constants and the thread's number alone, and not taken.

Which way a thread goes is the same in all launches and blocks as long as every branch up to there depends on nothing
else. So a way that nobody went at one launch is never gone, and what is reached by such ways only may be anything.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tilus.simt.decode import Context
from tilus.simt.flow import forward
from tilus.simt.program import Program
from tilus.simt.syntax import Operand, Special, Symbol, Vector

_SAME = ("%tid", "%ntid", "%laneid", "%warpid", "%lanemask")  # in all blocks of all launches
_LOADS = {"ld", "ldu", "ldmatrix", "atom", "call"}
_ALL = "*"  # in a set of registers: behind a branch that launches decide, all that is written


def never_run(program: Program, contexts: Sequence[Context], ran: Collection[int]) -> set[int]:
    """Return the positions of instructions that no launch runs.

    Parameters
    ----------
    program, contexts
        What runs.
    ran : collection of int
        Positions that were run at some launch.
    """
    bounds = [*program.leaders, len(program.code)]

    def leave(piece: int, target: int, state: set[str]) -> set[str] | None:
        if _varies(contexts[bounds[piece + 1] - 1], state):
            return state | {_ALL}
        return state if bounds[target] in ran or target == len(program.leaders) else None

    # At the beginning of pieces: registers that may differ between launches.
    entry = forward(program, contexts, _step, set.union, leave)
    dead = set(range(len(program.leaders))) - entry.keys()
    return {at for piece in dead for at in range(bounds[piece], bounds[piece + 1])}


def _step(context: Context, state: set[str]) -> None:
    if _varies(context, state) or context.root in _LOADS:
        state |= context.writes
    elif context.instruction.guard is None:
        state -= context.writes


def _varies(context: Context, state: set[str]) -> bool:
    """Return whether what an instruction does may differ between launches."""
    return _ALL in state or bool(context.reads & state) or any(_is_launch(x, context) for x in context.operands)


def _is_launch(operand: Operand, context: Context) -> bool:
    match operand:
        case Special(name=name):
            return not name.startswith(_SAME)
        case Symbol(name=name):
            program = context.machine.program
            return name not in program.shared and name not in program.labels
        case Vector(items=items):
            return any(_is_launch(x, context) for x in items)
    return False
