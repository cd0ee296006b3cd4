"""What a run found: faults named by block, thread, address, buffer and line; counts; printed text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tilus.errors import VMError
from tilus.simt.syntax import Instruction, Source

Index3 = tuple[int, int, int]
_MOST_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault.

    Attributes
    ----------
    kind : str
        `race`, `bounds`, `misaligned`, `uninitialized`, `pending`, `divergence`, `deadlock`, `barrier`, `proxy`,
        `trap`.
    message : str
    instruction : Instruction or None
        The one that did it.
    block, thread : tuple of int, or None
        Indices of the first thread at fault.
    address : int or None
        As the instruction gave it.
    buffer : str
        Name of the parameter or variable, with the offset in bytes.
    other : Instruction or None
        The other side of a race.
    """

    kind: str
    message: str
    instruction: Instruction | None = None
    block: Index3 | None = None
    thread: Index3 | None = None
    address: int | None = None
    buffer: str = ""
    other: Instruction | None = None

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
    requests : int
        Warps that executed it.
    wavefronts, ideal_wavefronts : int
        Passes through the shared memory's banks, and how many the bytes need at least.
    sectors, ideal_sectors : int
        Distinct groups of 32 bytes of global memory, and how many the distinct bytes need at least.
    """

    requests: int = 0
    wavefronts: int = 0
    ideal_wavefronts: int = 0
    sectors: int = 0
    ideal_sectors: int = 0


@dataclass(slots=True)
class Report:
    """What a run found.

    Attributes
    ----------
    kernel, target : str
    findings : list of Finding
        One for each fault, kind and pair of instructions; `times` says how often each occurred.
    times : Counter
    instructions : Counter
        Executions by opcode, one for each warp.
    memory : dict
        Counts of `MemoryCount` by instruction.
    printed : list of str
        What the kernel printed.
    data_independent : bool
        No address, branch or predicate of a memory access depends on loaded data: what one run shows of races and
        bounds holds for all contents of the arrays.
    """

    kernel: str
    target: str
    findings: list[Finding] = field(default_factory=list)
    times: Counter[tuple[object, ...]] = field(default_factory=Counter)
    instructions: Counter[str] = field(default_factory=Counter)
    memory: dict[Instruction, MemoryCount] = field(default_factory=dict)
    printed: list[str] = field(default_factory=list)
    data_independent: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def add(self, finding: Finding, times: int = 1) -> None:
        """Keep a finding unless there is one of its kind for the same instructions; count it in any case."""
        key = (finding.kind, finding.instruction, finding.other)
        if key not in self.times or finding.instruction is None:
            self.findings.append(finding)
        self.times[key] += times

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
            times = self.times[finding.kind, finding.instruction, finding.other]
            texts.append(str(finding) + (f"\n  {times} times" if times > 1 else ""))
        if len(self.findings) > _MOST_SHOWN:
            texts.append(f"... and {len(self.findings) - _MOST_SHOWN} more")
        return head + f"{len(self.findings)} findings\n\n" + "\n\n".join(texts)
