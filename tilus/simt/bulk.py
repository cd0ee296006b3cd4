"""Bulk and tensor copies between global and shared memory (PTX ISA, "cp.async.bulk", "cp.async.bulk.tensor").

What a copy brings lands late: when no thread can run, the newest copy first; or at once with early landing. A barrier
counts its bytes, and the copy is ordered before what follows a wait for that phase. Copies out of shared memory are
waited for in groups, like `cp.async`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilus.simt import tensormap
from tilus.simt.access import Access, access
from tilus.simt.decode import Context, Read
from tilus.simt.formats import Array
from tilus.simt.machine import Group, Machine, Step, as_group
from tilus.simt.mbarrier import Barrier, Barriers
from tilus.simt.memory import RANK_SHIFT, Memory
from tilus.simt.opcode import as_word, operation, view_type
from tilus.simt.shadow import WEAK
from tilus.simt.sync import Ordering
from tilus.simt.syntax import Address, Operand, Vector
from tilus.simt.tensormap import TensorMap

_PLAIN = Ordering("weak", WEAK, False)
_UNIT = 16


@dataclass(slots=True)
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
        self._check_source(transfer, addresses[1])
        self._check_target(transfer, addresses[0])
        if transfer.barrier is not None:
            self.loads.append(transfer)
            if not transfer.barrier.fenced:
                self.machine.find("proxy", "a copy uses an mbarrier before a fence after its initialisation",
                                  transfer.code, [transfer.thread])  # fmt: skip
                transfer.barrier.fenced = True
        else:
            transfer.group = int(self.committed[transfer.thread])
            self.stores.append(transfer)
        if self.machine.options.landing == "early":
            (self.loads if transfer.barrier is not None else self.stores).remove(transfer)
            self._read(transfer)
            self._write(transfer)
            if transfer.barrier is None:
                self.stores.append(transfer)

    def _check_source(self, transfer: Transfer, address: int) -> None:
        shadow = self.machine.shadows.get(transfer.from_space)
        if shadow is None:
            return
        cells = np.unique(transfer.source[transfer.source >= 0] // shadow.granularity)
        thread, where = np.array([transfer.thread]), np.array([address])
        if not shadow.valid[cells].all():
            self.machine.find("uninitialized", "a bulk copy reads memory that nobody has written", transfer.code, thread,
                              address=address, buffer=self.machine.describe(transfer.from_space, address))  # fmt: skip
        if transfer.from_space == "shared" and shadow.unfenced[cells].any():
            self.machine.find("proxy", "a bulk copy reads what was written without fence.proxy.async", transfer.code,
                              thread, address=address, buffer=self.machine.describe("shared", address))  # fmt: skip
        conflicts = shadow.read(thread, cells[None], WEAK, transfer.code)
        self.machine.race(conflicts, transfer.from_space, transfer.code, thread, where, "asynchronous read")
        if transfer.from_space == "shared":
            shadow.begin_read(transfer.thread, cells, transfer.code)
            transfer.cells["read"] = cells

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
        """Let the newest copy land, since nobody can run."""
        if not self.loads:
            copies = self.machine.units["copies"]
            return bool(copies.land_one())
        transfer = self.loads.pop()
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
                    self.machine.find("pending", "a block ends while a bulk copy still writes its shared memory",
                                      transfer.code, [transfer.thread])  # fmt: skip

    # --- decoding ---------------------------------------------------------------------------------------------------

    def decode(self, context: Context) -> Step:
        """Decode `cp.async.bulk...`, after `cp.async` was taken."""
        op = context.opcode
        reduces = op.take("reduce")
        for name in ("async", "bulk"):
            op.take(name)
        if op.take("commit_group"):
            return self._commit
        if op.take("wait_group"):
            return self._decode_wait(context)
        if op.take("prefetch"):
            return lambda group: None
        reduction = _reduction(context) if reduces else None
        return _decode_copy(self, context, reduction)

    def _commit(self, group: Group) -> None:
        self.committed[group] += 1

    def _decode_wait(self, context: Context) -> Step:
        read_only = context.opcode.take("read")
        context.opcode.finish()
        pending = getattr(context.operands[0], "bits", 0)
        return lambda group: self.wait(self.machine.numbers[group], pending, read_only=read_only)


def _reduction(context: Context) -> tuple[str, str] | None:
    op = context.opcode
    name = op.choose("add", "min", "max", "inc", "dec", "and", "or", "xor")
    op.take("noftz")
    if name in ("inc", "dec") or not name:
        raise context.error("this reduction is not known")
    kind = op.rest.pop() if op.rest[-1] in ("f16", "bf16", "f32", "f64", "u32", "s32", "u64", "s64", "b32", "b64") else ""
    return name, kind


def _reduce(memory: Memory, transfer: Transfer) -> None:
    assert transfer.reduce is not None
    assert transfer.data is not None
    name, kind = transfer.reduce
    dtype = view_type(kind)
    old = memory.bytes[transfer.to].view(dtype)
    form = f"{name}.{kind}"
    new = as_word(np.asarray(operation(form).function(old, transfer.data.view(dtype))), kind)
    memory.bytes[transfer.to] = new.view(np.uint8)


@dataclass(slots=True)
class _Form:
    """A copy's operands: spaces, address or map of each side, size, barrier, multicast mask."""

    to_space: str
    from_space: str
    to: Address
    source: Address
    size: Read | None
    barrier: Read | None
    mask: Read | None
    rank: int
    reduction: tuple[str, str] | None


