"""Bulk and tensor copies as instructions (PTX ISA: `cp.async.bulk`, `cp.reduce.async.bulk`, `st.async`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tilus.simt import tensormap
from tilus.simt.access import Access, Part, access, window
from tilus.simt.bulk import BulkCopies, Transfer
from tilus.simt.decode import Context, Read, decoder
from tilus.simt.formats import Array
from tilus.simt.loads import items
from tilus.simt.machine import Group, Step
from tilus.simt.mbarrier import Barrier
from tilus.simt.memory import RANK_SHIFT
from tilus.simt.opcode import as_word
from tilus.simt.syntax import BYTES, Address
from tilus.simt.tensormap import TensorMap

_UNIT = 16
_NO_FILL = np.zeros(1, np.uint8)


@decoder("cp.async.bulk.commit_group")
def _commit(context: Context) -> Step:
    context.opcode.finish()
    unit: BulkCopies = context.machine.units["bulk"]

    def step(group: Group) -> None:
        unit.committed[group] += 1

    return step


@decoder("cp.async.bulk.wait_group")
def _wait(context: Context) -> Step:
    machine, read_only, pending = context.machine, context.opcode.take("read"), context.constant(context.operands[0])
    context.opcode.finish()
    return lambda group: machine.units["bulk"].wait(machine.numbers[group], pending, read_only=read_only)


@dataclass(slots=True)
class _Form:
    """What all copies say: spaces, both addresses, a barrier, a mask of blocks, a reduction, further operands."""

    context: Context
    to_space: str
    from_space: str
    to: Address
    source: Address
    size: Read | None
    barrier: Read | None
    mask: Read | None
    reduction: str

    @property
    def unit(self) -> BulkCopies:
        """The engine."""
        unit: BulkCopies = self.context.machine.units["bulk"]
        return unit

    def scalar(self, read: Read, thread: int) -> int:
        """Return an operand of one thread."""
        return int(read(slice(thread, thread + 1))[0])

    def locate(
        self,
        space: str,
        address: int,
        nbytes: int,
        thread: int,
        verb: str,
        alignment: int = _UNIT,
        *,
        is_data: bool = True,
    ) -> int | None:
        """Return the place of some bytes, or None if they are out of bounds or not aligned; faults are reported.

        Data has the bounds of its tensor, a barrier those of shared memory.
        """
        bounds = window(self.context) if is_data else None
        acc = Access(self.context.machine, self.context.code, nbytes, space, verb, window=bounds)
        part = Part(space, np.zeros(1, np.int64), np.array([address], np.uint64), np.array([thread]))
        if address % alignment:
            acc.report("misaligned", f"{verb} at an address that is no multiple of {alignment} bytes", part)
            return None
        acc.nbytes = min(nbytes, _UNIT)
        first = acc.locate(space, part.addresses, part.threads)
        last = acc.locate(space, part.addresses + np.uint64(nbytes - acc.nbytes), part.threads)
        return int(first.places[0]) if len(first.places) and len(last.places) else None

    def ranks(self, thread: int) -> list[int]:
        """Return the blocks of the cluster that a copy is for; -1 is the one that the address says."""
        if self.mask is None:
            return [-1]
        mask = self.scalar(self.mask, thread)
        return [r for r in range(self.context.machine.cluster) if mask >> r & 1]

    def find_barrier(self, thread: int, rank: int) -> Barrier | None:
        """Return the barrier of a copy; of a multicast, that at the same address in another block."""
        assert self.barrier is not None
        address = _with_rank(self.scalar(self.barrier, thread), rank)
        place = self.locate("shared", address, 8, thread, "mbarrier operation", 8, is_data=False)
        machine = self.context.machine
        if place is None:
            return None
        found: Barrier | None = machine.units["mbarriers"].get(place, address, self.context.code, np.array([thread]))
        return found


def _with_rank(address: int, rank: int) -> int:
    address &= 0xFFFFFFFF
    return address if rank < 0 else (address & ((1 << RANK_SHIFT) - 1)) | (rank + 1) << RANK_SHIFT


def _parse(context: Context, *, tensor: bool) -> _Form:
    op = context.opcode
    multicast, by_barrier = op.take("multicast::cluster"), op.take("mbarrier::complete_tx::bytes")
    op.drop("bulk_group", "L2::cache_hint", "tile", "noftz")
    reduction = (
        op.choose("add", "min", "max", "and", "or", "xor") if context.opcode.root == "cp" and _reduces(context) else ""
    )
    spaces = [op.choose("shared::cluster", "shared::cta", "global") for _ in range(2)]
    spaces.sort(key=context.instruction.opcode.index)
    to, source, *rest = context.operands
    if not isinstance(to, Address) or not isinstance(source, Address):
        raise context.error("expected two addresses")
    size = context.read(rest.pop(0), "u32") if not tensor else None
    barrier = context.address(rest.pop(0)) if by_barrier else None
    mask = context.read(rest.pop(0), "u16") if multicast else None
    bases = [s.partition("::")[0] for s in spaces]
    return _Form(context, bases[0], bases[1], to, source, size, barrier, mask, reduction)


def _reduces(context: Context) -> bool:
    return context.instruction.opcode.startswith("cp.reduce")


def _each(form: _Form, one: Callable[[int], None]) -> Step:
    def step(group: Group) -> None:
        for thread in form.context.machine.numbers[group]:
            one(int(thread))

    return step


def _begin(form: _Form, transfer: Transfer, rank: int, addresses: tuple[int, int]) -> None:
    """Find the barrier of a copy, if it has one, and begin."""
    if form.barrier is not None:
        transfer.barrier = form.find_barrier(transfer.thread, rank)
        if transfer.barrier is None:
            return
    form.unit.begin(transfer, addresses)


# --- flat copies ------------------------------------------------------------------------------------------------------


@decoder("cp.async.bulk", "cp.reduce.async.bulk")
def _flat(context: Context) -> Step:
    kind = context.opcode.type() if _reduces(context) else ""
    form = _parse(context, tensor=False)
    context.opcode.finish()
    to, source, size = context.address(form.to), context.address(form.source), form.size
    assert size is not None

    def one(thread: int) -> None:
        nbytes = form.scalar(size, thread)
        if nbytes % _UNIT:
            text = f"a bulk copy of {nbytes} bytes, which is no multiple of {_UNIT}"
            context.machine.find("misaligned", text, context.code, [thread])
            return
        target, origin = form.scalar(to, thread), form.scalar(source, thread)
        first = form.locate(form.from_space, origin, nbytes, thread, "bulk read")
        for rank in form.ranks(thread):
            there = _with_rank(target, rank) if form.to_space == "shared" else target
            place = form.locate(form.to_space, there, nbytes, thread, "bulk write")
            if first is None or place is None:
                continue
            run = np.arange(nbytes)
            reduction = (form.reduction, kind) if kind else None
            spaces = form.to_space, form.from_space
            transfer = Transfer(
                thread, context.code, *spaces, place + run, first + run, _NO_FILL, None, nbytes, reduction
            )
            _begin(form, transfer, rank, (target, origin))

    return _each(form, one)


@decoder("cp.async.bulk.prefetch")
def _prefetch(context: Context) -> Step:
    """Decode a prefetch of global memory, whose bounds are checked although it moves nothing."""
    context.opcode.drop("L2", "L2::cache_hint", "global")
    context.opcode.finish()
    source, size = context.address(context.operands[0]), context.read(context.operands[1], "u32")
    machine, acc = context.machine, access(context, 1, "global", "prefetch")

    def step(group: Group) -> None:
        threads, first, nbytes = machine.numbers[group], source(group), size(group)
        if ((first | nbytes.astype(np.uint64)) % np.uint64(_UNIT)).any():
            text = f"a prefetch at an address, or of a size, that is no multiple of {_UNIT} bytes"
            machine.find("misaligned", text, context.code, threads)
        for byte in (first, first + nbytes.astype(np.uint64) - np.uint64(1)):
            acc.locate("global", np.broadcast_to(byte, threads.shape), threads)

    return step


@decoder("st.async")
def _store(context: Context) -> Step:
    """Decode a store into another block's memory that a barrier there hears of."""
    op = context.opcode
    op.drop("weak", "shared::cluster", "mbarrier::complete_tx::bytes")
    kind = op.type()
    op.drop("v2", "v4")
    op.finish()
    target, value, barrier = context.operands
    if not isinstance(target, Address):
        raise context.error("expected an address")
    reads = [context.read(x, kind) for x in items(value)]
    nbytes = BYTES[kind] * len(reads)
    form = _Form(context, "shared", "shared", target, target, None, context.address(barrier), None, "")
    to = context.address(target)

    def one(thread: int) -> None:
        address = form.scalar(to, thread)
        place = form.locate("shared", address, nbytes, thread, "asynchronous store", nbytes)
        if place is None:
            return
        group = slice(thread, thread + 1)
        data = np.concatenate([as_word(np.broadcast_to(r(group), 1).copy(), kind) for r in reads]).view(np.uint8)
        to_places, nowhere = place + np.arange(nbytes), np.full(nbytes, -1)
        transfer = Transfer(
            thread, context.code, "shared", "shared", to_places, nowhere, data, nbytes=nbytes, data=data
        )
        _begin(form, transfer, -1, (address, address))

    return _each(form, one)


