"""Loads, stores, atomic operations, and copies to shared memory (PTX ISA: `ld`, `st`, `atom`, `red`, `cp.async`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tilus.simt import metrics
from tilus.simt.decode import Context, decoder
from tilus.simt.formats import Array
from tilus.simt.machine import Group, Machine, Step, as_group
from tilus.simt.memory import SPACE_BITS, SPACES, Memory
from tilus.simt.opcode import Opcode, as_word, operation, view_type, word_type
from tilus.simt.shadow import IN_BLOCK, IN_DEVICE, WEAK, Conflict
from tilus.simt.sync import Ordering
from tilus.simt.syntax import BYTES, Address, Operand, Symbol, Vector

_HINTS = (
    "nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "L1::evict_normal", "L1::evict_unchanged", "L1::evict_first",
    "L1::evict_last", "L1::no_allocate", "L2::evict_first", "L2::evict_last", "L2::evict_normal", "L2::cache_hint",
    "L2::64B", "L2::128B", "L2::256B", "unified",
)  # fmt: skip
_SPACES = ("global", "shared::cta", "shared::cluster", "shared", "local", "const", "param")


@dataclass(slots=True)
class Access:
    """What a memory instruction does: how many bytes for each thread, to which space, with which guarantees."""

    machine: Machine
    code: int
    nbytes: int
    space: str
    verb: str
    ordering: Ordering

    def memory(self, space: str) -> Memory:
        """Return the memory of a space."""
        machine = self.machine
        return {"global": machine.globals, "shared": machine.shared, "local": machine.local}.get(space, machine.params)

    def places(self, space: str, addresses: Array, threads: Array) -> tuple[Array, Array]:
        """Return places in the memory, and which threads stay inside."""
        machine, nbytes = self.machine, self.nbytes
        match space:
            case "global":
                return machine.globals.locate(addresses, nbytes)
            case "shared":
                return machine.shared.locate(addresses, nbytes, machine.block_of[threads], machine.cluster)
            case "local":
                inside = addresses.astype(np.int64) & 0xFFFFFFFF
                return threads * machine.local_stride + inside, inside + nbytes <= machine.program.local_bytes
        inside = addresses.astype(np.int64) & 0xFFFFFFFF
        return inside, inside + nbytes <= machine.params.nbytes

    def locate(self, space: str, addresses: Array, threads: Array) -> tuple[Array, Array | None]:
        """Return aligned places, and which threads may go on (None: all). Faults are reported."""
        places, good = self.places(space, addresses, threads)
        off = places % self.nbytes
        if off.any() and (wrong := good & (off != 0)).any():
            self._report("misaligned", f"{self.verb} of {self.nbytes} bytes at an address that is no multiple of it",
                         space, addresses, threads, wrong)  # fmt: skip
            places = places - off
        if good.all():
            return places, None
        self._report("bounds", f"{self.verb} of {self.nbytes} bytes out of bounds", space, addresses, threads, ~good)
        return np.where(good, places, 0), good

    def _report(self, kind: str, text: str, space: str, addresses: Array, threads: Array, which: Array) -> None:
        addresses = np.broadcast_to(addresses, threads.shape)
        which = np.broadcast_to(which, threads.shape)
        address = int(addresses[which][0])
        self.machine.find(kind, text, self.code, threads[which], address=address,
                          buffer=self.machine.describe(space, address))  # fmt: skip

    def by_space(self, group: Group, addresses: Array) -> list[tuple[str, Array, Array]]:
        """Return (space, addresses, threads) for each space that a group's addresses fall into."""
        threads = self.machine.numbers[group]
        if len(addresses) != len(threads):
            addresses = np.broadcast_to(addresses, threads.shape)
        if self.space != "generic":
            return [(self.space, addresses, threads)]
        kinds = np.minimum(addresses >> np.uint64(SPACE_BITS), np.uint64(3)).astype(np.int64)
        low = np.uint64((1 << SPACE_BITS) - 1)
        return [(SPACES[k], addresses[kinds == k] & low, threads[kinds == k]) for k in np.unique(kinds)]

    # --- checks ---------------------------------------------------------------------------------------------------

    def on_read(self, space: str, places: Array, addresses: Array, threads: Array) -> None:
        """Count, and check that what is read was written and is not being written."""
        self._count(space, addresses, threads)
        shadow = self.machine.shadows.get(space)
        if shadow is None:
            return
        cells = shadow.cells(places, self.nbytes)
        valid = shadow.valid[cells]
        if not valid.all():
            self._report("uninitialized", f"{self.verb} of memory that nobody has written", space, addresses, threads,
                         ~valid.all(1))  # fmt: skip
            shadow.valid[cells] = True
        conflicts = shadow.read(threads, cells, self.ordering.strength, self.code)
        self.machine.race(conflicts, space, self.code, threads, addresses, self.verb)

    def on_write(self, space: str, places: Array, addresses: Array, threads: Array, values: list[Array]) -> None:
        """Count, and check that nobody else reads or writes what is written; equal values do not conflict."""
        self._count(space, addresses, threads)
        shadow = self.machine.shadows.get(space)
        if shadow is None:
            return
        cells = shadow.cells(places, self.nbytes)
        conflicts = shadow.write(threads, cells, self.ordering.strength, self.code)
        shadow.unfenced[cells] = True
        if conflicts:
            changed = self._changes(space, places, values)
            conflicts = [c for x in conflicts if (c := _only(x, changed)) is not None]
        self.machine.race(conflicts, space, self.code, threads, addresses, self.verb)

    def _changes(self, space: str, places: Array, values: list[Array]) -> Array:
        old = self.memory(space).load(places, values[0].dtype.itemsize, len(values))
        return np.any([o != v for o, v in zip(old, values, strict=True)], axis=0)

    def after_write(self, space: str, places: Array, addresses: Array, threads: Array, values: list[Array]) -> None:
        """Check that threads that wrote to one place together wrote one value."""
        if space not in self.machine.shadows:
            return
        lost = self._changes(space, places, values)
        if lost.any():
            self._report("race", f"{self.verb}: threads write different values to one place at once", space, addresses,
                         threads, lost)  # fmt: skip

    def _count(self, space: str, addresses: Array, threads: Array) -> None:
        if self.machine.options.metrics and space in ("shared", "global"):
            metrics.count(self.machine.report, self.machine.program.code[self.code], space, addresses, threads, self.nbytes)