def _decode_copy(unit: BulkCopies, context: Context, reduction: tuple[str, str] | None) -> Step:
    op = context.opcode
    tensor, multicast = op.take("tensor"), op.take("multicast::cluster")
    by_barrier = op.take("mbarrier::complete_tx::bytes")
    op.drop("bulk_group", "L2::cache_hint", "tile")
    rank = int((op.choose("1d", "2d", "3d", "4d", "5d") if tensor else "0d")[0])
    spaces = [s.partition("::")[0] for s in op.rest if s.partition("::")[0] in ("shared", "global")]
    op.drop("shared::cluster", "shared::cta", "global")
    op.drop("shared::cta")
    op.finish()
    to, source, *rest = context.operands
    if not isinstance(to, Address) or not isinstance(source, Address) or len(spaces) != 2:
        raise context.error("expected two addresses")
    size = context.read(rest.pop(0), "u32") if not tensor else None
    barrier = context.address(rest.pop(0)) if by_barrier else None
    mask = context.read(rest.pop(0), "u16") if multicast else None
    for hint in rest:
        context.read(hint, "b64")
    form = _Form(spaces[0], spaces[1], to, source, size, barrier, mask, rank, reduction)
    return _tensor_step(unit, context, form) if tensor else _flat_step(unit, context, form)


def _scalar(read: Read, machine: Machine, thread: int) -> int:
    return int(read(as_group(np.array([thread]), machine.threads))[0])


def _barrier(unit: BulkCopies, context: Context, form: _Form, thread: int, rank: int) -> Barrier | None:
    """Return the barrier of a copy; of a multicast, that at the same address in another block."""
    if form.barrier is None:
        return None
    machine = unit.machine
    address = _scalar(form.barrier, machine, thread) & 0xFFFFFFFF
    if rank >= 0:
        address = (address & ((1 << RANK_SHIFT) - 1)) | (rank + 1) << RANK_SHIFT
    acc = Access(machine, context.code, 8, "shared", "mbarrier operation", _PLAIN)
    who = np.array([thread])
    places, good = acc.locate("shared", np.array([address], np.uint64), who)
    barriers: Barriers = machine.units["mbarriers"]
    return barriers.get(int(places[0]), address, context.code, who) if good is None else None


def _ranks(unit: BulkCopies, form: _Form, thread: int) -> list[int]:
    """Return the blocks of the cluster that a copy is for; -1 is what the address itself says."""
    if form.mask is None:
        return [-1]
    mask = _scalar(form.mask, unit.machine, thread)
    return [r for r in range(unit.machine.cluster) if mask >> r & 1]


def _with_rank(address: int, rank: int) -> int:
    return address if rank < 0 else (address & ((1 << RANK_SHIFT) - 1)) | (rank + 1) << RANK_SHIFT


def _places(context: Context, space: str, address: int, nbytes: int, thread: int, verb: str) -> Array | None:
    """Return the places of the bytes at an address, or None if they do not all exist; faults are reported."""
    acc = Access(context.machine, context.code, nbytes, space, verb, _PLAIN)
    who, where = np.array([thread]), np.array([address], np.uint64)
    aligned = Access(context.machine, context.code, _UNIT, space, verb, _PLAIN)
    if address % _UNIT:
        aligned.locate(space, where, who)
        return None
    places, good = acc.places(space, where, who)
    if not good.all():
        acc._report("bounds", f"{verb} of {nbytes} bytes out of bounds", space, where, who, ~good)
        return None
    return places[0] + np.arange(nbytes)


