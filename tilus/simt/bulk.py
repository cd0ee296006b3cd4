"""Bulk and tensor copies under way, and the fence that they need (PTX ISA, "Asynchronous copy", "Proxies").

What a copy brings lands late: when no thread can run, the newest copy first; or at once with early landing. A barrier
counts its bytes, and the copy is ordered before what follows a wait for that phase. Copies out of shared memory are
waited for in groups, like `cp.async`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tilus.simt.decode import Context, decoder
from tilus.simt.formats import Array
from tilus.simt.machine import Group, Machine, Step
from tilus.simt.mbarrier import Barrier, Barriers
from tilus.simt.memory import Memory
from tilus.simt.opcode import as_word, operation, view_type
from tilus.simt.shadow import WEAK, Shadow
from tilus.simt.tensormap import TensorMap


@dataclass(slots=True, eq=False)
class Transfer:
    """One copy under way.

    Attributes
    ----------
    to, source : array
        Places of bytes, and from where each comes; -1 for what is filled in.
    """

    thread: int
    code: int
    to_space: str
    from_space: str
    to: Array
    source: Array
    fill: Array
    barrier: Barrier | None = None
    nbytes: int = 0
    reduce: tuple[str, str] | None = None
    group: int = 0
    data: Array | None = None
    cells: dict[str, Array] = field(default_factory=dict)


class BulkCopies:
    """Copies under way: those that a barrier hears of, and those of groups."""

    def __init__(self, machine: Machine, maps: Sequence[TensorMap], numbers: Sequence[int]) -> None:
        self.machine, self.maps, self.numbers = machine, maps, numbers
        self.loads: list[Transfer] = []
        self.stores: list[Transfer] = []
        self.committed = np.zeros(machine.threads, np.int64)
        machine.idle.append(self.land_one)
        machine.at_exit.append(self.on_exit)

    def memory(self, space: str) -> Memory:
        """Return a memory."""
        return self.machine.globals if space == "global" else self.machine.shared

    # --- beginning --------------------------------------------------------------------------------------------------

    def begin(self, transfer: Transfer, addresses: tuple[int, int]) -> None:
        """Check both sides of a copy and begin it."""
        if self.machine.options.dependent:
            spaces = transfer.to_space, transfer.from_space
            where = np.array([a for a, space in zip(addresses, spaces, strict=True) if space == "global"], np.uint64)
            self.machine.too_early(transfer.code, np.repeat(transfer.thread, len(where)), where, "bulk copy")
        self._check_source(transfer, addresses[1])
        self._check_target(transfer, addresses[0])
        early = self.machine.options.landing == "early"
        if early:
            self._read(transfer)
        if transfer.barrier is None:
            transfer.group = int(self.committed[transfer.thread])
            self.stores.append(transfer)
            return
        if not transfer.barrier.fenced and transfer.from_space == "global":
            text = "a copy uses an mbarrier before a fence after its initialisation"
            self.machine.find("proxy", text, transfer.code, [transfer.thread])
        if early:
            self._write(transfer)
        else:
            self.loads.append(transfer)

    def _check_source(self, transfer: Transfer, address: int) -> None:
        shadow = self.machine.shadows.get(transfer.from_space)
        if shadow is None:
            return
        cells = np.unique(transfer.source[transfer.source >= 0] // shadow.granularity)
        thread, where = np.array([transfer.thread]), np.array([address])
        if not shadow.valid[cells].all():
            self._fault("uninitialized", "a bulk copy reads memory that nobody has written", transfer, address)
        if transfer.from_space == "shared" and shadow.unfenced[cells].any():
            self._fault("proxy", "a bulk copy reads what was written without fence.proxy.async", transfer, address)
        conflicts = shadow.read(thread, cells[None], WEAK, transfer.code)
        self.machine.race(conflicts, transfer.from_space, transfer.code, thread, where, "asynchronous read")
        if transfer.from_space == "shared":
            shadow.begin_read(transfer.thread, cells, transfer.code)
            transfer.cells["read"] = cells

    def _fault(self, kind: str, text: str, transfer: Transfer, address: int) -> None:
        self.machine.find_at(kind, text, transfer.code, [transfer.thread], transfer.from_space, address)

    def _check_target(self, transfer: Transfer, address: int) -> None:
        shadow = self.machine.shadows.get(transfer.to_space)
        if shadow is None:
            return
        cells = np.unique(transfer.to // shadow.granularity)
        thread, where = np.array([transfer.thread]), np.array([address])
        conflicts = shadow.check_write(thread, cells[None], WEAK)
        if transfer.reduce is None:
            self.machine.race(conflicts, transfer.to_space, transfer.code, thread, where, "asynchronous write")
        owner = transfer.barrier.agent if transfer.barrier is not None else transfer.thread
        shadow.begin(np.array([owner]), cells[None], transfer.code)
        transfer.cells["write"] = cells

    # --- landing ----------------------------------------------------------------------------------------------------

    def land_one(self) -> bool:
        """Let the newest copy land, since nobody can run: of those that a thread waits for, if there are any."""
        wanted = [t for t in self.loads if t.barrier is not None and t.barrier.waiters]
        if not wanted and self.machine.units["copies"].land_one():
            return True
        if not self.loads:
            return False
        transfer = (wanted or self.loads)[-1]
        self.loads.remove(transfer)
        self._read(transfer)
        self._write(transfer)
        return True

    def _read(self, transfer: Transfer) -> None:
        if transfer.data is not None:
            return
        memory = self.memory(transfer.from_space)
        found = memory.bytes[np.maximum(transfer.source, 0)]
        transfer.data = np.where(transfer.source >= 0, found, transfer.fill)
        shadow = self.machine.shadows.get(transfer.from_space)
        if shadow is not None and "read" in transfer.cells:
            shadow.finish_read(transfer.thread, transfer.cells["read"])

    def _write(self, transfer: Transfer) -> None:
        assert transfer.data is not None
        memory = self.memory(transfer.to_space)
        if transfer.reduce is not None:
            _reduce(memory, transfer)
        else:
            memory.bytes[transfer.to] = transfer.data
        shadow = self.machine.shadows.get(transfer.to_space)
        if shadow is not None:
            owner = transfer.barrier.agent if transfer.barrier is not None else transfer.thread
            shadow.finish(np.array([owner]), transfer.cells["write"][None])
            shadow.unfenced[transfer.cells["write"]] = False
        if transfer.barrier is not None:
            barriers: Barriers = self.machine.units["mbarriers"]
            barriers.complete(transfer.barrier, transfer.nbytes)

    def wait(self, threads: Array, pending: int, *, read_only: bool) -> None:
        """Wait for the groups of threads but the last `pending`: until they were read, or also written."""
        due = [t for t in self.stores if t.thread in threads and t.group < self.committed[t.thread] - pending]
        for transfer in due:
            self._read(transfer)
            if not read_only:
                self._finish_store(transfer)

    def _finish_store(self, transfer: Transfer) -> None:
        self.stores.remove(transfer)
        self._read(transfer)
        self._write(transfer)

    def on_exit(self, threads: Array) -> None:
        """Let the stores of threads land; that their source may be gone by then is a fault."""
        for transfer in [t for t in self.stores if t.thread in threads]:
            if transfer.data is None:
                text = "a thread ends while its bulk copy still reads shared memory"
                self.machine.find("pending", text, transfer.code, [transfer.thread])
            self._finish_store(transfer)
        for transfer in [t for t in self.loads if t.thread in threads]:
            blocks = np.unique(transfer.to // self.machine.shared.stride)
            for block in blocks:
                rest = np.arange(block * self.machine.padded, (block + 1) * self.machine.padded)
                if not self.machine.alive(rest).any():
                    text = "a block ends while a bulk copy still writes its shared memory"
                    self.machine.find("pending", text, transfer.code, [transfer.thread])


def _reduce(memory: Memory, transfer: Transfer) -> None:
    assert transfer.reduce is not None
    assert transfer.data is not None
    name, kind = transfer.reduce
    dtype = view_type(kind)
    old = memory.bytes[transfer.to].view(dtype)
    new = as_word(np.asarray(operation(f"{name}.{kind}").function(old, transfer.data.view(dtype))), kind)
    memory.bytes[transfer.to] = new.view(np.uint8)


class Proxies:
    """The fence between what threads write and what copies and tensor cores read (`fence.proxy.async`)."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def fence(self, group: Group) -> None:
        """Let other proxies see what these threads wrote, and what is ordered before it."""
        machine = self.machine
        threads = machine.numbers[group]
        blocks = np.unique(machine.block_of[threads])
        machine.units["mbarriers"].fence(set(blocks.tolist()))
        shadow = machine.shadows.get("shared")
        if shadow is None:
            return
        for block in blocks:
            self._fence_block(shadow, threads[machine.block_of[threads] == block], int(block))

    def _fence_block(self, shadow: Shadow, threads: Array, block: int) -> None:
        per_block = self.machine.shared.stride // shadow.granularity
        first = block * per_block
        dirty = first + np.flatnonzero(shadow.unfenced[first : first + per_block])
        if not len(dirty):
            return
        left = np.ones(len(dirty), bool)
        representatives = threads[np.unique(threads >> 5, return_index=True)[1]]
        for thread in representatives:
            left &= shadow.unordered(shadow.writes[dirty][None], np.array([thread]), WEAK)[0]
        if left.any():
            from_thread = shadow.writers(dirty)
            left &= ~np.isin(from_thread, threads)
        shadow.unfenced[dirty[~left]] = False


@decoder("fence.proxy")
def _fence(context: Context) -> Step:
    op, machine = context.opcode, context.machine
    kind = op.choose("async", "alias", "tensormap::generic", "async::generic")
    op.drop("global", "shared::cta", "shared::cluster", "acquire", "release", "cta", "cluster", "gpu", "sys")
    op.drop("sync_restrict::shared::cta", "sync_restrict::shared::cluster")
    op.finish()
    return lambda group: machine.units["proxy"].fence(group) if kind == "async" else None
