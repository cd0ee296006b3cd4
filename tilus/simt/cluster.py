"""Addresses in the shared memory of another block of the cluster (PTX ISA: `mapa`, `getctarank`)."""

from __future__ import annotations

import numpy as np

from tilus.simt.decode import Context, decoder
from tilus.simt.machine import Group, Step
from tilus.simt.memory import RANK_SHIFT
from tilus.simt.opcode import word_type

_LOW = np.uint64((1 << RANK_SHIFT) - 1)
_RANKS = np.uint64(0xFF << RANK_SHIFT)


@decoder("mapa")
def _map(context: Context) -> Step:
    """Decode the move of an address to another block of the cluster."""
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
