"""Loads, stores and atomic operations (PTX ISA: `ld`, `st`, `atom`, `red`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tilus.simt.access import access
from tilus.simt.decode import Context, decoder
from tilus.simt.formats import Array
from tilus.simt.machine import Group, Step, as_group
from tilus.simt.memory import Memory
from tilus.simt.opcode import Opcode, as_word, operation, view_type, word_type
from tilus.simt.shadow import IN_BLOCK, IN_DEVICE
from tilus.simt.sync import Ordering, ordering
from tilus.simt.syntax import BYTES, Operand, Vector

_HINTS = (
    "nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "L1::evict_normal", "L1::evict_unchanged", "L1::evict_first",
    "L1::evict_last", "L1::no_allocate", "L2::evict_first", "L2::evict_last", "L2::evict_normal", "L2::cache_hint",
    "L2::64B", "L2::128B", "L2::256B", "unified", "noftz",
)  # fmt: skip
_SPACES = ("global", "shared::cta", "shared::cluster", "shared", "local", "const", "param")


def items(operand: Operand) -> tuple[Operand, ...]:
    """Return the elements of a vector, or a single operand."""
    return operand.items if isinstance(operand, Vector) else (operand,)


def _form(op: Opcode) -> tuple[str, int, str]:
    """Return the space, the length of the vector, and the type; what is left says what an atomic operation does."""
    kind = op.type()
    op.drop(*_HINTS)
    count = int(op.choose("v2", "v4", "v8", default="v1")[1])
    return op.choose(*_SPACES), count, kind


@decoder("ld", "ldu")
def _load(context: Context) -> Step:
    op = context.opcode
    order = ordering(op)
    space, count, kind = _form(op)
    op.finish()
    size = BYTES[kind]
    acc = access(context, size * count, space, "load", order)
    read = context.address(context.operands[1])
    writes = [context.write(x, kind) for x in items(context.operands[0])]
    poison = np.full(1, (1 << 8 * size) - 1, f"u{size}")
    machine = acc.machine

    def step(group: Group) -> None:
        parts = list(acc.parts(group, read(group)))
        whole = len(parts) == 1 and len(parts[0].threads) == len(machine.numbers[group])
        if not whole:
            for write in writes:  # what lies out of bounds is garbage
                write(group, poison)
        for part in parts:
            acc.on_read(part)
            where = group if whole else as_group(part.threads, machine.threads)
            for write, value in zip(writes, acc.memory(part.space).load(part.places, size, count), strict=True):
                write(where, value)
            order.after_read(machine, part.space, part.places, part.threads)

    return step


@decoder("st")
def _store(context: Context) -> Step:
    op = context.opcode
    order = ordering(op)
    space, count, kind = _form(op)
    op.finish()
    acc = access(context, BYTES[kind] * count, space, "store", order)
    read = context.address(context.operands[0])
    reads = [context.read(x, f"b{8 * BYTES[kind]}") for x in items(context.operands[1])]

    def step(group: Group) -> None:
        threads = acc.machine.numbers[group]
        data = [np.broadcast_to(r(group), threads.shape) for r in reads]
        for part in acc.parts(group, read(group)):
            values = data if len(part.threads) == len(threads) else _chosen(data, threads, part.threads)
            order.before_write(acc.machine, part.space, part.places, part.threads)
            acc.write(part, values)

    return step


def _chosen(data: list[Array], threads: Array, some: Array) -> list[Array]:
    which = np.searchsorted(threads, some)
    return [values[which] for values in data]


# --- atomic operations ------------------------------------------------------------------------------------------------

Update = Callable[..., Array]
_UPDATES: dict[str, tuple[Update, int]] = {  # what is put in place of the old value, and the number of operands
    "exch": (lambda old, new: new, 1),
    "cas": (lambda old, expected, new: np.where(old == expected, new, old), 2),
    "inc": (lambda old, most: np.where(old >= most, 0, old + 1), 1),
    "dec": (lambda old, most: np.where((old == 0) | (old > most), most, old - 1), 1),
}


def _update(op: Opcode, kind: str) -> tuple[Update, int]:
    name = op.choose(*_UPDATES, "add", "min", "max", "and", "or", "xor")
    if not name:
        raise op.unknown("no such atomic operation")
    if name in _UPDATES:
        return _UPDATES[name]
    ftz = ".ftz" if (name, kind) == ("add", "f32") and op.take("ftz") else ""
    return operation(f"{name}{ftz}.{kind}").function, 1


@decoder("atom", "red")
def _atomic(context: Context) -> Step:
    op = context.opcode
    order = ordering(op)
    if not order.strength:
        order = Ordering("relaxed", IN_BLOCK if order.in_block else IN_DEVICE, order.in_block)
    space, count, kind = _form(op)
    update, taken = _update(op, kind)
    op.finish()
    operands, fetch = context.operands, op.root == "atom"
    acc = access(context, BYTES[kind] * count, space, "atomic operation", order)
    read = context.address(operands[fetch])
    columns = [[context.read(x, kind) for x in items(o)] for o in operands[1 + fetch : 1 + fetch + taken]]
    writes = [context.write(x, kind) for x in items(operands[0])] if fetch else []
    machine = acc.machine

    def step(group: Group) -> None:
        threads = machine.numbers[group]
        data = [[np.broadcast_to(r(group), threads.shape) for r in column] for column in columns]
        for part in acc.parts(group, read(group)):
            values = [_chosen(column, threads, part.threads) for column in data]
            order.before_write(machine, part.space, part.places, part.threads, replace=False)
            acc.on_write(part, None)
            old = _serialize(acc.memory(part.space), part.places, kind, values, update)
            order.after_read(machine, part.space, part.places, part.threads)
            for write, value in zip(writes, old, strict=False):
                write(as_group(part.threads, machine.threads), value)

    return step


def _serialize(memory: Memory, places: Array, kind: str, values: list[list[Array]], update: Update) -> list[Array]:
    """Do atomic operations in the order of the threads; return what each found."""
    size, count, dtype = BYTES[kind], len(values[0]), view_type(kind)
    found = [np.zeros(len(places), word_type(kind)) for _ in range(count)]
    left = np.arange(len(places))
    while len(left):
        _, first = np.unique(places[left], return_index=True)
        now = left[first]
        old = memory.load(places[now], size, count)
        new = []
        for i in range(count):
            found[i][now] = old[i]
            new.append(as_word(np.asarray(update(old[i].view(dtype), *(v[i][now] for v in values))), kind))
        memory.store(places[now], new)
        left = np.delete(left, first)
    return found
