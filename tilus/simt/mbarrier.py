"""Barriers in shared memory that count arrivals and bytes (PTX ISA, "Parallel synchronization: mbarrier").

A phase ends when no arrival and no byte is pending. A thread that waits is parked until then: `try_wait` returns true
at last, and a loop around it runs once. One that only looks, by `test_wait`, takes its time: it returns false where
nothing else can go on. What the arrivals knew, and the copies that the phase counted, are ordered before everything
after the wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tilus.simt.access import Access, Part, access
from tilus.simt.copies import Signal
from tilus.simt.decode import Context, Write, decoder
from tilus.simt.formats import Array
from tilus.simt.machine import Group, Machine, Step, as_group
from tilus.simt.shadow import IN_DEVICE
from tilus.simt.sync import Ordering, ordering
from tilus.simt.syntax import Address, Sink

_STRONG = Ordering("relaxed", IN_DEVICE, False)
_MOST_BYTES = (1 << 20) - 1
_MOST_LOOKS = 1000  # in vain, one after another, before threads are taken to look for ever


@dataclass(slots=True, eq=False)
class Waiter:
    """Threads parked at a barrier, until `phase` has ended; then `done` is called with them and whether it has."""

    threads: Array
    phase: int
    done: Callable[[Array, bool], None]
    code: int
    looks: bool  # and may be told that it has not


@dataclass(slots=True, eq=False)
class Barrier:
    """One barrier.

    Attributes
    ----------
    place : int
        In shared memory.
    expected, pending, bytes, phase : int
        Arrivals of every phase; arrivals and bytes that are missing now; phases that have ended.
    agent : int
        Its copies' number for the detector of races; -1 without one.
    fenced : bool
        Other proxies may use it.
    row : array or None
        What the arrivals of this phase know; `rows` keeps those of earlier phases.
    """

    place: int
    address: int
    expected: int
    agent: int
    pending: int = 0
    bytes: int = 0
    phase: int = 0
    fenced: bool = False
    dropped: int = 0
    row: Array | None = None
    rows: dict[int, tuple[Array | None, int]] = field(default_factory=dict)
    waiters: list[Waiter] = field(default_factory=list)


class Barriers:
    """All barriers in the shared memory of the resident blocks, by place."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.all: dict[int, Barrier] = {}
        self.agents: dict[int, int] = {}
        self.in_vain = 0
        machine.waiting.append(self.describe)
        machine.at_last.append(self.look_again)

    def init(self, place: int, address: int, count: int) -> None:
        """Make a barrier."""
        if self.machine.clocks is not None and place not in self.agents:
            self.agents[place] = self.machine.clocks.add_agent()
        self.all[place] = Barrier(place, address, count, self.agents.get(place, -1), count)

    def get(self, place: int, address: int, code: int, threads: Array) -> Barrier | None:
        """Return the barrier at a place; that there is none is a fault."""
        barrier = self.all.get(place)
        if barrier is None:
            self.machine.find_at("barrier", "there is no initialised mbarrier", code, threads, "shared", address)
        return barrier

    def arrive(self, barrier: Barrier, count: int, code: int, threads: Array, row: Array | None) -> None:
        """Count arrivals."""
        if barrier.pending < count:
            self._fault(barrier, f"{count} arrivals at an mbarrier that expects {barrier.pending}", code, threads)
            return
        barrier.pending -= count
        if row is not None:
            barrier.row = row if barrier.row is None else np.maximum(barrier.row, row)
        self.advance(barrier)

    def expect(self, barrier: Barrier, nbytes: int, code: int, threads: Array) -> None:
        """Count bytes that copies will bring."""
        barrier.bytes += nbytes
        if barrier.bytes > _MOST_BYTES:
            self._fault(barrier, f"{barrier.bytes} bytes are pending at an mbarrier", code, threads)

    def complete(self, barrier: Barrier, nbytes: int) -> None:
        """Count bytes that have arrived. They may come before they are expected."""
        barrier.bytes -= nbytes
        self.advance(barrier)

    def _fault(self, barrier: Barrier, text: str, code: int, threads: Array) -> None:
        self.machine.find_at("barrier", text, code, threads, "shared", barrier.address)

    def advance(self, barrier: Barrier) -> None:
        """End the phase if nothing is pending."""
        if barrier.pending or barrier.bytes:
            return
        tick = 0
        if self.machine.clocks is not None:
            tick = self.machine.clocks.tick(barrier.agent)
        before = barrier.phase - 1
        barrier.rows = {barrier.phase: (barrier.row, tick), before: barrier.rows.get(before, (None, 0))}
        barrier.phase += 1
        barrier.expected -= barrier.dropped
        barrier.pending, barrier.row, barrier.dropped = barrier.expected, None, 0
        ready = [w for w in barrier.waiters if w.phase < barrier.phase]
        barrier.waiters = [w for w in barrier.waiters if w.phase >= barrier.phase]
        for waiter in ready:
            self.acquire(barrier, waiter.phase, waiter.threads)
            waiter.done(waiter.threads, True)
            self.machine.release(waiter.threads)
            self.in_vain = 0

    def acquire(self, barrier: Barrier, phase: int, threads: Array) -> None:
        """Order what a phase waited for before what threads do next."""
        clocks = self.machine.clocks
        if clocks is None or phase not in barrier.rows:
            return
        row, tick = barrier.rows[phase]
        warps = np.unique(threads >> 5)
        if row is not None:
            clocks.learn(warps, row)
        clocks.learn_agent(warps, barrier.agent, tick)

    def wait(self, barrier: Barrier, waiter: Waiter) -> None:
        """Let threads wait for the end of a phase."""
        if waiter.phase < barrier.phase:
            self.acquire(barrier, waiter.phase, waiter.threads)
            waiter.done(waiter.threads, True)
            return
        self.machine.park(as_group(waiter.threads, self.machine.threads))
        barrier.waiters.append(waiter)

    def look_again(self) -> bool:
        """Tell threads that only look that a phase has not ended; return whether there are any, too often in vain."""
        self.in_vain += 1
        found = False
        for barrier in self.all.values() if self.in_vain < _MOST_LOOKS else ():
            for waiter in [w for w in barrier.waiters if w.looks]:
                barrier.waiters.remove(waiter)
                waiter.done(waiter.threads, False)
                self.machine.release(waiter.threads)
                found = True
        return found

    def signal(self, threads: Array, addresses: Array, code: int, increment: bool, groups: Array) -> Signal:
        """Return what to do when the earlier `cp.async` of threads have landed: arrive."""
        acc = Access(self.machine, code, 8, "shared", "mbarrier operation", _STRONG)
        part = acc.locate("shared", addresses, threads)
        targets = dict(zip(part.threads.tolist(), part.places.tolist(), strict=True))
        for place in targets.values() if increment else ():
            if place in self.all:
                self.all[place].pending += 1

        def act(done: Array) -> None:
            for thread in done:
                barrier = self.all.get(targets.get(int(thread), -1))
                if barrier is not None:
                    one = np.array([thread])
                    clocks = self.machine.clocks
                    row = clocks.publish(one >> 5)[0] if clocks is not None else None
                    self.arrive(barrier, 1, code, one, row)

        return Signal(threads, groups, act)

    def fence(self, blocks: set[int] | None = None) -> None:
        """Let other proxies use the barriers that exist."""
        for barrier in self.all.values():
            if blocks is None or barrier.place // self.machine.shared.stride in blocks:
                barrier.fenced = True

    def describe(self) -> list[str]:
        """Return who waits for what."""
        texts = []
        for barrier in self.all.values():
            name = f"mbarrier {self.machine.shared.spot(barrier.address)}"
            missing = f"{barrier.pending} arrivals and {barrier.bytes} bytes are missing"
            for w in barrier.waiters:
                place = self.machine.program.code[w.code]
                text = f"{len(w.threads)} threads wait for phase {w.phase} of the {name} ({missing})"
                texts.append(f"{text}, {place.place}: {place.text}")
        return texts


