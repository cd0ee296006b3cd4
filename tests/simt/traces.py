"""Traces of a kernel: what one instruction computes, and which memory all others access, with what."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from tilus.simt.decode import Context, decode
from tilus.simt.machine import Group, Machine, Step
from tilus.simt.syntax import Address, Instruction, Operand, Register, Vector

MEMORY = ("ld", "ldmatrix", "st", "stmatrix", "cp.async.ca", "cp.async.cg", "atom", "red")


def starts(code: Instruction, prefixes: Sequence[str]) -> bool:
    return any(code.opcode == p or code.opcode.startswith(p + ".") for p in prefixes)


class Trace:
    """A trace.

    Attributes
    ----------
    code : int
        Position of the one instruction; -1 for none.
    executed : bool
        Whether it was.
    accesses : Counter
        How often threads accessed memory, by position of the instruction.
    events : Counter
        Accesses by others than the one: opcode, threads, addresses, and what is stored there.
    """

    def __init__(self, code: int) -> None:
        self.code = code
        self.executed = False
        self.accesses: Counter[int] = Counter()
        self.events: Counter[int] = Counter()
        self._results = hashlib.blake2b()

    @property
    def results(self) -> str:
        """Digest of the registers after each execution of the one."""
        return self._results.hexdigest()

    def decode(self, machine: Machine, code: int) -> tuple[Step, Context]:
        """Decode an instruction to a step that leaves its trace."""
        step, context = decode(machine, code)
        if code == self.code:
            step = self._watched(step, context)
        return (self._noted(step, context) if starts(context.instruction, MEMORY) else step), context

    def _watched(self, step: Step, context: Context) -> Step:
        rows = [context.machine.rows[name] for name in sorted(context.writes)]

        def watched(group: Group) -> None:
            self.executed = True
            step(group)
            for row in rows:
                self._results.update(row[group].tobytes())

        return watched

    def _noted(self, step: Step, context: Context) -> Step:
        machine, code = context.machine, context.instruction
        guard = None if code.guard is None else context.read(code.guard, "pred")
        size = context.read(code.operands[3], "u32") if code.root == "cp" and len(code.operands) > 3 else None
        read = [part for x in code.operands for part in _parts(x) if part[0] in context.reads]

        def note(threads: np.ndarray, parts: Sequence[tuple[str, int]]) -> None:
            if len(threads) and context.code != self.code:
                what = [machine.rows[name][threads].tobytes() for name, _ in parts]
                self.events[hash((code.opcode, threads.tobytes(), *what, *(offset for _, offset in parts)))] += 1

        def noted(group: Group) -> None:
            threads = machine.numbers[group]
            some = np.ones(len(threads), bool) if size is None else np.broadcast_to(size(group), threads.shape) > 0
            if guard is not None:
                on = guard(group)
                threads, some = threads[on], some[on]
            self.accesses[context.code] += int(some.sum())
            note(threads[some], read)
            note(threads[~some], read[:1])  # zeros are written: from where nothing is read does not matter
            step(group)

        return noted


def _parts(operand: Operand) -> list[tuple[str, int]]:
    """Return the registers of an operand, each with an offset."""
    match operand:
        case Register(name=name):
            return [(name, 0)]
        case Address(base=Register(name=name), offset=offset):
            return [(name, offset)]
        case Vector(items=items):
            return [part for x in items for part in _parts(x)]
    return []
