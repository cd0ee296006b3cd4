"""Blocks of a cluster that reach into each other's shared memory (PTX ISA: `mapa`, `getctarank`, `st.async`)."""

from __future__ import annotations

import numpy as np

from tilus.simt.access import access
from tilus.simt.bulk import BulkCopies, Transfer
from tilus.simt.decode import Context, decoder
from tilus.simt.machine import Group, Step
from tilus.simt.memory import RANK_SHIFT
from tilus.simt.opcode import as_word, word_type
from tilus.simt.shadow import WEAK
from tilus.simt.sync import Ordering
from tilus.simt.syntax import BYTES, Vector

_LOW = np.uint64((1 << RANK_SHIFT) - 1)
_RANKS = np.uint64(0xFF << RANK_SHIFT)


@decoder("mapa")
def _map(context: Context) -> Step:
    """The same address in another block of the cluster."""
    op = context.opcode
    op.drop("shared::cluster")
    kind = op.type("u32", "u64")
    op.finish()
    target, source, block = context.operands
    write, read, rank = context.write(target, kind), context.read(source, kind), context.read(block, "u32")

    def step(group: Group) -> None:
        address = read(group).astype(np.uint64)
        there = (rank(group).astype(np.uint64) + np.uint64(1)) << np.uint64(RANK_SHIFT)
        write(group, ((address & ~_RANKS) | there).astype(word_type(kind)))

    return step


@decoder("getctarank")
def _rank(context: Context) -> Step:
    op = context.opcode
    op.drop("shared::cluster")
    kind = op.type("u32", "u64")
    op.finish()
    write, read = context.write(context.operands[0], "u32"), context.read(context.operands[1], kind)
    machine = context.machine

    def step(group: Group) -> None:
        rank = (read(group).astype(np.uint64) & _RANKS) >> np.uint64(RANK_SHIFT)
        own = machine.block_of[group] % machine.cluster
        write(group, np.where(rank > 0, rank.astype(np.int64) - 1, own).astype(np.uint32))

    return step


def store_async(context: Context) -> Step:
    """Decode `st.async`: a store into another block's memory that a barrier there hears of."""
    op = context.opcode
    op.drop("async", "weak", "shared::cluster", "mbarrier::complete_tx::bytes")
    kind = op.type()
    op.drop("v2", "v4")
    op.finish()
    target, value, barrier = context.operands
    items = value.items if isinstance(value, Vector) else (value,)
    nbytes = BYTES[kind] * len(items)
    acc = access(context, nbytes, "shared", "asynchronous store", Ordering("weak", WEAK, False))
    word = access(context, 8, "shared", "mbarrier operation", Ordering("weak", WEAK, False))
    to, bar, reads = context.address(target), context.address(barrier), [context.read(x, kind) for x in items]
    machine = context.machine

    def step(group: Group) -> None:
        unit: BulkCopies = machine.units["bulk"]
        threads = machine.numbers[group]
        where, bars = (np.broadcast_to(x(group), threads.shape) for x in (to, bar))
        places, good = acc.locate("shared", where, threads)
        at, fine = word.locate("shared", bars, threads)
        if good is not None or fine is not None:
            return
        values = np.stack([np.broadcast_to(as_word(r(group), kind), threads.shape) for r in reads], axis=1)
        for i, thread in enumerate(threads):
            found = machine.units["mbarriers"].get(int(at[i]), int(bars[i]), context.code, threads[i : i + 1])
            if found is None:
                continue
            data = np.ascontiguousarray(values[i]).view(np.uint8)
            transfer = Transfer(int(thread), context.code, "shared", "shared", places[i] + np.arange(nbytes),
                                np.full(nbytes, -1), data, found, nbytes, data=data)  # fmt: skip
            found.fenced = True  # not a copy of another proxy
            unit.begin(transfer, (int(where[i]), int(where[i])))

    return step
