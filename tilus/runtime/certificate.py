"""A certificate: what one run of a kernel's PTX on the CPU shows, by lines of the user's program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tilus.errors import Loc
from tilus.runtime.arguments import Buffer, as_numpy
from tilus.runtime.built import Built
from tilus.runtime.faults import Fault, faults_of, place
from tilus.runtime.resources import Resources
from tilus.runtime.simulate import simulate
from tilus.runtime.source_map import SourceMap
from tilus.simt import MemoryCount, Report


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a run showed.

    Attributes
    ----------
    kernel, target : str
    grid : tuple of int
    threads : int
        Of a block.
    landings : tuple of str
        How asynchronous copies landed, in a run each.
    faults : tuple of Fault
        Races, accesses out of bounds, reads of what nobody wrote, missing waits, deadlocks.
    data_independent : bool
        No address and no branch depends on what arrays hold: the run speaks for all contents of arrays like these,
        unless there were `equal_writes`.
    equal_writes : bool
        Threads wrote one place at once, and the same value: a race where contents make them differ.
    lines : mapping
        What the accesses of a line cost, in the order of the program; of None, those of tables and the like.
    instructions : mapping
        PTX instructions by opcode, counted once for each warp.
    resources : Resources
    printed : tuple of str
    """

    kernel: str
    target: str
    grid: tuple[int, ...]
    threads: int
    landings: tuple[str, ...]
    faults: tuple[Fault, ...]
    data_independent: bool
    equal_writes: bool
    lines: Mapping[Loc | None, MemoryCount]
    instructions: Mapping[str, int]
    resources: Resources
    printed: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.faults

    @property
    def conflicts(self) -> int:
        """Passes through the banks of shared memory beyond the least possible number."""
        return sum(cost.wavefronts - cost.ideal_wavefronts for cost in self.lines.values())

    def count(self, kind: str) -> int:
        """Return how many faults there are of a kind."""
        return sum(fault.kind == kind for fault in self.faults)

    def record(self) -> dict[str, Any]:
        """Return everything as what JSON can hold."""
        taken = self.resources
        return {
            "kernel": self.kernel,
            "target": self.target,
            "grid": list(self.grid),
            "threads": self.threads,
            "landings": list(self.landings),
            "ok": self.ok,
            "findings": [fault.record() for fault in self.faults],
            "data_independent": self.data_independent,
            "equal_writes": self.equal_writes,
            "bank_conflicts": self.conflicts,
            "lines": [{"loc": place(loc), **asdict(cost)} for loc, cost in self.lines.items()],
            "instructions": dict(self.instructions),
            "registers": taken.registers,
            "spill_bytes": taken.spills,
            "shared_bytes": taken.shared_bytes,
            "blocks_per_sm": taken.occupancy(self.threads),
            "occupancy": taken.occupied(self.threads),
            "printed": list(self.printed),
        }


def certify(
    built: Built,
    values: Sequence[Buffer | int | float],
    arrays: Sequence[Any],
    grid: Sequence[int],
    landings: Sequence[str],
) -> Certificate:
    """Run a kernel once for each landing of its asynchronous copies; arrays are written to by the first run."""
    if b"cp.async" not in built.files["kernel.ptx"]:
        landings = landings[:1]
    copies = [as_numpy(a).copy() if isinstance(v, Buffer) else a for v, a in zip(values, arrays, strict=True)]
    first = simulate(built, values, arrays, grid, landing=landings[0], metrics=True)
    others = [simulate(built, values, copies, grid, landing=landing) for landing in landings[1:]]
    # Most faults show however copies land: one of a kind for each line, as the first run saw it.
    faults = {(f.kind, f.loc, f.other): f for report in (*others, first) for f in faults_of(report, built)}
    return Certificate(
        kernel=built.program.name,
        target=built.target.code.name,
        grid=tuple(grid),
        threads=built.resources.max_threads,
        landings=tuple(landings),
        faults=tuple(faults.values()),
        data_independent=first.data_independent,
        equal_writes=first.equal_writes,
        lines=_by_line(first, SourceMap(built.ir, built.target.code)),
        instructions=dict(first.instructions.most_common()),
        resources=built.resources,
        printed=tuple(first.printed),
    )


def _by_line(report: Report, source_map: SourceMap) -> dict[Loc | None, MemoryCount]:
    places: dict[tuple[str, int] | None, Loc | None] = {}
    found: dict[Loc | None, MemoryCount] = {}
    for instruction in sorted(report.memory, key=source_map.line):
        loc = source_map.loc(instruction)
        first = places.setdefault((loc.file, loc.line) if loc else None, loc)
        found[first] = found.get(first, MemoryCount()) + report.memory[instruction]
    return found
