"""Barriers of a block, of some of its warps, of one warp, and of a cluster (PTX ISA: `bar`, `barrier`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilus.simt.decode import Context, Read, Write, decoder
from tilus.simt.formats import Array
from tilus.simt.machine import LANES, PARKED, Group, Machine, Step, as_group

Key = tuple[str, int, int]  # block or warp; which one; number of the barrier


@dataclass(slots=True)
class Meeting:
    """A barrier that some threads have reached.

    Attributes
    ----------
    expected : int or None
        Threads; None for all that have not exited.
    arrived, waiting : list of array
        Threads that came, and those of them that wait.
    rows : list of array
        What the arrivals know, for the detector of races.
    on_open : list of callable
        Called with all threads that came, before they go on.
    """

    expected: int | None
    code: int
    arrived: list[Array] = field(default_factory=list)
    waiting: list[Array] = field(default_factory=list)
    rows: list[Array] = field(default_factory=list)
    on_open: list[Callable[[Array], None]] = field(default_factory=list)


class Barriers:
    """All barriers that threads wait at."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.open: dict[Key, Meeting] = {}
        machine.at_exit.append(self.on_exit)
        machine.waiting.append(self.describe)

    def members(self, key: Key) -> Array:
        """Return the threads for which a barrier is, exited ones included."""
        scope, which, _ = key
        size = self.machine.padded if scope == "block" else LANES
        return np.arange(which * size, (which + 1) * size)

    def arrive(self, key: Key, threads: Array, expected: int | None, code: int, *, wait: bool) -> Meeting:
        """Let threads of one block or warp come to a barrier."""
        meeting = self.open.setdefault(key, Meeting(expected, code))
        if meeting.expected != expected:
            text = f"barrier {key[2]} is for {meeting.expected} threads elsewhere, {expected} here"
            self.machine.find("barrier", text, code, threads)
        meeting.arrived.append(threads)
        if self.machine.clocks is not None:
            meeting.rows.append(self.machine.clocks.publish(np.unique(threads >> 5)).max(0))
        if wait:
            meeting.waiting.append(threads)
            self.machine.park(as_group(threads, self.machine.threads))
        return meeting

    def try_open(self, key: Key) -> None:
        """Let everyone go on if all have come."""
        meeting = self.open.get(key)
        if meeting is None:
            return
        come = sum(len(t) for t in meeting.arrived)
        expected = meeting.expected
        if expected is None:
            members = self.members(key)
            missing = np.setdiff1d(members[self.machine.alive(members)], np.concatenate(meeting.arrived))
            complete = not len(missing)
        else:
            complete = come >= expected
        if not complete:
            return
        if expected is not None and come > expected:
            text = f"{come} threads came to barrier {key[2]}, which is for {expected}"
            self.machine.find("barrier", text, meeting.code, meeting.arrived[-1])
        del self.open[key]
        self._go_on(meeting)

    def _go_on(self, meeting: Meeting) -> None:
        everyone = np.concatenate(meeting.arrived)
        for hook in meeting.on_open:
            hook(everyone)
        if not meeting.waiting:
            return
        waiting = np.concatenate(meeting.waiting)
        if self.machine.clocks is not None:
            self.machine.clocks.learn(np.unique(waiting >> 5), np.max(meeting.rows, axis=0))
        parked = waiting[self.machine.pc[waiting] == PARKED]
        self.machine.release(parked)

    def on_exit(self, threads: Array) -> None:
        """Look again at the barriers of blocks that threads leave."""
        for key in list(self.open):
            if np.isin(threads, self.members(key)).any():
                self.try_open(key)

    def describe(self) -> list[str]:
        """Return who waits for whom, for a report of a deadlock."""
        texts = []
        for (scope, which, number), meeting in self.open.items():
            come = sum(len(t) for t in meeting.arrived)
            members = self.members((scope, which, number))
            wanted = meeting.expected if meeting.expected is not None else int(self.machine.alive(members).sum())
            place = self.machine.program.code[meeting.code]
            at = f"barrier {number}, {place.place}: {place.text}"
            texts.append(f"{scope} {which}: {come} of {wanted} threads are at {at}")
        return texts