def _only(conflict: Conflict, keep: Array) -> Conflict | None:
    """Return what is left of a conflict: races with writes of the same value are none."""
    if not conflict.was_write:
        return conflict
    kept = np.broadcast_to(keep, max(len(keep), int(conflict.element.max()) + 1))[conflict.element]
    return Conflict(conflict.element[kept], conflict.epoch[kept], True) if kept.any() else None


def access(context: Context, nbytes: int, space: str, verb: str, ordering: Ordering) -> Access:
    """Return the access of an instruction; `const` lies in global memory, a call's parameters in the thread's."""
    base = space.partition("::")[0]
    if base == "const":
        base = "global"
    address = next((x for x in context.operands if isinstance(x, Address)), None)
    if base == "param" and address is not None and isinstance(address.base, Symbol):
        base = "local" if address.base.name in context.machine.program.local else "param"
    return Access(context.machine, context.code, nbytes, base or "generic", verb, ordering)


def ordering(op: Opcode) -> Ordering:
    """Take the modifiers that say how an access is ordered with others."""
    op.drop("mmio")
    weak = op.take("weak")
    name = op.choose("volatile", "relaxed", "acquire", "release", "acq_rel", default="weak")
    scope = op.choose("cta", "cluster", "gpu", "sys", default="gpu")
    strong = name != "weak" and not weak
    strength = WEAK if not strong else IN_BLOCK if scope == "cta" else IN_DEVICE
    return Ordering(name, strength, scope == "cta")


def _items(operand: Operand) -> list[Operand]:
    return list(operand.items) if isinstance(operand, Vector) else [operand]