# --- tensor copies ----------------------------------------------------------------------------------------------------


@decoder("cp.async.bulk.tensor", "cp.reduce.async.bulk.tensor")
def _tensor(context: Context) -> Step:
    form = _parse(context, tensor=True)
    rank = int(context.opcode.choose("1d", "2d", "3d", "4d", "5d")[0])
    context.opcode.finish()
    tensor, other = (form.source, form.to) if form.to_space == "shared" else (form.to, form.source)
    reads = [context.read(x, "s32") for x in items(tensor.extra[0])]
    for x in items(tensor.extra[0]):
        context.addresses.add(getattr(x, "name", ""))
    if len(reads) != rank:
        raise context.error(f"expected {rank} coordinates")
    table = context.address(Address(tensor.base, tensor.offset))
    shared = context.address(other)
    acc = access(context, tensormap.NBYTES, "generic", "read of a tensor map")

    def one(thread: int) -> None:
        number = _find_map(form, acc, table, thread)
        if number is None or (entry := form.unit.maps[number]).array.ndim != rank:
            context.machine.find("bounds", f"there is no tensor map of {rank} dimensions here", context.code, [thread])
            return
        start = [form.scalar(x, thread) for x in reads][::-1]
        address = form.scalar(shared, thread)
        for block in form.ranks(thread):
            at = _with_rank(address, block)
            place = form.locate("shared", at, entry.nbytes, thread, "tensor copy", entry.alignment)
            if place is not None:
                transfer = _box(form, thread, entry, number, (place, at & ((1 << RANK_SHIFT) - 1)), start)
                _begin(form, transfer, block, (address, address))

    return _each(form, one)


