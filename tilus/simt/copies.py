"""Asynchronous copies of a thread, `cp.async`: groups, waits, and what is under way at the end (PTX ISA, "cp.async").

With late landing the bytes appear only when the thread waits for them; with early landing at once. A right program
does not notice. The detector of races treats them as under way until the wait in both cases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tilus.simt.access import access
from tilus.simt.decode import Context, decoder
from tilus.simt.formats import Array
from tilus.simt.machine import Group, Machine, Step
from tilus.simt.shadow import WEAK
from tilus.simt.syntax import Immediate


@dataclass(slots=True, eq=False)
class Copy:
    """One `cp.async` of some threads; `size` bytes of `nbytes` are read, the rest is zero."""

    threads: Array
    group: Array  # of each thread: how many groups it had committed
    to: Array
    source: Array
    size: Array
    nbytes: int
    code: int
    landed: bool = False


@dataclass(slots=True, eq=False)
class Signal:
    """Something to do for threads once their earlier copies have landed."""

    threads: Array
    group: Array
    action: Callable[[Array], None]


class Copies:
    """Copies under way, oldest first."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.committed = np.zeros(machine.threads, np.int64)
        self.queue: list[Copy | Signal] = []
        machine.at_exit.append(self.on_exit)

    def issue(self, copy: Copy, addresses: Array) -> None:
        """Begin a copy."""
        machine = self.machine
        shadow = machine.shadows.get("shared")
        if shadow is not None:
            cells = shadow.cells(copy.to, copy.nbytes)
            conflicts = shadow.check_write(copy.threads, cells, WEAK)
            shadow.begin(copy.threads, cells, copy.code)
            machine.race(conflicts, "shared", copy.code, copy.threads, addresses, "asynchronous write")
        if machine.options.landing == "early":
            self._move(copy)
        self.queue.append(copy)

    def _move(self, copy: Copy) -> None:
        rows = self.machine.globals.rows(np.where(copy.size > 0, copy.source, 0), copy.nbytes)
        rows = np.where(np.arange(copy.nbytes) < copy.size[:, None], rows, 0).astype(np.uint8)
        self.machine.shared.write_rows(copy.to, rows)
        copy.landed = True

    def wait(self, threads: Array, pending: int) -> None:
        """Let the copies of threads land but for those of their last `pending` groups."""
        limit = np.full(self.machine.threads, -1, np.int64)
        limit[threads] = self.committed[threads] - pending
        left: list[Copy | Signal] = []
        for item in self.queue:
            due = item.group < limit[item.threads]
            if due.all():
                self._land(item)
            elif due.any():
                self._land(_part(item, due))
                left.append(_part(item, ~due))
            else:
                left.append(item)
        self.queue = left

    def _land(self, item: Copy | Signal) -> None:
        if isinstance(item, Signal):
            item.action(item.threads)
            return
        if not item.landed:
            self._move(item)
        shadow = self.machine.shadows.get("shared")
        if shadow is not None:
            cells = shadow.cells(item.to, item.nbytes)
            shadow.finish(item.threads, cells)
            shadow.unfenced[cells] = True

    def land_one(self) -> bool:
        """Let a barrier hear of copies although nobody waits for them: called when nobody can run."""
        if not any(isinstance(x, Signal) for x in self.queue):
            return False
        while True:
            item = self.queue.pop(0)
            self._land(item)
            if isinstance(item, Signal):
                return True

    def on_exit(self, threads: Array) -> None:
        """Report copies that a thread never waited for, and let them land; such as only write zeros are harmless."""
        mine = [x for x in self.queue if isinstance(x, Copy) and np.isin(x.threads, threads).any()]
        for copy in mine:
            lost = copy.threads[(copy.size > 0) & np.isin(copy.threads, threads)]
            if len(lost):
                self.machine.find("pending", "a thread ends while its asynchronous copy is under way", copy.code, lost)
        if mine:
            self.committed[threads] += 1
            self.wait(threads, 0)


def _part(item: Copy | Signal, which: Array) -> Copy | Signal:
    if isinstance(item, Signal):
        return Signal(item.threads[which], item.group[which], item.action)
    return Copy(item.threads[which], item.group[which], item.to[which], item.source[which], item.size[which],
                item.nbytes, item.code, item.landed)  # fmt: skip


@decoder("cp.async")
def _copy(context: Context) -> Step:
    op, operands = context.opcode, context.operands
    op.drop("ca", "cg", "L2::cache_hint", "L2::64B", "L2::128B", "L2::256B", "shared::cta", "shared", "global")
    op.finish()
    to, source = context.address(operands[0]), context.address(operands[1])
    nbytes = context.constant(operands[2])
    if nbytes not in (4, 8, 16):
        raise context.error("4, 8 or 16 bytes are copied")
    size = context.read(operands[3] if len(operands) > 3 else Immediate(nbytes), "u32")
    machine, copies = context.machine, context.machine.units["copies"]
    writes = access(context, nbytes, "shared", "asynchronous write")
    reads = access(context, nbytes, "global", "asynchronous read")

    def step(group: Group) -> None:
        threads = machine.numbers[group]
        wanted = np.broadcast_to(size(group), threads.shape)
        if (wanted > nbytes).any():  # undefined, says the PTX manual
            text = f"a copy of {nbytes} bytes is to read {wanted.max()}"
            machine.find("bounds", text, context.code, threads[wanted > nbytes])
        wanted = np.minimum(wanted, np.uint32(nbytes))
        sources, sizes = np.zeros(len(threads), np.int64), np.zeros(len(threads), np.uint32)
        some = wanted > 0  # where nothing is read, the address is not looked at
        for part in reads.parts(threads[some], np.broadcast_to(source(group), threads.shape)[some]):
            reads.on_read(part)
            which = np.searchsorted(threads, part.threads)
            sources[which], sizes[which] = part.places, wanted[which]
        for part in writes.parts(group, to(group)):
            writes.count(part)
            which = np.searchsorted(threads, part.threads)
            copy = Copy(part.threads, copies.committed[part.threads], part.places, sources[which], sizes[which], nbytes,
                        context.code)  # fmt: skip
            copies.issue(copy, part.addresses)

    return step


@decoder("cp.async.commit_group")
def _commit(context: Context) -> Step:
    copies: Copies = context.machine.units["copies"]

    def step(group: Group) -> None:
        copies.committed[group] += 1

    return step


@decoder("cp.async.wait_group")
def _wait(context: Context) -> Step:
    machine, count = context.machine, context.constant(context.operands[0])
    return lambda group: machine.units["copies"].wait(machine.numbers[group], count)


@decoder("cp.async.wait_all")
def _wait_all(context: Context) -> Step:
    machine = context.machine
    copies: Copies = machine.units["copies"]

    def step(group: Group) -> None:
        copies.committed[group] += 1
        copies.wait(machine.numbers[group], 0)

    return step


@decoder("cp.async.mbarrier.arrive")
def _arrive(context: Context) -> Step:
    """Decode an arrival at a barrier that happens when the thread's copies so far have landed."""
    op = context.opcode
    increment = not op.take("noinc")
    op.drop("b64", "shared::cta", "shared")
    op.finish()
    machine = context.machine
    read = context.address(context.operands[0])

    def step(group: Group) -> None:
        copies: Copies = machine.units["copies"]
        threads = machine.numbers[group]
        addresses = np.broadcast_to(read(group), threads.shape)
        barriers = machine.units["mbarriers"]
        copies.queue.append(barriers.signal(threads, addresses, context.code, increment, copies.committed[threads]))
        copies.committed[group] += 1
        if machine.options.landing == "early":
            copies.wait(threads, 0)

    return step