@decoder("ld", "ldu")
def _load(context: Context) -> Step:
    op = context.opcode
    order, kind = ordering(op), op.type()
    op.drop(*_HINTS, "b128")
    count = int(op.choose("v2", "v4", "v8", default="v1")[1])
    space = op.choose(*_SPACES)
    op.finish()
    size = BYTES[kind]
    acc = access(context, size * count, space, "load", order)
    read = context.address(context.operands[1])
    writes = [context.write(x, kind) for x in _items(context.operands[0])]
    poison = np.full(1, (1 << 8 * size) - 1, f"u{size}")
    total = acc.machine.threads

    def step(group: Group) -> None:
        for space, addresses, threads in acc.by_space(group, read(group)):
            places, good = acc.locate(space, addresses, threads)
            where = group if len(threads) == len(acc.machine.numbers[group]) else as_group(threads, total)
            if good is not None:
                for write in writes:
                    write(where, poison)
                places, addresses, threads = places[good], addresses[good], threads[good]
                where = as_group(threads, total)
            if len(threads):
                acc.on_read(space, places, addresses, threads)
                for write, value in zip(writes, acc.memory(space).load(places, size, count), strict=True):
                    write(where, value)
                order.after_read(acc.machine, space, places, threads)

    return step


@decoder("st")
def _store(context: Context) -> Step:
    op = context.opcode
    if op.rest[:1] == ["async"]:
        step: Step = context.machine.units["store_async"](context)
        return step
    order, kind = ordering(op), op.type()
    op.drop(*_HINTS)
    count = int(op.choose("v2", "v4", "v8", default="v1")[1])
    space = op.choose(*_SPACES)
    op.finish()
    size = BYTES[kind]
    acc = access(context, size * count, space, "store", order)
    read = context.address(context.operands[0])
    reads = [context.read(x, f"b{8 * size}") for x in _items(context.operands[1])]

    def step(group: Group) -> None:
        whole = acc.machine.numbers[group]
        data = [np.broadcast_to(r(group), whole.shape) for r in reads]
        for space, addresses, threads in acc.by_space(group, read(group)):
            values = data if len(threads) == len(whole) else [v[np.searchsorted(whole, threads)] for v in data]
            places, good = acc.locate(space, addresses, threads)
            if good is not None:
                places, addresses, threads = places[good], addresses[good], threads[good]
                values = [v[good] for v in values]
            if len(threads):
                order.before_write(acc.machine, space, places, threads)
                acc.on_write(space, places, addresses, threads, values)
                acc.memory(space).store(places, values)
                acc.after_write(space, places, addresses, threads, values)

    return step


# --- atomic operations ------------------------------------------------------------------------------------------------

Update = Callable[..., Array]


def _update(op: Opcode, name: str, kind: str) -> tuple[Update, int]:
    """Return what an atomic operation puts in place of the old value, and how many operands it takes."""
    if name in ("exch", "cas"):
        return (lambda old, new: new, 1) if name == "exch" else (lambda old, c, new: np.where(old == c, new, old), 2)
    if name == "inc":
        return lambda old, most: np.where(old >= most, 0, old + 1), 1
    if name == "dec":
        return lambda old, most: np.where((old == 0) | (old > most), most, old - 1), 1
    if name not in ("add", "min", "max", "and", "or", "xor"):
        raise op.unknown(f"no atomic operation .{name}")
    text = f"{name}.{kind}"
    if name == "add" and kind == "f32":
        text = "add.ftz.f32" if op.take("ftz") else text
    return operation(text).function, 1