def _find_map(form: _Form, acc: Access, table: Read, thread: int) -> int | None:
    group = slice(thread, thread + 1)
    for part in acc.parts(group, table(group)):
        first = int(part.places[0])
        return tensormap.decode(acc.memory(part.space).bytes[first : first + tensormap.NBYTES].tobytes())
    return None


def _box(form: _Form, thread: int, entry: TensorMap, number: int, at: tuple[int, int], start: list[int]) -> Transfer:
    """Return the copy of one box between the tensor and the place, which has an address, in shared memory."""
    place, address = at
    size = entry.array.itemsize
    base = form.context.machine.globals.buffers[form.unit.numbers[number]].start
    elements, inside = entry.elements(start)
    outer: Array = (base + elements[:, None] * size + np.arange(size)).reshape(-1)
    inner, keep = (entry.shared(address) + place - address).reshape(-1), np.repeat(inside, size)
    code = form.context.code
    if form.to_space == "shared":
        fill = np.full(len(keep), 0xFF if entry.fill == "nan" else 0, np.uint8)
        return Transfer(thread, code, "shared", "global", inner, np.where(keep, outer, -1), fill, nbytes=entry.nbytes)
    kind = {"f": "f", "i": "s", "u": "u"}.get(entry.array.dtype.kind, "bf") + str(8 * size)
    reduction = (form.reduction, kind) if form.reduction else None
    return Transfer(thread, code, "global", "shared", outer[keep], inner[keep], _NO_FILL, reduce=reduction)
