"""Matrices of 8x8 elements of 16 bits, between shared memory and a warp (PTX ISA: `ldmatrix`, `stmatrix`, `movmatrix`).

The threads with the numbers 8i to 8i + 7 give the addresses of the rows of matrix i; lane l holds the two elements of
its row l / 4 from column 2 (l % 4) on, or of the transposed matrix.
"""

from __future__ import annotations

import numpy as np

from tilus.simt.access import access
from tilus.simt.decode import Context, decoder
from tilus.simt.formats import Array
from tilus.simt.loads import items
from tilus.simt.machine import LANES, Group, Step, as_group


def _transposed(rows: Array) -> Array:
    """Return the rows of matrices, shape (8 n, 16) in bytes, of the transposed matrices."""
    square = np.ascontiguousarray(rows).view(np.uint16).reshape(-1, 8, 8)
    return np.ascontiguousarray(square.transpose(0, 2, 1)).reshape(-1, 8).view(np.uint8)


@decoder("ldmatrix", "stmatrix")
def _matrix(context: Context) -> Step:
    op = context.opcode
    op.drop("sync", "aligned", "m8n8", "b16")
    count, trans = int(op.choose("x1", "x2", "x4")[1]), op.take("trans")
    acc = access(context, 16, op.choose("shared::cta", "shared"), op.root)
    op.finish()
    registers, address = context.operands if op.root == "ldmatrix" else context.operands[::-1]
    if len(items(registers)) != count:
        raise context.error(f"expected {count} registers")
    read, machine = context.address(address), context.machine
    loads = op.root == "ldmatrix"
    writes = [context.write(x, "b32") for x in items(registers)] if loads else []
    reads = [context.read(x, "b32") for x in items(registers)] if not loads else []

    def step(group: Group) -> None:
        lanes = machine.units["warps"].whole(group, context.code)
        whole = as_group(lanes.reshape(-1), machine.threads)
        providers = lanes[:, : 8 * count].reshape(-1)
        addresses = np.broadcast_to(read(whole), lanes.size).reshape(lanes.shape)[:, : 8 * count].reshape(-1)
        words = np.full((len(lanes), count, LANES), 0xFFFFFFFF, np.uint32)
        for i, value in enumerate(reads):
            words[:, i] = np.broadcast_to(value(whole), lanes.size).reshape(lanes.shape)
        rows = words.reshape(-1, 4).view(np.uint8)
        for part in acc.parts(providers, addresses):
            mine = np.searchsorted(providers, part.threads)
            if loads:
                acc.on_read(part)
                rows[mine] = acc.memory(part.space).rows(part.places, 16)
            else:
                halves = (_transposed(rows) if trans else rows)[mine].view(np.uint64)
                acc.write(part, [halves[:, 0], halves[:, 1]])
        found = (_transposed(rows) if trans else rows).view(np.uint32).reshape(words.shape)
        for i, write in enumerate(writes):
            write(whole, found[:, i].reshape(-1))

    return step


@decoder("movmatrix")
def _transpose(context: Context) -> Step:
    op = context.opcode
    op.drop("sync", "aligned", "m8n8", "trans", "b16")
    op.finish()
    write, read = context.write(context.operands[0], "b32"), context.read(context.operands[1], "b32")
    machine = context.machine

    def step(group: Group) -> None:
        lanes = machine.units["warps"].whole(group, context.code)
        whole = as_group(lanes.reshape(-1), machine.threads)
        words = np.ascontiguousarray(np.broadcast_to(read(whole), lanes.size))
        write(whole, _transposed(words.view(np.uint8)).reshape(-1).view(np.uint32))

    return step
