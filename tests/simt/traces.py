"""Traces of a kernel: what every instruction computes, and which memory it accesses, with what."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
    results : dict
        Digests of the registers that an instruction wrote, after each time that it ran, by its position.
    accesses : Counter
        How often threads accessed memory, by position of the instruction.
    events : dict
        Accesses by position: opcode, threads, addresses, and what is stored there; of stores and copies the blocks.
    """

    def __init__(self) -> None:
        self.results: dict[int, hashlib.blake2b] = defaultdict(hashlib.blake2b)
        self.accesses: Counter[int] = Counter()
        self.events: dict[int, Counter[int]] = defaultdict(Counter)

    def of_others(self, code: int) -> Counter[int]:
        """Return the accesses by all instructions but one."""
        return Counter(event for at, events in self.events.items() if at != code for event in events.elements())

    def decode(self, machine: Machine, code: int) -> tuple[Step, Context]:
        """Decode an instruction to a step that leaves its trace."""
        step, context = decode(machine, code)
        step = self._watched(step, context)
        return (self._noted(step, context) if starts(context.instruction, MEMORY) else step), context

    def _watched(self, step: Step, context: Context) -> Step:
        rows = [context.machine.rows[name] for name in sorted(context.writes)]

        def watched(group: Group) -> None:
            step(group)
            results = self.results[context.code]
            for row in rows:
                results.update(row[group].tobytes())

        return watched

    def _noted(self, step: Step, context: Context) -> Step:
        machine, code = context.machine, context.instruction
        guard = None if code.guard is None else context.read(code.guard, "pred")
        size = context.read(code.operands[3], "u32") if code.root == "cp" and len(code.operands) > 3 else None
        read = [part for x in code.operands for part in _parts(x) if part[0] in context.reads]

        def note(threads: np.ndarray, parts: Sequence[tuple[str, int]]) -> None:
            if len(threads):
                who, *what = threads, *(machine.rows[name][threads] for name, _ in parts)
                if code.root in ("cp", "st"):  # which thread of a block does it, or how many do, does not matter
                    columns = np.array([x.astype(np.uint64) for x in (machine.block_of[threads], *what)])
                    who, *what = np.unique(columns, axis=1)
                event = hash((code.opcode, who.tobytes(), *(x.tobytes() for x in what), *(n for _, n in parts)))
                self.events[context.code][event] += 1

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


# --- what two traces say of a mutant --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the traces of a kernel and of a mutant, at one shape, say of the changed instruction.

    Attributes
    ----------
    executed : bool
        The kernel runs it.
    accessed : bool
        It accesses memory in one of them.
    lost, more : bool
        Other instructions of the mutant leave out accesses of the kernel, or do what the kernel does not.
    same : bool
        It computes the same each time.
    """

    executed: bool = True
    accessed: bool = False
    lost: bool = False
    more: bool = False
    same: bool = True


def compare(kernel: Trace, mutant: Trace, code: int) -> Evidence:
    """Return what two traces say of the instruction at a position."""
    mine, other = kernel.of_others(code), mutant.of_others(code)
    digests = [t.results[code].hexdigest() if code in t.results else "" for t in (kernel, mutant)]
    accessed = kernel.accesses[code] > 0 or mutant.accesses[code] > 0
    return Evidence(bool(digests[0]), accessed, bool(mine - other), bool(other - mine), digests[0] == digests[1])


def excuse(kind: str, root: str, found: Iterable[Evidence]) -> str:
    """Return why a mutant that lives computes the same, as far as evidence from all shapes shows, or nothing.

    Parameters
    ----------
    kind, root : str
        Kind of the change, and opcode of what was changed, without modifiers.
    found : iterable of Evidence
    """
    all_ = list(found)
    if not any(x.executed for x in all_):
        return ""
    if kind == "offset" and not any(x.accessed for x in all_):
        return "accesses nothing"
    if any(x.lost for x in all_):
        return ""
    if any(x.more for x in all_):
        return "does what the other does, and more to no end"
    same = kind != "drop" and all(x.same for x in all_)
    if kind == "offset":
        return "reads an equal value elsewhere" if same and root in ("ld", "ldmatrix") else ""
    return "computes the same wherever it runs" if same else "no access sees the difference"