@decoder("bar", "barrier")
def _barrier(context: Context) -> Step:
    op = context.opcode
    aligned = op.take("aligned") or op.root == "bar"
    op.drop("cta", "u32", "pred")
    kind, reduction = op.choose("sync", "arrive", "red"), op.choose("popc", "and", "or")
    op.finish()
    operands = list(context.operands)
    result = operands.pop(0) if kind == "red" else None
    source = context.read(operands.pop(), "pred") if kind == "red" else None
    number = context.read(operands[0], "u32")
    count = context.read(operands[1], "u32") if len(operands) > 1 else None
    write = context.write(result, "b32" if reduction == "popc" else "pred") if result is not None else None
    return _block_barrier(context, kind, aligned, number, count, (reduction, source, write))


Reduction = tuple[str, "Read | None", "Write | None"]


def _block_barrier(
    context: Context, kind: str, aligned: bool, number: Read, count: Read | None, reduction: Reduction
) -> Step:
    machine, code = context.machine, context.code

    def step(group: Group) -> None:
        barriers: Barriers = machine.units["barriers"]
        threads = machine.numbers[group]
        if aligned:
            machine.units["warps"].whole(group, code)
        blocks = machine.block_of[threads]
        numbers = np.broadcast_to(number(group), threads.shape)
        counts = np.broadcast_to(count(group), threads.shape) if count is not None else None
        if _all_at_once(machine, barriers, threads, counts, numbers, reduction):
            return
        for block, which in {(int(b), int(n)) for b, n in zip(blocks, numbers, strict=True)}:
            some = threads[(blocks == block) & (numbers == which)]
            expected = int(counts[np.searchsorted(threads, some[0])]) if counts is not None else None
            key = ("block", block, which)
            meeting = barriers.arrive(key, some, expected, code, wait=kind != "arrive")
            _reduce(machine, meeting, reduction)
            barriers.try_open(key)

    return step


def _all_at_once(machine: Machine, barriers: Barriers, threads: Array, counts: Array | None, numbers: Array,
                 reduction: Reduction) -> bool:  # fmt: skip
    """Synchronise the usual way: all threads of every block that is here come together, and nobody has to wait."""
    if counts is not None or reduction[2] is not None or (numbers != numbers[0]).any():
        return False
    blocks = np.unique(machine.block_of[threads])
    per_block = machine.alive(machine.numbers).reshape(machine.blocks, -1)[blocks].sum(1)
    if per_block.sum() != len(threads) or any(("block", int(b), int(numbers[0])) in barriers.open for b in blocks):
        return False
    if machine.clocks is not None:
        warps = blocks[:, None] * machine.warps_per_block + np.arange(machine.warps_per_block)
        machine.clocks.join(warps)
    return True


def _reduce(machine: Machine, meeting: Meeting, reduction: Reduction) -> None:
    name, source, write = reduction
    if source is None or write is None or meeting.on_open:
        return

    def finish(threads: Array) -> None:
        ordered = as_group(np.sort(threads), machine.threads)
        on = np.broadcast_to(source(ordered), threads.shape)
        value: Any = {"popc": on.sum(), "and": on.all(), "or": on.any()}[name]
        write(ordered, np.full(len(threads), value, np.uint32 if name == "popc" else bool))

    meeting.on_open.append(finish)


