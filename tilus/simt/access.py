"""Accesses to memory: where they go, and what is checked and counted on the way."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

from tilus.simt import metrics
from tilus.simt.decode import Context
from tilus.simt.formats import Array
from tilus.simt.machine import Group, Machine
from tilus.simt.memory import SPACE_BITS, SPACES, Memory
from tilus.simt.shadow import Conflict
from tilus.simt.sync import WEAKLY, Ordering
from tilus.simt.syntax import Address, Symbol

_MOVES = ("ld", "st", "cp", "ldmatrix", "stmatrix")


@dataclass(slots=True)
class Part:
    """The part of an access that goes to one space: place in the memory, address and thread of each element."""

    space: str
    places: Array
    addresses: Array
    threads: Array

    def __getitem__(self, which: Array) -> Part:
        return Part(self.space, self.places[which], self.addresses[which], self.threads[which])


@dataclass(slots=True)
class Access:
    """What a memory instruction does: how many bytes for each thread, to which space, with which guarantees."""

    machine: Machine
    code: int
    nbytes: int
    space: str
    verb: str
    ordering: Ordering = WEAKLY
    window: tuple[int, int] | None = None  # of shared memory; all, if none

    def memory(self, space: str) -> Memory:
        """Return the memory of a space."""
        machine = self.machine
        return {"global": machine.globals, "shared": machine.shared, "local": machine.local}.get(space, machine.params)

    # --- where it goes --------------------------------------------------------------------------------------------

    def parts(self, group: Group, addresses: Array) -> Iterator[Part]:
        """Yield what a group's access does in each space, without the threads that are out of bounds."""
        threads = self.machine.numbers[group]
        addresses = np.broadcast_to(addresses, threads.shape)
        if self.space != "generic":
            yield from self._inside(self.space, addresses, threads)
            return
        kinds = np.minimum(addresses >> np.uint64(SPACE_BITS), np.uint64(3)).astype(np.int64)
        low = np.uint64((1 << SPACE_BITS) - 1)
        for kind in np.unique(kinds):
            yield from self._inside(SPACES[kind], addresses[kinds == kind] & low, threads[kinds == kind])

    def _inside(self, space: str, addresses: Array, threads: Array) -> Iterator[Part]:
        part = self.locate(space, addresses, threads)
        if len(part.threads):
            yield part

    def locate(self, space: str, addresses: Array, threads: Array) -> Part:
        """Return the accesses that are in bounds, at aligned places; faults are reported."""
        places, good = self._places(space, addresses, threads)
        part = Part(space, places, addresses, threads)
        off = places % self.nbytes
        if off.any():
            if (wrong := good & (off != 0)).any():
                text = f"{self.verb} of {self.nbytes} bytes at an address that is no multiple of it"
                self.report("misaligned", text, part[wrong])
            part.places = places - off
        if good.all():
            return part
        self.report("bounds", f"{self.verb} of {self.nbytes} bytes out of bounds", part[~good])
        return part[good]

    def _places(self, space: str, addresses: Array, threads: Array) -> tuple[Array, Array]:
        machine, nbytes = self.machine, self.nbytes
        if space == "global":
            return machine.globals.locate(addresses, nbytes)
        if space == "shared":
            return machine.shared.locate(
                addresses, nbytes, machine.block_of[threads], machine.cluster, self.window or (0, machine.shared.size)
            )
        inside = addresses.astype(np.int64) & 0xFFFFFFFF
        if space == "local":
            return threads * machine.local_stride + inside, inside + nbytes <= machine.program.local_bytes
        return inside, inside + nbytes <= machine.params.nbytes

    def report(self, kind: str, text: str, part: Part) -> None:
        """Report a fault of all elements of a part."""
        self.machine.find_at(kind, text, self.code, part.threads, part.space, int(part.addresses[0]))

    # --- checks ---------------------------------------------------------------------------------------------------

    def on_read(self, part: Part) -> None:
        """Count, and check that what is read was written and is not being written."""
        self.count(part)
        shadow = self.machine.shadows.get(part.space)
        if shadow is None:
            return
        cells = shadow.cells(part.places, self.nbytes)
        valid = shadow.valid[cells]
        if not valid.all():
            self.report("uninitialized", f"{self.verb} of memory that nobody has written", part[~valid.all(1)])
            shadow.valid[cells] = True
        self.race(shadow.read(part.threads, cells, self.ordering.strength, self.code), part)

    def write(self, part: Part, values: list[Array]) -> None:
        """Write words one behind another; check that nobody else reads or writes there. Equal values do not race."""
        self.on_write(part, values)
        self.memory(part.space).store(part.places, values)
        if part.space in self.machine.shadows:
            if (lost := self._changes(part, values)).any():
                self.report("race", f"{self.verb}: threads write different values to one place at once", part[lost])
            elif len(np.unique(part.places)) < len(part.places):
                self.machine.report.equal_writes = True

    def on_write(self, part: Part, values: list[Array] | None) -> None:
        """Count, and check as `write` does, before it is done; without values every conflict is one."""
        self.count(part)
        shadow = self.machine.shadows.get(part.space)
        if shadow is None:
            return
        cells = shadow.cells(part.places, self.nbytes)
        conflicts = shadow.write(part.threads, cells, self.ordering.strength, self.code)
        shadow.unfenced[cells] = True
        if conflicts and values is not None:
            changed = self._changes(part, values)
            self.machine.report.equal_writes |= any(c.was_write and not changed[c.element].all() for c in conflicts)
            conflicts = [c for c in (_only(c, changed) for c in conflicts) if c is not None]
        self.race(conflicts, part)

    def _changes(self, part: Part, values: list[Array]) -> Array:
        old = self.memory(part.space).load(part.places, values[0].dtype.itemsize, len(values))
        return np.any([o != v for o, v in zip(old, values, strict=True)], axis=0)

    def race(self, conflicts: list[Conflict], part: Part) -> None:
        """Report races of a part's elements."""
        self.machine.race(conflicts, part.space, self.code, part.threads, part.addresses, self.verb)

    def count(self, part: Part) -> None:
        """Count what the access costs, and check that it comes after the wait for earlier kernels."""
        machine = self.machine
        if machine.options.dependent and part.space == "global":
            machine.too_early(self.code, part.threads, part.addresses, self.verb)
        if machine.options.metrics and part.space in ("shared", "global"):
            instruction = machine.program.code[self.code]
            metrics.count(machine.report, instruction, part.space, part.addresses, part.threads, self.nbytes)


