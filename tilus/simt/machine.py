"""All threads of some blocks, and how they proceed.

Every thread has its own program counter: the number of the straight-line piece of code ("piece") that it runs next.
The threads at the smallest counter run one piece together, as NumPy operations over all of them, in whichever warps
and blocks they are; so threads that went different ways meet again at the first piece that they share. A thread that
waits is parked, and takes no part until it is released; when no thread can go on, what is under way in memory lands,
and if that frees nobody it is a deadlock.

Now and then the warp that waited longest gets a turn out of order, so that loops on a flag let others proceed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from tilus.errors import VMError
from tilus.simt.formats import Array
from tilus.simt.memory import GlobalMemory, Memory, SharedMemory
from tilus.simt.program import Program
from tilus.simt.repetition import Repetition
from tilus.simt.report import Finding, Index3, Report, Spot
from tilus.simt.shadow import Clocks, Conflict, Shadow, epoch_code, epoch_thread, is_pending
from tilus.simt.syntax import Instruction, Register

LANES = 32
PARKED = 1 << 30
EXITED = PARKED + 1
_TURN = 16  # pieces between two turns of the warp that waited longest
_PATIENCE = 20  # after a finding, the part of the pieces that may still run

Group: TypeAlias = "slice | Array"
Step: TypeAlias = Callable[[Any], None]


@dataclass(slots=True)
class Options:
    """How to run: see `tilus.simt.run`."""

    landing: str = "late"
    sanitize: bool = True
    metrics: bool = False
    max_pieces: int = 200_000
    max_findings: int | None = None
    windows: Sequence[tuple[int, int, int]] = ()
    dependent: bool = False


@dataclass(slots=True)
class Shape:
    """The launch: extents of the grid, of a block and of a cluster, and bytes of dynamic shared memory."""

    grid: Index3
    block: Index3
    cluster: Index3 = (1, 1, 1)
    dynamic_shared: int = 0


@dataclass(slots=True)
class Piece:
    """Straight-line code: steps, and where it ends."""

    steps: list[Step]
    opcodes: list[str]


@dataclass
class Machine:
    """State of the resident blocks.

    Attributes
    ----------
    program, shape, options, report
        What runs, how, and what was found.
    blocks : int
        Resident blocks; `first` is the number of the first in the grid.
    rows : dict
        Registers: one word for each thread.
    valid : dict
        For registers that some path leaves unset: which threads set them.
    touched : dict
        For accumulators of tensor cores: which threads changed them since their last fence.
    pc, resume : array
        The piece that a thread runs next, and the one it goes on with when it is released.
    """

    program: Program
    shape: Shape
    options: Options
    report: Report
    globals: GlobalMemory
    params: Memory
    blocks: int
    first: int = 0
    rows: dict[str, Array] = field(default_factory=dict)
    valid: dict[str, Array] = field(default_factory=dict)
    touched: dict[str, Array] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)
    units: dict[str, Any] = field(default_factory=dict)  # barriers, copies, ...: see `launch`

    def __post_init__(self) -> None:
        x, y, z = self.shape.block
        self.threads_per_block = x * y * z
        self.warps_per_block = -(-self.threads_per_block // LANES)
        self.padded = self.warps_per_block * LANES
        self.cluster = int(np.prod(self.shape.cluster))
        self.threads = self.blocks * self.padded
        self.numbers = np.arange(self.threads)
        self.block_of = self.numbers // self.padded
        self.pc = np.where(self.numbers % self.padded < self.threads_per_block, 0, EXITED).astype(np.int32)
        self.resume = np.zeros(self.threads, np.int32)
        self.last_turn = np.zeros(self.threads // LANES, np.int64)
        self.early = np.full(self.threads, self.options.dependent)  # threads that have not waited for earlier kernels
        size = self.program.shared_bytes + self.shape.dynamic_shared
        names = [(address, name) for name, address in self.program.shared.items()]
        self.shared = SharedMemory(self.blocks, size, names)
        self.local_stride = -(-max(self.program.local_bytes, 1) // 16) * 16
        self.local = Memory(self.threads * self.local_stride, 0xFF)
        self.idle: list[Callable[[], bool]] = []  # what may land when nobody can run: returns whether it did
        self.at_last: list[Callable[[], bool]] = []  # what else may go on then: returns whether it did
        self.at_exit: list[Callable[[Array], None]] = []
        self.waiting: list[Callable[[], list[str]]] = []  # for reports of deadlocks
        self.clocks: Clocks | None = None
        self.shadows: dict[str, Shadow] = {}

    # --- registers --------------------------------------------------------------------------------------------------

    def row(self, register: Register, word: np.dtype[Any]) -> Array:
        """Return the words of a register."""
        if register.name not in self.rows:
            self.rows[register.name] = np.zeros(self.threads, word)
        return self.rows[register.name]

    def index3(self, thread: int) -> tuple[Index3, Index3]:
        """Return the indices of a thread's block and of the thread."""
        block, linear = divmod(int(thread), self.padded)
        x, y, z = (int(i[0]) for i in self.block_index(np.array([self.first + block])))
        return (x, y, z), _unravel(linear, self.shape.block)

    def block_index(self, numbers: Array) -> tuple[Array, Array, Array]:
        """Return the indices of blocks, which are numbered cluster by cluster."""
        grid, cluster = self.shape.grid, self.shape.cluster
        whole = tuple(g // c for g, c in zip(grid, cluster, strict=True))
        outer, inner = _digits(numbers // self.cluster, whole), _digits(numbers % self.cluster, cluster)
        x, y, z = (o * c + i for o, c, i in zip(outer, cluster, inner, strict=True))
        return x, y, z

    # --- findings ---------------------------------------------------------------------------------------------------

    def find(self, kind: str, message: str, code: int, threads: Array | Sequence[int], **more: Any) -> None:
        """Report a fault of the instruction at a position of the program; the first thread is named."""
        block, thread = self.index3(int(threads[0])) if len(threads) else (None, None)
        instruction = self.program.code[code] if code >= 0 else None
        finding = Finding(kind, message, instruction, block, thread, **more)
        self.report.add(finding, max(len(threads), 1))

    def race(
        self, conflicts: list[Conflict], space: str, code: int, threads: Array, addresses: Array, verb: str
    ) -> None:
        """Report the races of an access."""
        for conflict in conflicts:
            epoch = int(conflict.epoch[0])
            other = self.program.code[min(epoch_code(epoch), len(self.program.code) - 1)]
            access, kind = "write" if conflict.was_write else "read", "race"
            message = f"{verb} races with a {access} by {self.name(epoch)}"
            if is_pending(epoch):
                kind, message = "pending", f"{verb} where an asynchronous {access} by {self.name(epoch)} is under way"
            address = int(addresses[conflict.element[0]])
            self.find_at(kind, message, code, threads[conflict.element], space, address, other=other)

    def name(self, epoch: int) -> str:
        """Return the name of the thread of an epoch."""
        thread = epoch_thread(epoch)
        if thread < 0:
            return "a thread of an earlier block"
        if thread >= self.threads:
            return "a copy or a product"
        block, inside = self.index3(thread)
        return f"thread {inside} of block {block}"

    def find_at(
        self, kind: str, message: str, code: int, threads: Array | Sequence[int], space: str, address: int, **more: Any
    ) -> None:
        """Report a fault at an address."""
        spot: Spot | None = Spot(f"{space} memory", address)
        if space in ("global", "shared"):
            spot = (self.globals if space == "global" else self.shared).spot(address)
        self.find(kind, message, code, threads, address=address, space=space, spot=spot, **more)

    def too_early(self, code: int, threads: Array, addresses: Array, verb: str) -> None:
        """Report accesses to arguments by threads that have not waited for earlier kernels."""
        early = self.early[threads] & self.globals.is_argument(addresses)
        if early.any():
            text = f"{verb} before griddepcontrol.wait: an earlier kernel may still use the memory"
            self.find_at("dependency", text, code, threads[early], "global", int(addresses[early][0]))

    # --- proceeding -------------------------------------------------------------------------------------------------

    def alive(self, threads: Array) -> Array:
        """Return which threads have not exited."""
        found: Array = self.pc[threads] != EXITED
        return found

    def park(self, group: Group) -> None:
        """Let threads wait; they go on where they would have now."""
        self.resume[group] = self.pc[group]
        self.pc[group] = PARKED

    def release(self, threads: Array) -> None:
        """Let parked threads go on."""
        self.pc[threads] = self.resume[threads]

    def leave(self, group: Group) -> None:
        """Let threads end."""
        self.pc[group] = EXITED
        for hook in self.at_exit:
            hook(self.numbers[group])

    def run(self) -> None:
        """Run until every thread has ended, or none can go on."""
        tick, repetition = 0, Repetition(self, _TURN)
        while not self.enough():
            low = int(self.pc.min())
            if low < PARKED:
                if tick >= self.options.max_pieces // (1 if self.report.ok else _PATIENCE):
                    self.endless(f"no end after {tick} pieces of code: a loop on what never comes?")
                    return
                number, group = self.next_group(low, tick)
                self.run_piece(number, group)
                tick += 1
                if since := repetition.after(number, tick):
                    self.endless(
                        f"no end: nothing is other than {since} pieces of code ago: a loop on what never comes?"
                    )
                    return
            elif not any(go_on() for go_on in (*self.idle, *self.at_last)):
                if (self.pc == PARKED).any():
                    self.deadlock()
                return

    def enough(self) -> bool:
        """Return whether there are as many findings as are wanted."""
        most = self.options.max_findings
        return most is not None and len(self.report.findings) >= most

    def endless(self, text: str) -> None:
        """Report that threads still run."""
        going = self.numbers[self.pc < PARKED]
        self.find("deadlock", text, self.before(int(self.pc[going[0]]) + 1), going)

    def next_group(self, low: int, tick: int) -> tuple[int, Group]:
        """Return a piece and the threads to run it."""
        if tick % _TURN == _TURN - 1:
            per_warp = self.pc.reshape(-1, LANES).min(1)
            turns = np.where(per_warp < PARKED, self.last_turn, np.iinfo(np.int64).max)
            low = int(per_warp[turns.argmin()])
            members = np.repeat(per_warp == low, LANES) & (self.pc == low)
        else:
            members = self.pc == low
        threads = np.flatnonzero(members)
        self.last_turn[threads >> 5] = tick
        return low, as_group(threads, self.threads)

    def run_piece(self, number: int, group: Group) -> None:
        """Run one piece for threads."""
        piece = self.pieces[number]
        self.report.pieces += 1
        self.pc[group] = number + 1
        if self.options.metrics:
            threads = self.numbers[group]
            warps = len(np.unique(threads >> 5))
            for opcode in piece.opcodes:
                self.report.instructions[opcode] += warps
        for step in piece.steps:
            step(group)

    def deadlock(self) -> None:
        """Report who waits for what."""
        waits = [text for unit in self.waiting for text in unit()]
        parked = np.flatnonzero(self.pc == PARKED)
        text = "\n    ".join(waits[:8] + ([f"... and {len(waits) - 8} more"] if len(waits) > 8 else []))
        where = self.before(int(self.resume[parked[0]]))
        self.find("deadlock", f"{len(parked)} threads wait for ever:\n    {text}", where, parked)

    def before(self, piece: int) -> int:
        """Return the position of the last instruction before a piece."""
        starts = [*self.program.leaders, len(self.program.code)]
        return max(starts[min(piece, len(starts) - 1)] - 1, 0)


def as_group(threads: Array, total: int) -> Group:
    """Return threads, in order, as a slice if they are neighbours: then registers are read without a copy."""
    if len(threads) == total:
        return slice(None)
    if len(threads) and threads[-1] - threads[0] + 1 == len(threads):
        return slice(int(threads[0]), int(threads[-1]) + 1)
    return threads


def _digits(numbers: Array, extents: tuple[int, ...]) -> tuple[Array, Array, Array]:
    return numbers % extents[0], numbers // extents[0] % extents[1], numbers // (extents[0] * extents[1])


def _unravel(number: int, extents: Index3) -> Index3:
    x, y, z = (int(i[0]) for i in _digits(np.array([number]), extents))
    return x, y, z


def unsupported(instruction: Instruction, reason: str) -> VMError:
    """Return the error for an instruction that the machine does not run."""
    return VMError(f"{instruction.place}: `{instruction.text}`: {reason}")