# --- instructions -----------------------------------------------------------------------------------------------------

Act = Callable[[Barrier, Array], None]


def _each(context: Context, position: int, act: Act) -> Step:
    """Return a step that acts on the barriers at an address operand: once for all threads at the same one."""
    machine, op = context.machine, context.opcode
    space = op.choose("shared::cta", "shared::cluster", "shared")
    op.drop("b64")
    op.finish()
    acc = access(context, 8, space, "mbarrier operation", _STRONG)
    read = context.address(context.operands[position])

    def step(group: Group) -> None:
        barriers: Barriers = machine.units["mbarriers"]
        for part in acc.parts(group, read(group)):
            _check_order(acc, part)
            for place in np.unique(part.places):
                mine = part[part.places == place]
                barrier = barriers.get(int(place), int(mine.addresses[0]), context.code, mine.threads)
                if barrier is not None:
                    act(barrier, mine.threads)

    return step


def _check_order(acc: Access, part: Part) -> None:
    """Demand that using a barrier is ordered after making it."""
    shadow = acc.machine.shadows.get("shared")
    if shadow is not None:
        acc.race(shadow.read(part.threads, shadow.cells(part.places, 8), IN_DEVICE, acc.code), part)


@decoder("mbarrier.init")
def _init(context: Context) -> Step:
    op = context.opcode
    op.drop("shared::cta", "shared", "b64")
    op.finish()
    acc = access(context, 8, "shared", "mbarrier.init")
    read, count = context.address(context.operands[0]), context.read(context.operands[1], "u32")
    machine = context.machine

    def step(group: Group) -> None:
        for part in acc.parts(group, read(group)):
            counts = np.broadcast_to(count(as_group(part.threads, machine.threads)), part.threads.shape).astype(
                np.uint64
            )
            acc.write(part, [counts])
            for place, address, number in zip(part.places, part.addresses, counts, strict=True):
                machine.units["mbarriers"].init(int(place), int(address), int(number))

    return step