@decoder("bar.warp.sync")
def _warp_barrier(context: Context) -> Step:
    context.opcode.finish()
    machine, code = context.machine, context.code
    mask = context.read(context.operands[0], "b32")

    def step(group: Group) -> None:
        barriers: Barriers = machine.units["barriers"]
        threads = machine.numbers[group]
        masks = np.broadcast_to(mask(group), threads.shape)
        warps = threads[::LANES] >> 5
        if (
            len(threads) % LANES == 0
            and (masks == 0xFFFFFFFF).all()
            and (threads[LANES - 1 :: LANES] >> 5 == warps).all()
        ):
            if machine.clocks is not None:
                machine.clocks.join(warps[:, None])
            return
        for warp in np.unique(threads >> 5):
            mine = threads >> 5 == warp
            some, bits = threads[mine], int(masks[mine][0])
            wanted = warp * LANES + np.flatnonzero(bits >> np.arange(LANES) & 1)
            expected = int(machine.alive(wanted).sum())
            key = ("warp", int(warp), bits)
            barriers.arrive(key, some, expected, code, wait=True)
            barriers.try_open(key)

    return step


@decoder("barrier.cluster")
def _cluster_barrier(context: Context) -> Step:
    op, code = context.opcode, context.code
    op.drop("aligned", "acquire", "release", "relaxed")
    kind = op.choose("arrive", "wait")
    op.finish()
    clusters: Clusters = context.machine.units["clusters"]
    return lambda group: (clusters.arrive if kind == "arrive" else clusters.wait)(group, code)


class Clusters:
    """The barrier of each cluster: arriving and waiting are two instructions."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        size = machine.padded * machine.cluster
        self.cluster_of = machine.numbers // size
        self.phase = np.zeros(machine.threads // size, np.int64)
        self.arrivals = np.zeros(machine.threads, np.int64)  # how often each thread arrived
        self.rows: dict[tuple[int, int], Array] = {}
        self.parked = np.zeros(machine.threads, bool)
        machine.at_exit.append(lambda threads: self._advance())
        machine.waiting.append(self.describe)

    def arrive(self, group: Group, code: int) -> None:
        """Let threads arrive."""
        threads = self.machine.numbers[group]
        early = self.arrivals[threads] > self.phase[self.cluster_of[threads]]
        if early.any():
            self.machine.find("barrier", "a thread arrives twice at the cluster's barrier", code, threads[early])
        self.arrivals[threads] += 1
        if self.machine.clocks is not None:
            for cluster in np.unique(self.cluster_of[threads]):
                warps = np.unique(threads[self.cluster_of[threads] == cluster] >> 5)
                row, key = self.machine.clocks.publish(warps).max(0), (int(cluster), int(self.phase[cluster]))
                self.rows[key] = np.maximum(self.rows.get(key, row), row)
        self._advance()

    def wait(self, group: Group, code: int) -> None:
        """Let threads wait until all of the cluster have arrived as often as they have."""
        threads = self.machine.numbers[group]
        self.machine.park(group)
        self.parked[threads] = True
        self._advance()

    def _advance(self) -> None:
        alive = self.machine.alive(self.machine.numbers)
        least = np.where(alive, self.arrivals, np.iinfo(np.int64).max).reshape(len(self.phase), -1).min(1)
        self.phase = np.where(least < np.iinfo(np.int64).max, np.maximum(self.phase, least), self.phase)
        free = np.flatnonzero(self.parked & (self.arrivals <= self.phase[self.cluster_of]))
        if not len(free):
            return
        self.parked[free] = False
        self.machine.release(free)
        if self.machine.clocks is not None:
            for cluster in np.unique(self.cluster_of[free]):
                mine = free[self.cluster_of[free] == cluster]
                row = self.rows.get((int(cluster), int(self.arrivals[mine[0]]) - 1))
                if row is not None:
                    self.machine.clocks.learn(np.unique(mine >> 5), row)

    def describe(self) -> list[str]:
        """Return who waits."""
        return [
            f"cluster {c}: {int((self.parked & (self.cluster_of == c)).sum())} threads wait for the rest of the cluster"
            for c in np.unique(self.cluster_of[self.parked])
        ]
