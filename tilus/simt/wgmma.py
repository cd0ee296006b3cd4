"""Products of a warpgroup whose operands lie in shared memory (PTX ISA, "Asynchronous warpgroup level matrix ...").

A descriptor of 64 bits names an operand: bits 0-13 the address, 16-29 the leading and 32-45 the stride byte offset, all
in units of 16 bytes; 49-51 the base offset; 62-63 the swizzle. In units of 16 bytes, with S units in a swizzle's span
(1 without one) and T elements in a unit, the element at row r of a K-major operand and column k lies at

    S > 1:  (r % 8) S + (r / 8) stride + k / T            S = 1:  r % 8 + (r / 8) stride + (k / T) leading

and of an operand that is MN-major at

    S > 1:  (r / T) % S + (r / T / S) leading + (k % 8) S + (k / 8) stride
    S = 1:  (r / T) stride + k % 8 + (k / 8) leading

A swizzle then exchanges bits of the address. Products run when they are waited for, in order, and their accumulators
hold garbage until then; with early landing they run at once. A chain of products into the same registers is one sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tilus.simt.decode import Context, Read, decoder
from tilus.simt.formats import FORMATS, Array, decode, encode
from tilus.simt.loads import items
from tilus.simt.machine import LANES, Group, Machine, Step, as_group
from tilus.simt.mma import Kind, element_codes, element_values, multiply, parse_shape, places
from tilus.simt.opcode import word_type
from tilus.simt.program import SHARED_BASE
from tilus.simt.shadow import WEAK
from tilus.simt.syntax import Immediate, Register, Vector
from tilus.simt.tensormap import swizzle

WARPGROUP = 128
_ROWS = 64
_SPANS = {0: (1, 0), 1: (8, 3), 2: (4, 2), 3: (2, 1)}  # by the descriptor's bits: units in a span, swizzled bits
_DEPTH = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32, "s8": 32, "u8": 32, "b1": 256}
_NBYTES = {"f16": 2, "bf16": 2, "tf32": 4}


def operand_addresses(descriptor: int, rows: int, k: int, nbytes: int, mn_major: bool) -> Array:
    """Return the shared addresses of an operand's elements, shape (rows, k).

    Parameters
    ----------
    descriptor : int
    rows, k : int
        Extents: M or N, and K.
    nbytes : int
        Of an element.
    mn_major : bool
        Neighbours in M or N lie side by side.
    """
    start, leading, stride = ((descriptor >> at & 0x3FFF) for at in (0, 16, 32))
    span, bits = _SPANS[descriptor >> 62 & 3]
    per_unit = 16 // nbytes
    r, c = np.ogrid[:rows, :k]
    if mn_major:
        unit, inside = r // per_unit, r % per_unit
        at = unit % span + unit // span * leading + c % 8 * span + c // 8 * stride
        if span == 1:
            at = unit * stride + c % 8 + c // 8 * leading
    else:
        unit, inside = c // per_unit, c % per_unit
        at = r % 8 * span + r // 8 * stride + unit * (1 if span > 1 else leading)
    return swizzle((start + at) * 16 + inside * nbytes, bits)


@dataclass(slots=True, eq=False)
class Product:
    """One product under way."""

    threads: Array  # of the warpgroup
    kind: Kind
    accumulator: tuple[str, ...]
    registers: tuple[str, ...]  # those, and those of A
    a: Array | list[Read]  # addresses of elements, or registers
    b: Array
    scale: tuple[bool, int, int]  # whether D is added, factors of A and B
    group: int
    code: int
    cells: Array | None = None


class TensorCores:
    """Products under way, oldest first, and the sums that they make."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.queue: list[Product] = []
        self.sums: dict[tuple[int, tuple[str, ...]], Array] = {}
        self.committed = np.zeros(machine.threads // LANES, np.int64)  # by first warp
        self.agents: dict[int, int] = {}
        machine.at_exit.append(self.on_exit)

    def warpgroups(self, group: Group, code: int) -> list[Array]:
        """Return the threads of each warpgroup; all 128 have to be there."""
        warps = self.machine.units["warps"].whole(group, code)[:, 0] >> 5
        found = []
        for first in np.unique(warps // 4 * 4):
            threads = np.arange(first * LANES, first * LANES + WARPGROUP)
            if np.isin(np.arange(first, first + 4), warps).sum() != 4 or first % self.machine.warps_per_block % 4:
                self.machine.find("divergence", "a warpgroup's four warps do not run this together", code, threads[:1])
            found.append(threads[threads < self.machine.threads])
        return found

    # --- registers ---------------------------------------------------------------------------------------------------

    def load(self, product: Product) -> Array:
        """Return the accumulator's values from the registers, shape (64, n)."""
        kind, machine = product.kind, self.machine
        words = np.stack([machine.rows[name][product.threads] for name in product.accumulator], axis=1)
        flat = words if kind.d != "f16" else np.ascontiguousarray(words).view(np.uint16)
        values = np.zeros((_ROWS, kind.n), flat.dtype)
        values[_accumulator_places(kind.n)] = flat
        return decode(values, FORMATS[kind.d]) if kind.d in FORMATS else values.view(np.int32).astype(np.int64)

    def store(self, product: Product, values: Array) -> None:
        """Put the accumulator's values into the registers."""
        kind = product.kind
        flat = values[_accumulator_places(kind.n)]
        if kind.d in FORMATS:
            words = np.ascontiguousarray(encode(flat, FORMATS[kind.d])).view(np.uint32)
        else:
            words = flat.astype(np.uint64).astype(np.uint32)
        self._set(product, words, True)

    def _set(self, product: Product, words: Array, valid: bool) -> None:
        for i, name in enumerate(product.accumulator):
            self.machine.rows[name][product.threads] = words[:, i]
            if name in self.machine.valid:
                self.machine.valid[name][product.threads] = valid

    # --- products ----------------------------------------------------------------------------------------------------

    def issue(self, product: Product) -> None:
        """Begin a product."""
        key = int(product.threads[0]), product.accumulator
        pending = any(k == key[0] and set(names) & set(key[1]) and names != key[1] for k, names in self.sums)
        if pending:
            text = "a product's accumulator overlaps another one under way"
            self.machine.find("pending", text, product.code, product.threads)
        self._check_fence(product)
        self._check_reads(product)
        if key not in self.sums:
            self.sums[key] = self.load(product)
        self.queue.append(product)
        self._set(product, np.full((WARPGROUP, len(product.accumulator)), 0xFFFFFFFF, np.uint32), False)
        if self.machine.options.landing == "early":
            self.compute(product)

    def _check_fence(self, product: Product) -> None:
        for name in product.registers:
            dirty = self.machine.touched.get(name)
            if dirty is not None and dirty[product.threads].any():
                text = f"register {name} was changed since the last wgmma.fence"
                self.machine.find("proxy", text, product.code, product.threads)
                return

    def _check_reads(self, product: Product) -> None:
        shadow = self.machine.shadows.get("shared")
        if shadow is None:
            return
        touched = [x for x in (product.a, product.b) if isinstance(x, np.ndarray)]
        cells = np.unique(np.concatenate([x.reshape(-1) for x in touched]) // shadow.granularity)
        thread = product.threads[:1]
        where = self._address(cells * shadow.granularity)
        text = "a product reads"
        if not shadow.valid[cells].all():
            self._fault("uninitialized", f"{text} shared memory that nobody has written", product, where)
        if shadow.unfenced[cells].any():
            self._fault("proxy", f"{text} what was written without fence.proxy.async", product, where)
        conflicts = shadow.read(thread, cells[None], WEAK, product.code)
        self.machine.race(conflicts, "shared", product.code, thread, where, "asynchronous read")
        shadow.begin_read(self.agent(product), cells, product.code)
        product.cells = cells

    def _address(self, places_: Array) -> Array:
        return places_[:1] % self.machine.shared.stride + SHARED_BASE

    def _fault(self, kind: str, text: str, product: Product, where: Array) -> None:
        self.machine.find_at(kind, text, product.code, product.threads, "shared", int(where[0]))

    def agent(self, product: Product) -> int:
        """Return the number of a warpgroup's tensor cores for the detector of races."""
        assert self.machine.clocks is not None
        first = int(product.threads[0])
        if first not in self.agents:
            self.agents[first] = self.machine.clocks.add_agent()
        return self.agents[first]

    def _values(self, operand: Array | list[Read], product: Product, kind: str, rows: int) -> Array:
        k = _DEPTH[kind]
        if isinstance(operand, np.ndarray):
            nbytes = _NBYTES.get(kind, 1)
            if kind == "b1":
                data = self.machine.shared.bytes[operand]
                bits = np.unpackbits(data, axis=-1, bitorder="little")
                return bits.reshape(rows, k).astype(np.int64)
            codes = self.machine.shared._units[nbytes][operand // nbytes]
            return element_values(codes, kind)
        group = as_group(product.threads, self.machine.threads)
        words = np.stack([np.broadcast_to(read(group), WARPGROUP) for read in operand], axis=1)
        codes = element_codes(words.reshape(4, LANES, -1), kind)
        found = np.empty((4, 16 * k), codes.dtype)
        found[:, places(16, k, codes.shape[-1], 2)] = codes.reshape(4, -1)
        return element_values(found, kind).reshape(rows, k)

    def compute(self, product: Product) -> None:
        """Do a product: operands are read now."""
        kind, key = product.kind, (int(product.threads[0]), product.accumulator)
        add, factor_a, factor_b = product.scale
        a = self._values(product.a, product, kind.a, _ROWS) * factor_a
        b = self._values(product.b, product, kind.b, kind.n) * factor_b
        start = self.sums[key] if add else np.zeros_like(self.sums[key])
        total = multiply(a[None], b[None], start[None], kind)[0]
        if kind.d in FORMATS:
            total = decode(encode(total, FORMATS[kind.d]), FORMATS[kind.d])
        self.sums[key] = total

    def wait(self, threads: Array, pending: int) -> None:
        """Wait for a warpgroup's groups of products but the last `pending`."""
        first = int(threads[0])
        limit = self.committed[first // LANES] - pending
        due = [p for p in self.queue if p.threads[0] == first and p.group < limit]
        for product in due:
            if self.machine.options.landing != "early":
                self.compute(product)
            self.queue.remove(product)
            self._finish(product)
        clocks = self.machine.clocks
        if due and clocks is not None:
            clocks.learn_agent(np.unique(threads >> 5), self.agent(due[0]), clocks.tick(self.agent(due[0])))

    def _finish(self, product: Product) -> None:
        shadow = self.machine.shadows.get("shared")
        others = [p for p in self.queue if p.threads[0] == product.threads[0]]
        if shadow is not None and product.cells is not None:
            busy = [p.cells for p in others if p.cells is not None]
            free = np.setdiff1d(product.cells, np.concatenate(busy)) if busy else product.cells
            shadow.finish_read(self.agent(product), free)
        if not any(p.accumulator == product.accumulator for p in others):
            self.store(product, self.sums.pop((int(product.threads[0]), product.accumulator)))

    def on_exit(self, threads: Array) -> None:
        """Report products that nobody waited for."""
        for product in [p for p in self.queue if p.threads[0] in threads]:
            self.machine.find("pending", "a thread ends while a product is under way", product.code, product.threads)
            self.queue.remove(product)


def _accumulator_places(n: int) -> tuple[Array, Array]:
    """Return row and column of each (thread, element) of an accumulator."""
    thread, i = np.ogrid[:WARPGROUP, : n // 2]
    lane = thread % LANES
    row = thread // LANES * 16 + lane // 4 + 8 * (i % 4 // 2)
    column = i // 4 * 8 + lane % 4 * 2 + i % 2
    return row + 0 * column, column + 0 * row


# --- instructions -----------------------------------------------------------------------------------------------------


@decoder("wgmma.fence")
def _fence(context: Context) -> Step:
    def fence(threads: Array) -> None:
        for dirty in context.machine.touched.values():
            dirty[threads] = False

    return _collective(context, fence)


@decoder("wgmma.commit_group")
def _commit(context: Context) -> Step:
    cores: TensorCores = context.machine.units["tensor_cores"]

    def commit(threads: Array) -> None:
        cores.committed[threads[0] // LANES] += 1

    return _collective(context, commit)


@decoder("wgmma.wait_group")
def _wait(context: Context) -> Step:
    cores, count = context.machine.units["tensor_cores"], context.constant(context.operands[0])
    return _collective(context, lambda threads: cores.wait(threads, count))


def _collective(context: Context, act: Callable[[Array], None]) -> Step:
    """Return a step that acts for each warpgroup."""
    for modifier in ("sync", "aligned"):
        if not context.opcode.take(modifier):
            raise context.error(f"a form without .{modifier} is not known")
    context.opcode.finish()
    cores, code = context.machine.units["tensor_cores"], context.code

    def step(group: Group) -> None:
        for threads in cores.warpgroups(group, code):
            act(threads)

    return step


def _wgmma_kind(context: Context) -> Kind:
    op = context.opcode
    if op.take("sp"):
        raise context.error("sparse products are not known")
    m, n, k = parse_shape(op)
    satfinite = op.take("satfinite")
    logic = op.choose("and")
    op.drop("popc")
    d, a, b = op.rest[-3:]
    del op.rest[-3:]
    if a not in _DEPTH or b not in _DEPTH or m != _ROWS or k != _DEPTH[a] or n % 8 or not 8 <= n <= 256:
        raise context.error("this product is not known")
    return Kind(m, n, k, d, a, b, d, logic, satfinite)


@decoder("wgmma.mma_async")
def _product(context: Context) -> Step:
    kind = _wgmma_kind(context)
    out, a, b, scale_d, *flags = context.operands
    if not isinstance(out, Vector) or not all(isinstance(x, Register) for x in out.items):
        raise context.error("expected a vector of registers")
    names = tuple(x.name for x in out.items if isinstance(x, Register))
    if len(names) != kind.n // (4 if kind.d == "f16" else 2):
        raise context.error(f"{len(names)} registers do not hold the accumulator")
    machine, cores = context.machine, context.machine.units["tensor_cores"]
    watched = [x for x in (*out.items, *items(a)) if isinstance(x, Register) and x.type != "b64"]
    for register in watched:
        machine.row(register, word_type(register.type))
        machine.touched.setdefault(register.name, np.zeros(machine.threads, bool))
    watched_names = tuple(x.name for x in watched)
    context.writes.update(names)
    context.reads.update(() if isinstance(scale_d, Immediate) and not scale_d.bits else names)
    context.addresses.update(x.name for x in (a, b) if isinstance(x, Register))
    in_registers = isinstance(a, Vector)
    registers = [context.read(x, "b32") for x in a.items] if isinstance(a, Vector) else []
    left = context.read(a, "b64") if not in_registers else None
    right, adds = context.read(b, "b64"), context.read(scale_d, "pred")
    factors = (context.constant(flags[0]), context.constant(flags[1])) if len(flags) >= 2 else (1, 1)
    major = [bool(context.constant(x)) for x in flags[2:]]
    major_a, major_b = (False, *major, False)[:2] if in_registers else (*major, False, False)[:2]
    if (major_a or major_b) and kind.a not in ("f16", "bf16"):
        raise context.error("only 16-bit operands may be MN-major")

    def one(threads: Array) -> None:
        group = as_group(threads, machine.threads)
        places_a = _descriptor(context, left, threads, _ROWS, kind.a, major_a) if left is not None else registers
        places_b = _descriptor(context, right, threads, kind.n, kind.b, major_b)
        if places_a is None or places_b is None:
            return
        scale = bool(np.broadcast_to(adds(group), threads.shape)[0]), *factors
        group_number = int(cores.committed[threads[0] // LANES])
        cores.issue(Product(threads, kind, names, watched_names, places_a, places_b, scale, group_number, context.code))

    return _collective(context, one)


def _descriptor(context: Context, read: Read, threads: Array, rows: int, kind: str, mn_major: bool) -> Array | None:
    """Return the places of the elements that a descriptor names; faults are reported."""
    machine, code = context.machine, context.code
    words = np.broadcast_to(read(as_group(threads, machine.threads)), threads.shape)
    if (words != words[0]).any():
        machine.find("divergence", "a warpgroup's threads give different descriptors", code, threads)
    descriptor = int(words[0])
    if descriptor >> 49 & 7:
        machine.find("misaligned", "an operand with a base offset: the pattern has to be aligned", code, threads)
    k = _DEPTH[kind] // 8 if kind == "b1" else _DEPTH[kind]
    addresses = operand_addresses(descriptor, rows, k, _NBYTES.get(kind, 1), mn_major)
    offsets = addresses - SHARED_BASE
    if offsets.min() < 0 or offsets.max() >= machine.shared.size:
        text = "a product's operand is out of bounds"
        machine.find_at("bounds", text, code, threads, "shared", int(addresses.max()))
        return None
    return offsets + int(machine.block_of[threads[0]]) * machine.shared.stride