@decoder("atom", "red")
def _atomic(context: Context) -> Step:
    op = context.opcode
    order, kind = ordering(op), op.type()
    if order.name == "weak":
        order = Ordering("relaxed", IN_BLOCK if order.in_block else IN_DEVICE, order.in_block)
    op.drop("noftz", *_HINTS)
    count = int(op.choose("v2", "v4", "v8", default="v1")[1])
    space = op.choose(*_SPACES)
    update, taken = _update(op, op.rest.pop(0) if op.rest else "", kind)
    op.finish()
    operands, fetch = context.operands, op.root == "atom"
    acc = access(context, BYTES[kind] * count, space, "atomic operation", order)
    read = context.address(operands[fetch])
    columns = [[context.read(x, kind) for x in _items(o)] for o in operands[1 + fetch : 1 + fetch + taken]]
    writes = [context.write(x, kind) for x in _items(operands[0])] if fetch else []

    def step(group: Group) -> None:
        whole = acc.machine.numbers[group]
        data = [[np.broadcast_to(r(group), whole.shape) for r in column] for column in columns]
        for space, addresses, threads in acc.by_space(group, read(group)):
            places, good = acc.locate(space, addresses, threads)
            if good is not None:
                places, addresses, threads = places[good], addresses[good], threads[good]
            if not len(threads):
                continue
            chosen = np.searchsorted(whole, threads)
            values = [[v[chosen] for v in column] for column in data]
            order.before_write(acc.machine, space, places, threads, replace=False)
            acc.on_write(space, places, addresses, threads, [as_word(values[0][0], kind)] * count)
            old = _serialize(acc.memory(space), places, kind, values, update)
            order.after_read(acc.machine, space, places, threads)
            for write, value in zip(writes, old, strict=False):
                write(as_group(threads, acc.machine.threads), value)

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


# --- matrices of 8x8 ----------------------------------------------------------------------------------------------------


@decoder("ldmatrix", "stmatrix")
def _matrix(context: Context) -> Step:
    op = context.opcode
    op.drop("sync", "aligned", "m8n8", "b16")
    count, trans = int(op.choose("x1", "x2", "x4")[1]), op.take("trans")
    loads = op.root == "ldmatrix"
    space = op.choose("shared::cta", "shared")
    op.finish()
    order = Ordering("weak", WEAK, False)
    acc = access(context, 16, space, op.root, order)
    read = context.address(context.operands[1 if loads else 0])
    registers = _items(context.operands[0 if loads else 1])
    if len(registers) != count:
        raise context.error(f"expected {count} registers")
    outs = [context.write(x, "b32") for x in registers] if loads else []
    ins = [context.read(x, "b32") for x in registers] if not loads else []
    machine = acc.machine

    def step(group: Group) -> None:
        warps = machine.units["warps"].whole(group, context.code)
        whole = as_group((warps[:, None] * 32 + np.arange(32)).reshape(-1), machine.threads)
        threads = warps[:, None] * 32 + np.arange(8 * count)
        addresses = np.broadcast_to(read(whole), machine.numbers[whole].shape).reshape(-1, 32)[:, : 8 * count]
        for space, at, who in acc.by_space(threads.reshape(-1), addresses.reshape(-1)):
            places, good = acc.locate(space, at, who)
            if good is not None:
                machine.units["warps"].spoil(outs, whole)
                return
            memory = acc.memory(space)
            if loads:
                acc.on_read(space, places, at, who)
                matrices = _transposed(memory.rows(places, 16).reshape(len(warps), count, 128), trans)
                words = matrices.view(np.uint32)  # lane l holds word l of the 32 of a matrix
                for i, write in enumerate(outs):
                    write(whole, words[:, i].reshape(-1))
                continue
            words = np.stack([np.broadcast_to(r(whole), (len(warps) * 32,)).reshape(-1, 32) for r in ins], axis=1)
            rows = _transposed(np.ascontiguousarray(words).view(np.uint8).reshape(len(warps), count, 128), trans)
            rows = rows.reshape(-1, 16)
            values = [rows.view(np.uint64)[:, i] for i in (0, 1)]
            acc.on_write(space, places, at, who, values)
            memory.store(places, values)
            acc.after_write(space, places, at, who, values)

    return step


def _transposed(matrices: Array, trans: bool) -> Array:
    """Return 8x8 matrices of 16-bit elements, as bytes on the last axis, transposed if wanted."""
    if not trans:
        return matrices
    square = matrices.view(np.uint16).reshape(*matrices.shape[:-1], 8, 8)
    turned = np.ascontiguousarray(np.swapaxes(square, -1, -2))
    return turned.reshape(*matrices.shape[:-1], 64).view(np.uint8)
