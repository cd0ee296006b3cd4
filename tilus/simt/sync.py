"""Synchronisation through memory: acquire and release, and fences (PTX ISA, "Memory consistency model").

A release puts what its warp knows at an address; an acquire that reads the address learns it. A relaxed access does
half of that: the warp's last fence before a relaxed write is what the write releases, and what a relaxed read found is
learnt at the next fence.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tilus.simt.decode import Context, decoder
from tilus.simt.formats import Array
from tilus.simt.machine import Group, Machine, Step
from tilus.simt.opcode import Opcode
from tilus.simt.shadow import IN_BLOCK, IN_DEVICE, WEAK

_ANY_BLOCK = -1


@dataclass(slots=True)
class SyncPoints:
    """What releases left in memory; `fenced` and `pending` are each warp's halves.

    Attributes
    ----------
    released : dict
        (space, place) -> rows of `Clocks.known` by block; that of all blocks has the number -1.
    fenced, pending : dict
        Warp -> row.
    """

    released: dict[tuple[str, int], dict[int, Array]] = field(default_factory=dict)
    fenced: dict[int, tuple[Array, bool]] = field(default_factory=dict)
    pending: dict[int, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ordering:
    """How an access is ordered with others: its semantics, strength, and whether its scope is the block."""

    name: str
    strength: int
    in_block: bool

    def before_write(
        self, machine: Machine, space: str, places: Array, threads: Array, *, replace: bool = True
    ) -> None:
        """Release at the places that are written; an update adds to what others released there."""
        if not self.strength or machine.clocks is None:
            return
        points: SyncPoints = machine.units["sync"]
        for warp in np.unique(threads >> 5):
            row, in_block = self._released(machine, points, int(warp))
            for place in np.unique(places[threads >> 5 == warp]):
                if replace:
                    points.released.pop((space, int(place)), None)
                if row is not None:
                    entry = points.released.setdefault((space, int(place)), {})
                    block = int(warp) // machine.warps_per_block if in_block else _ANY_BLOCK
                    entry[block] = np.maximum(entry[block], row) if block in entry else row

    def _released(self, machine: Machine, points: SyncPoints, warp: int) -> tuple[Array | None, bool]:
        assert machine.clocks is not None
        if self.name in ("release", "acq_rel"):
            return machine.clocks.publish(np.array([warp]))[0], self.in_block
        row, fence_in_block = points.fenced.get(warp, (None, False))
        return row, self.in_block or fence_in_block

    def after_read(self, machine: Machine, space: str, places: Array, threads: Array) -> None:
        """Acquire what was released at the places that were read."""
        if not self.strength or machine.clocks is None:
            return
        points: SyncPoints = machine.units["sync"]
        if not points.released:
            return
        for place, warp in {(int(p), int(t) >> 5) for p, t in zip(places, threads, strict=True)}:
            for block, row in points.released.get((space, place), {}).items():
                if block not in (_ANY_BLOCK, warp // machine.warps_per_block):
                    continue
                if self.name in ("acquire", "acq_rel"):
                    machine.clocks.learn(np.array([warp]), row)
                else:
                    before = points.pending.get(warp)
                    points.pending[warp] = row if before is None else np.maximum(before, row)


WEAKLY = Ordering("weak", WEAK, False)


def ordering(op: Opcode) -> Ordering:
    """Take the modifiers that say how an access is ordered with others."""
    op.drop("mmio", "weak")
    name = op.choose("volatile", "relaxed", "acquire", "release", "acq_rel", default="weak")
    scope = op.choose("cta", "cluster", "gpu", "sys", default="gpu")
    strength = WEAK if name == "weak" else IN_BLOCK if scope == "cta" else IN_DEVICE
    return Ordering(name, strength, scope == "cta")


@decoder("membar", "fence")
def _fence(context: Context) -> Step:
    op = context.opcode
    op.drop("sc", "acq_rel", "acquire", "release")
    scope = op.choose("cta", "cluster", "gpu", "gl", "sys")
    op.finish()
    machine = context.machine

    def step(group: Group) -> None:
        if machine.clocks is None:
            return
        points: SyncPoints = machine.units["sync"]
        warps = np.unique(machine.numbers[group] >> 5)
        for warp in warps:
            if int(warp) in points.pending:
                machine.clocks.learn(np.array([warp]), points.pending.pop(int(warp)))
        for warp, row in zip(warps, machine.clocks.publish(warps), strict=True):
            points.fenced[int(warp)] = (row, scope == "cta")

    return step