@decoder("mbarrier.inval")
def _invalidate(context: Context) -> Step:
    barriers: Barriers = context.machine.units["mbarriers"]

    def act(barrier: Barrier, threads: Array) -> None:
        del barriers.all[barrier.place]

    return _each(context, 0, act)


@decoder("fence.mbarrier_init")
def _fence(context: Context) -> Step:
    context.opcode.drop("release", "cluster")
    context.opcode.finish()
    machine = context.machine
    return lambda group: machine.units["mbarriers"].fence(set(machine.block_of[group].tolist()))


@decoder("mbarrier.arrive", "mbarrier.arrive_drop")
def _arrive(context: Context) -> Step:
    op, machine, code = context.opcode, context.machine, context.code
    drops = context.instruction.opcode.startswith("mbarrier.arrive_drop")
    expects, _ = op.take("expect_tx"), op.take("noComplete")
    order = ordering(op)
    operands = context.operands
    has_state = not isinstance(operands[0], Address)
    write: Write | None = None
    if has_state and not isinstance(operands[0], Sink):
        write = context.write(operands[0], "b64")
    rest = operands[has_state + 1 :]
    amount = context.read(rest[0], "u32") if rest else None

    def act(barrier: Barrier, threads: Array) -> None:
        barriers: Barriers = machine.units["mbarriers"]
        group = as_group(threads, machine.threads)
        amounts = np.broadcast_to(amount(group), threads.shape) if amount is not None else np.ones(len(threads), int)
        if write is not None:
            write(group, np.full(len(threads), barrier.phase, np.uint64))
        row = None
        if machine.clocks is not None and order.name != "relaxed":
            row = machine.clocks.publish(np.unique(threads >> 5)).max(0)
        if expects:
            barriers.expect(barrier, int(amounts.sum()), code, threads)
        if drops:
            barrier.dropped += len(threads)
        barriers.arrive(barrier, len(threads) if expects else int(amounts.sum()), code, threads, row)

    return _each(context, int(has_state), act)


@decoder("mbarrier.expect_tx", "mbarrier.complete_tx")
def _expect(context: Context) -> Step:
    op, machine, code = context.opcode, context.machine, context.code
    expects = context.instruction.opcode.startswith("mbarrier.expect_tx")
    op.drop("relaxed", "cta", "cluster")
    amount = context.read(context.operands[1], "u32")

    def act(barrier: Barrier, threads: Array) -> None:
        barriers: Barriers = machine.units["mbarriers"]
        total = int(np.broadcast_to(amount(as_group(threads, machine.threads)), threads.shape).sum())
        if expects:
            barriers.expect(barrier, total, code, threads)
        else:
            barriers.complete(barrier, total)

    return _each(context, 0, act)


@decoder("mbarrier.try_wait", "mbarrier.test_wait")
def _wait(context: Context) -> Step:
    """Decode waits until a phase has ended: `test_wait` only looks."""
    op, machine = context.opcode, context.machine
    looks = context.instruction.opcode.startswith("mbarrier.test_wait")
    parity = op.take("parity")
    op.drop("acquire", "relaxed", "cta", "cluster")
    write = context.write(context.operands[0], "pred")
    token = context.read(context.operands[2], "u32" if parity else "b64")

    def done(threads: Array, ended: bool) -> None:
        write(as_group(threads, machine.threads), np.array([ended]))

    def act(barrier: Barrier, threads: Array) -> None:
        barriers: Barriers = machine.units["mbarriers"]
        tokens = np.broadcast_to(token(as_group(threads, machine.threads)), threads.shape)
        for value in np.unique(tokens):
            some = threads[tokens == value]
            # A parity names the current phase, or the one before it.
            phase = barrier.phase - (int(value) != barrier.phase % 2) if parity else int(value)
            barriers.wait(barrier, Waiter(some, phase, done, context.code, looks))

    return _each(context, 1, act)
