"""Whether a machine is where it was before: then it runs for ever, since it does nothing by chance.

As in Brent's search for cycles the state is kept after 256, 512, 1024, ... pieces of code and held against each later
one, mostly by program counters alone. A loop that repeats itself is found once it has run twice as long as before it.
One that counts is not, and neither is one with asynchronous copies or products, whose state is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tilus.simt.formats import Array

if TYPE_CHECKING:
    from tilus.simt.machine import Machine

_FIRST = 256
_STATEFUL = ("cp.", "mbarrier.", "wgmma.", "barrier.cluster.", "bar.red.", "barrier.red.", "barrier.cta.red.")


class Repetition:
    """Looks for a state of a machine that comes again."""

    def __init__(self, machine: Machine, period: int) -> None:
        self.machine, self.period = machine, period
        self.saved: list[Array] | None = None
        self.stateful = [any(opcode.startswith(_STATEFUL) for opcode in piece.opcodes) for piece in machine.pieces]

    def after(self, piece: int, tick: int) -> int:
        """Return how many pieces ago the machine was in this state, 0 if it is not known to have been."""
        if tick >= _FIRST and not tick & (tick - 1):
            self.saved, self.tick = [part.copy() for part in self.state()], tick
        elif self.saved is not None:
            if self.stateful[piece]:
                self.saved = None
            elif not (tick - self.tick) % self.period and all(map(np.array_equal, self.saved, self.state())):
                return tick - self.tick
        return 0

    def state(self) -> Iterator[Array]:
        """Yield all that says what happens next, what changes most first."""
        machine = self.machine
        yield from (machine.pc, machine.resume)
        yield from machine.rows.values()
        yield np.unique(machine.last_turn, return_inverse=True)[1]
        for key, meeting in machine.units["barriers"].open.items():
            come = [[*map(list, threads)] for threads in (meeting.arrived, meeting.waiting)]
            yield np.array(str((key, meeting.expected, come)))
        for space in (machine.shared, machine.globals, machine.local):
            yield space.bytes
