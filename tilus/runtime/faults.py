"""What the machine found in a kernel, in the words of the user's program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tilus.errors import Loc, VMError
from tilus.runtime.built import Built
from tilus.runtime.source_map import SourceMap
from tilus.simt import Finding, Report

_COMPILER = "generated code should never do this: please report it (TILUS_DUMP_DIR=<folder> keeps every stage)"
_HINTS = {
    "pending": "commit_group(), wait_group(n), then sync() come before what a copy brings is read or replaced",
    "bounds": "tiles of a view are masked, elements p[i] and offsets that memory holds are not: check the index",
    "uninitialized": "store to it first, with a sync() between",
    "deadlock": "all threads of a block have to come to the same sync(), and a loop has to end",
    "misaligned": "a promise (multiples=...) that the arguments do not keep?",
    "dependency": _COMPILER,
    "divergence": _COMPILER,
    "barrier": _COMPILER,
    "proxy": _COMPILER,
}
_RACE_HINTS = {
    "shared": "a sync() between the two orders them",
    "global": "sync() orders the threads of a block, and nothing orders blocks: let each write elements of its own, "
    "or use atomic_add",
}
_SHARED_BOUNDS = "nothing masks a tile that leaves its shared tensor: check the offset, such as a stage's number"


@dataclass(frozen=True, slots=True)
class Fault:
    """One finding.

    Attributes
    ----------
    kind, message : str
        As `simt.Finding` has them: `race`, `bounds`, ...
    loc, other : Loc or None
        The user's line, and that of the other access of a race.
    block, thread : tuple of int, or None
        The first at fault.
    buffer : str
        Where in memory, in the user's names.
    times : int
        How often it happened.
    hint : str or None
    """

    kind: str
    message: str
    loc: Loc | None
    other: Loc | None
    block: tuple[int, int, int] | None
    thread: tuple[int, int, int] | None
    buffer: str
    times: int
    hint: str | None

    def error(self) -> VMError:
        """Return it as an error, whose text has the line and a caret."""
        who = f"by thread {self.thread} of block {self.block}" if self.thread is not None else ""
        where = ", ".join(filter(None, (who, f"at {self.buffer}" if self.buffer else "")))
        often = f"; {self.times} times" if self.times > 1 else ""
        return VMError(f"{self.kind}: {self.message}\n{where}{often}".rstrip(), loc=self.loc, hint=self.hint)

    def record(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return {**asdict(self), "loc": place(self.loc), "other": place(self.other)}


def place(loc: Loc | None) -> dict[str, Any] | None:
    """Return a place as what JSON can hold."""
    return None if loc is None else {"file": loc.file, "line": loc.line, "column": loc.column}


def faults_of(report: Report, built: Built) -> list[Fault]:
    """Return a report's findings."""
    if report.ok:
        return []
    source_map = SourceMap(built.ir, built.target.code)
    return [_fault(finding, report.times_of(finding), source_map, built) for finding in report.findings]


def _fault(finding: Finding, times: int, source_map: SourceMap, built: Built) -> Fault:
    loc, other = source_map.loc(finding.instruction), source_map.loc(finding.other)
    buffer = "" if finding.address is None else f"address {finding.address:#x}, in no array"
    message = source_map.text(finding.message)
    if loc is None and finding.instruction is not None:
        message += f", {finding.instruction.place}: {finding.instruction.text}"
    return Fault(
        finding.kind,
        message,
        loc or built.program.loc,
        other,
        finding.block,
        finding.thread,
        source_map.buffer(finding.spot, finding.space) if finding.spot else buffer,
        times,
        _hint(finding, loc, other),
    )


def _hint(finding: Finding, loc: Loc | None, other: Loc | None) -> str | None:
    way = _HINTS.get(finding.kind)
    if finding.kind == "race":
        way = _RACE_HINTS.get(finding.space)
    if finding.kind == "bounds" and finding.space == "shared":
        way = _SHARED_BOUNDS
    if other is None:
        return way
    same_file = loc is not None and loc.file == other.file
    return f"the other access is {'on line ' if same_file else f'in {other.file}:'}{other.line}; {way}"


def as_error(faults: Sequence[Fault]) -> VMError:
    """Return the first fault as an error that names the others."""
    error = faults[0].error()
    rest = [f"{fault.kind} at {fault.loc}" for fault in faults[1:]]
    if rest:
        more = f"also {', '.join(rest)}"
        error.hint = f"{error.hint}\n{more}" if error.hint else more
    return error