def _flat_step(unit: BulkCopies, context: Context, form: _Form) -> Step:
    to, source, size = context.address(form.to), context.address(form.source), form.size
    assert size is not None
    machine = unit.machine

    def one(thread: int) -> None:
        nbytes = _scalar(size, machine, thread)
        if nbytes % _UNIT:
            machine.find("misaligned", f"a bulk copy of {nbytes} bytes: no multiple of {_UNIT}", context.code, [thread])
            return
        target, origin = (_scalar(x, machine, thread) for x in (to, source))
        from_places = _places(context, form.from_space, origin, nbytes, thread, "bulk read")
        for rank in _ranks(unit, form, thread):
            to_places = _places(context, form.to_space, _with_rank(target, rank), nbytes, thread, "bulk write")
            barrier = _barrier(unit, context, form, thread, rank)
            if from_places is None or to_places is None or (barrier is None and form.barrier is not None):
                continue
            transfer = Transfer(thread, context.code, form.to_space, form.from_space, to_places, from_places,
                                np.zeros(1, np.uint8), barrier, nbytes, form.reduction)  # fmt: skip
            unit.begin(transfer, (target, origin))

    return _for_each(machine, one)


def _for_each(machine: Machine, one: Callable[[int], None]) -> Step:
    def step(group: Group) -> None:
        for thread in machine.numbers[group]:
            one(int(thread))

    return step


def _tensor_step(unit: BulkCopies, context: Context, form: _Form) -> Step:
    machine = unit.machine
    loads = form.to_space == "shared"
    tensor, other = (form.source, form.to) if loads else (form.to, form.source)
    coordinates: Operand = tensor.extra[0]
    parts = coordinates.items if isinstance(coordinates, Vector) else (coordinates,)
    reads = [context.read(x, "s32") for x in parts]
    table, shared = context.address(Address(tensor.base, tensor.offset)), context.address(other)
    acc = access(context, tensormap.NBYTES, "generic", "read of a tensor map", _PLAIN)
    for name in {getattr(x, "name", "") for x in parts}:
        context.addresses.add(name)

    def find_map(thread: int) -> int | None:
        group = as_group(np.array([thread]), machine.threads)
        for space, addresses, threads in acc.by_space(group, table(group)):
            places, good = acc.places(space, addresses, threads)
            if good.all():
                start = int(places[0])
                number = tensormap.decode(acc.memory(space).bytes[start : start + tensormap.NBYTES].tobytes())
                if number is not None:
                    return number
        machine.find("bounds", "there is no tensor map at this address", context.code, [thread])
        return None

    def one(thread: int) -> None:
        number = find_map(thread)
        if number is None:
            return
        entry, start = unit.maps[number], [_scalar(x, machine, thread) for x in reads][::-1]
        if len(start) != entry.array.ndim or form.rank != len(start):
            machine.find("bounds", f"a tensor map of {entry.array.ndim} dimensions", context.code, [thread])
            return
        base = machine.globals.buffers[unit.numbers[number]].start
        elements, inside = entry.elements(start)
        size = entry.array.itemsize
        outside = (base + elements[:, None] * size + np.arange(size)).reshape(-1)
        keep = np.repeat(inside, size)
        address = _scalar(shared, machine, thread)
        for rank in _ranks(unit, form, thread):
            within = _shared_places(context, entry, _with_rank(address, rank), thread)
            barrier = _barrier(unit, context, form, thread, rank)
            if within is None or (barrier is None and form.barrier is not None):
                continue
            _begin_tensor(unit, context, form, thread, barrier, (entry, within, outside, keep, address))

    return _for_each(machine, one)


def _shared_places(context: Context, entry: TensorMap, address: int, thread: int) -> Array | None:
    machine = context.machine
    if address % entry.alignment:
        machine.find("misaligned", f"a box has to lie at a multiple of {entry.alignment} bytes", context.code, [thread],
                     address=address, buffer=machine.describe("shared", address))  # fmt: skip
        return None
    places = _places(context, "shared", address, entry.nbytes, thread, "tensor copy")
    if places is None:
        return None
    low = address & ((1 << RANK_SHIFT) - 1)
    return (places[0] - low + entry.shared(low)).reshape(-1)


def _begin_tensor(unit: BulkCopies, context: Context, form: _Form, thread: int, barrier: Barrier | None,
                  what: tuple[TensorMap, Array, Array, Array, int]) -> None:  # fmt: skip
    entry, within, outside, keep, address = what
    if form.to_space == "shared":
        nan = entry.fill == "nan"
        fill = np.full(len(keep), 0xFF if nan else 0, np.uint8)
        transfer = Transfer(thread, context.code, "shared", "global", within, np.where(keep, outside, -1), fill, barrier,
                            entry.nbytes)  # fmt: skip
    else:
        kind = {"f": "f", "i": "s", "u": "u"}.get(entry.array.dtype.kind, "bf") + str(8 * entry.array.itemsize)
        reduction = (form.reduction[0], kind) if form.reduction is not None else None
        transfer = Transfer(thread, context.code, "global", "shared", outside[keep], within[keep],
                            np.zeros(1, np.uint8), None, 0, reduction)  # fmt: skip
    unit.begin(transfer, (address, address))


class Proxies:
    """The fence between what threads write and what copies and tensor cores read."""

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

    def _fence_block(self, shadow: Any, threads: Array, block: int) -> None:
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