def _only(conflict: Conflict, keep: Array) -> Conflict | None:
    """Return what is left of a conflict: races with writes of the same value are none."""
    if not conflict.was_write:
        return conflict
    kept = keep[conflict.element]
    return Conflict(conflict.element[kept], conflict.epoch[kept], True) if kept.any() else None


def access(context: Context, nbytes: int, space: str, verb: str, ordering: Ordering = WEAKLY) -> Access:
    """Return the access of an instruction; `const` lies in global memory, a call's parameters in the thread's."""
    base = space.partition("::")[0]
    if base == "const":
        base = "global"
    address = next((x for x in context.operands if isinstance(x, Address)), None)
    if base == "param" and address is not None and isinstance(address.base, Symbol):
        base = "local" if address.base.name in context.machine.program.local else "param"
    return Access(context.machine, context.code, nbytes, base or "generic", verb, ordering, window(context))


def window(context: Context) -> tuple[int, int] | None:
    """Return the part of shared memory that an instruction may access; None if it is not one that moves elements."""
    machine = context.machine
    source, windows = context.instruction.source, machine.options.windows
    number = bisect_right(windows, source.line, key=itemgetter(0)) if source else 0
    if not number or context.root not in _MOVES:
        return None
    start, stop = (machine.program.shared_bytes + byte for byte in windows[number - 1][1:])
    return start, stop
