"""Many mutants of a kernel, without running again what they share with it.

The kernel runs once for each launch. Where an instruction is about to do something else in a mutant for the first time,
the process forks: the child goes on as the mutant, and tells what kills it. Mutants that never get there do the same.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, replace
from typing import Any
from unittest import mock

from tests.simt.mutants import SYNC, Mutant, Subject, is_sync, position
from tests.simt.traces import MEMORY, Evidence, Trace, compare, excuse, starts
from tilus.simt import flow, launch
from tilus.simt.decode import Context, decode
from tilus.simt.formats import Array
from tilus.simt.machine import Group, Machine, Step
from tilus.simt.syntax import Instruction

Decode = Callable[[Machine, int], tuple[Step, Context]]
Outcome = tuple[str, str]  # what kills a mutant, and what excuses it


def outcomes(one: Subject, mutants: Sequence[Mutant]) -> list[Outcome]:
    """Return of mutants what kills them, and of those that live why they compute the same: each may be nothing."""
    sweep = Sweep(one, mutants)
    for landing in ("late", "early"):
        for number in range(len(one.launches)):
            sweep.launch(number, landing)
    return [sweep.outcome(i) for i in range(len(mutants))]


def changes_flow(mutant: Mutant) -> bool:
    """Return whether a mutant has other pieces of straight-line code, so that the kernel's cannot be changed on the way."""
    return mutant.kind == "move" or mutant.before.root in ("bra", "ret")


def only_computes(mutant: Mutant) -> bool:
    """Return whether the changed instruction can be tried, and what it wrote be taken back."""
    return mutant.kind not in ("drop", "guard") and not starts(mutant.before, (*SYNC, *MEMORY, "shfl"))


class Sweep:
    """Mutants of a kernel, and what is known of them.

    Attributes
    ----------
    killers : dict
        What killed a mutant, by its number; "" of those that live.
    evidence : dict
        Of those that live: what traces say at every launch.
    """

    def __init__(self, one: Subject, mutants: Sequence[Mutant]) -> None:
        self.one, self.mutants = one, mutants
        body = one.module.functions[one.kernel].body
        self.at = [position(body, m.at) for m in mutants]
        self.killers = {i: one.killer(m) if changes_flow(m) else "" for i, m in enumerate(mutants)}
        self.evidence: dict[int, list[Evidence]] = {i: [] for i in self.killers}
        self.child: int | None = None  # in a child process, the number of its mutant

    def outcome(self, i: int) -> Outcome:
        """Return what kills a mutant, and what excuses it."""
        mutant = self.mutants[i]
        if self.killers[i]:
            return self.killers[i], ""
        if self.at[i] in self.one.never_run or changes_flow(mutant) or is_sync(mutant.before):
            return "", self.one.equivalence(mutant)
        return "", excuse(mutant.kind, mutant.before.root, self.evidence[i])

    def launch(self, number: int, landing: str) -> None:
        """Run the kernel once, and the mutants that still live from where they differ."""
        self.waiting: dict[int, list[int]] = {}
        for i, mutant in enumerate(self.mutants):
            if not self.killers[i] and not changes_flow(mutant) and (landing == "late" or is_sync(mutant.before)):
                self.waiting.setdefault(self.at[i], []).append(i)
        if not self.waiting:
            return
        self.expected, self.trace = self.one.expected(number), Trace()
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(launch, "decode", self._decode))
            stack.enter_context(mock.patch.object(flow, "examine", self._examine(flow.examine)))
            shape = self.one.launches[number]
            try:
                verdict = self.one.verdict(self.one.module, shape, self.expected, landing)
            except BaseException:
                if self.child is None:
                    raise
                traceback.print_exc(file=sys.__stderr__)
                os._exit(1)
            if self.child is not None:
                self._tell(verdict)
        assert not verdict, f"the kernel itself fails: {verdict}"
        for same in (i for numbers in self.waiting.values() for i in numbers):
            self.evidence[same].append(Evidence(executed=self.at[same] in self.expected.trace.results))

    def _examine(self, examine: Any) -> Any:
        """Return how to look at the kernel so that registers are watched which mutants may leave unset."""

        def watched(program: Any, contexts: Sequence[Context]) -> flow.Facts:
            facts = examine(program, contexts)
            dropped = {
                at for at, numbers in self.waiting.items() for i in numbers if self.mutants[i].kind in ("drop", "guard")
            }
            return replace(facts, unset=facts.unset.union(*(contexts[at].writes for at in dropped)))

        return watched

    # --- steps ------------------------------------------------------------------------------------------------------

    def _decode(self, machine: Machine, code: int) -> tuple[Step, Context]:
        step, context = self.trace.decode(machine, code)
        return (self._forking(step, context) if code in self.waiting else step), context

    def _forking(self, step: Step, context: Context) -> Step:
        """Return a step before which the process forks for each mutant that differs in it."""
        machine, code, instruction = context.machine, context.code, context.instruction
        trials: dict[int, Trial] = {}
        changed: Step | None = None  # in a child, what its mutant does here

        def same(i: int, group: Group) -> bool:
            if not only_computes(self.mutants[i]):
                return False
            if i not in trials:
                both = (decoded(decode, machine, code, x) for x in (instruction, self.mutants[i].after))
                trials[i] = Trial(*both, [machine.rows[name] for name in sorted(context.writes)])
            return trials[i].same(group)

        def forking(group: Group) -> None:
            nonlocal changed
            for i in [] if self.child is not None else [*self.waiting[code]]:
                if not same(i, group):
                    self.waiting[code].remove(i)
                    if self._fork(i):
                        changed = decoded(self.trace.decode, machine, code, self.mutants[i].after)
                        break
            (changed or step)(group)

        return forking

    # --- processes --------------------------------------------------------------------------------------------------

    def _fork(self, i: int) -> bool:
        """Return true in a child, which goes on as a mutant; the parent waits for what it tells."""
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of other threads, which the child has no need of
            child = os.fork()
        if not child:
            self.child, self.out = i, write
            return True
        os.close(write)
        with open(read) as pipe:
            told = pipe.read()
        os.waitpid(child, 0)
        assert told, f"the process of the mutant `{self.mutants[i].text}` broke down"
        self.killers[i], evidence = json.loads(told)
        self.evidence[i].append(Evidence(*evidence))
        return False

    def _tell(self, verdict: str) -> None:
        """End a child."""
        assert self.child is not None
        evidence = Evidence() if verdict else compare(self.expected.trace, self.trace, self.at[self.child])
        os.write(self.out, json.dumps([verdict, astuple(evidence)]).encode())
        os._exit(0)


@dataclass
class Trial:
    """Two steps that only compute, and the registers that they write."""

    one: Step
    other: Step
    rows: Sequence[Array]

    def same(self, group: Group) -> bool:
        """Return whether they compute the same for threads now; the registers stay as they were."""
        before = [row[group].copy() for row in self.rows]
        found = []
        for step in (self.one, self.other):
            step(group)
            found.append([row[group].tobytes() for row in self.rows])
            for row, old in zip(self.rows, before, strict=True):
                row[group] = old
        return found[0] == found[1]


def decoded(decode: Decode, machine: Machine, code: int, instruction: Instruction) -> Step:
    """Return the step of an instruction that takes the place of another."""
    before = machine.program.code[code]
    machine.program.code[code] = instruction
    step, _ = decode(machine, code)
    machine.program.code[code] = before
    return step
