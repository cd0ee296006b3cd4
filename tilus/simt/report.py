"""What a run found: faults named by block, thread, address, buffer and line; counts; printed text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tilus.errors import VMError
from tilus.simt.syntax import Instruction, Source

Index3 = tuple[int, int, int]
_MOST_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in memory.

    Attributes
    ----------
    name : str
        Of the parameter or variable there, or before it.
    offset : int
        From its start, in bytes.
    nbytes : int or None
        Its size, where that is known.
    """

    name: str
    offset: int
    nbytes: int | None = None

    def __str__(self) -> str:
        size = "" if self.nbytes is None else f" ({self.nbytes} bytes)"
        return f"{self.name}{size} at byte {self.offset}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault.

    Attributes
    ----------
    kind : str
        `race`, `bounds`, `misaligned`, `uninitialized`, `pending`, `divergence`, `deadlock`, `barrier`, `proxy`,
        `dependency`, `trap`.
    message : str
    instruction : Instruction or None
        The one that did it.
    block, thread : tuple of int, or None
        Indices of the first thread at fault.
    address : int or None
        As the instruction gave it.
    space : str
        `shared`, `global`, ...: the memory that the address is of.
    spot : Spot or None
        What lies at the address; None if nothing is near.
    other : Instruction or None
        The other side of a race.
    """

    kind: str
    message: str
    instruction: Instruction | None = None
    block: Index3 | None = None
    thread: Index3 | None = None
    address: int | None = None
    space: str = ""
    spot: Spot | None = None
    other: Instruction | None = None

    @property
    def buffer(self) -> str:
        """What lies at the address, as text."""
        return str(self.spot) if self.spot else "no buffer" if self.space == "global" else ""

    @property
    def line(self) -> int:
        """Line of the PTX text; 0 if the fault belongs to no instruction."""
        return self.instruction.line if self.instruction else 0

    @property
    def source(self) -> Source | None:
        """The CUDA line, where the PTX has line information."""
        return self.instruction.source if self.instruction else None

    def __str__(self) -> str:
        parts = [f"{self.kind}: {self.message}"]
        if self.block is not None and self.thread is not None:
            parts.append(f"  by thread {self.thread} of block {self.block}")
        if self.address is not None:
            parts.append(f"  at address {self.address:#x}" + (f", {self.buffer}" if self.buffer else ""))
        if self.instruction is not None:
            parts.append(f"  {self.instruction.place}: {self.instruction.text}")
        if self.other is not None:
            parts.append(f"  other access, {self.other.place}: {self.other.text}")
        return "\n".join(parts)


@dataclass(slots=True)
class MemoryCount:
    """How often an instruction went to memory, and what that cost.

    Attributes
    ----------
    shared_requests, wavefronts, ideal_wavefronts : int
        Accesses of warps to shared memory, passes through its banks, and how many the bytes need at least.
    global_requests, sectors, ideal_sectors : int
        Accesses of warps to global memory, distinct groups of 32 bytes there, and how many the distinct bytes need at
        least.
    """

    shared_requests: int = 0
    wavefronts: int = 0
    ideal_wavefronts: int = 0
    global_requests: int = 0
    sectors: int = 0
    ideal_sectors: int = 0

    def __add__(self, other: MemoryCount) -> MemoryCount:
        return MemoryCount(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(slots=True)
class Report:
    """What a run found.

    Attributes
    ----------
    kernel, target : str
    findings : list of Finding
        One for each fault, kind and pair of instructions; `times` says how often each occurred.
    times : Counter
    pieces : int
        Pieces of straight-line code that were run.
    instructions : Counter
        Executions by opcode, one for each warp.
    memory : dict
        Counts of `MemoryCount` by instruction.
    printed : list of str
        What the kernel printed.
    data_independent : bool
        No address, branch or predicate of a memory access depends on loaded data: what one run shows of races and
        bounds holds for all contents of the arrays, unless there were `equal_writes`.
    equal_writes : bool
        Threads wrote one place at once, and the same value, which is a race where contents make them differ.
    """

    kernel: str
    target: str
    findings: list[Finding] = field(default_factory=list)
    times: Counter[tuple[object, ...]] = field(default_factory=Counter)
    pieces: int = 0
    instructions: Counter[str] = field(default_factory=Counter)
    memory: dict[Instruction, MemoryCount] = field(default_factory=dict)
    printed: list[str] = field(default_factory=list)
    data_independent: bool = False
    equal_writes: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def add(self, finding: Finding, times: int = 1) -> None:
        """Keep a finding unless there is one of its kind for the same instructions; count it in any case."""
        if not self.times_of(finding) or finding.instruction is None:
            self.findings.append(finding)
        self.times[finding.kind, finding.instruction, finding.other] += times

    def times_of(self, finding: Finding) -> int:
        """Return how often a fault occurred."""
        return self.times[finding.kind, finding.instruction, finding.other]

    def check(self) -> Report:
        """Return the report itself if nothing was found.

        Raises
        ------
        VMError
            With all findings.
        """
        if self.findings:
            raise VMError(str(self))
        return self

    @property
    def wavefronts(self) -> tuple[int, int]:
        """Passes through the banks of shared memory, and the least possible number."""
        counts = self.memory.values()
        return sum(c.wavefronts for c in counts), sum(c.ideal_wavefronts for c in counts)

    @property
    def sectors(self) -> tuple[int, int]:
        """Sectors of global memory that were asked for, and the least possible number."""
        counts = self.memory.values()
        return sum(c.sectors for c in counts), sum(c.ideal_sectors for c in counts)

    def __str__(self) -> str:
        head = f"{self.kernel} on {self.target}: "
        if self.ok:
            return head + "no findings"
        texts = []
        for finding in self.findings[:_MOST_SHOWN]:
            times = self.times_of(finding)
            texts.append(str(finding) + (f"\n  {times} times" if times > 1 else ""))
        if len(self.findings) > _MOST_SHOWN:
            texts.append(f"... and {len(self.findings) - _MOST_SHOWN} more")
        return head + f"{len(self.findings)} findings\n\n" + "\n\n".join(texts)
