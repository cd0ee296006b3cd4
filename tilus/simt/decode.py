"""Instructions to steps: functions that run one instruction for a group of threads.

A decoder is registered by the beginning of the opcode. It asks its context for functions that read and write the
operands, which also notes which registers the instruction reads and writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tilus.errors import VMError
from tilus.simt import alu
from tilus.simt.formats import Array
from tilus.simt.machine import LANES, Group, Machine, Step, as_group, unsupported
from tilus.simt.memory import SPACE_BITS, WINDOW_BITS
from tilus.simt.opcode import Opcode, as_word, operation, view_type, word_type
from tilus.simt.syntax import (
    BYTES,
    Address,
    Immediate,
    Instruction,
    Negated,
    Operand,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
)

Read = Callable[[Group], Array]
Write = Callable[[Group, Array], None]
Decoder = Callable[["Context"], Step]
DECODERS: dict[str, Decoder] = {}


def decoder(*prefixes: str) -> Callable[[Decoder], Decoder]:
    """Register how instructions whose opcodes begin so are run; the longest prefix counts."""

    def register(function: Decoder) -> Decoder:
        DECODERS.update(dict.fromkeys(prefixes, function))
        return function

    return register


class Context:
    """One instruction on its way to a step.

    Attributes
    ----------
    machine : Machine
    code : int
        Its position in the program; `root` is its opcode without modifiers.
    opcode : Opcode
    reads, writes : set of str
        Registers.
    addresses : set of str
        Registers whose values say where memory is accessed, or which way a thread goes.
    """

    def __init__(self, machine: Machine, code: int) -> None:
        self.machine, self.code = machine, code
        self.instruction: Instruction = machine.program.code[code]
        self.operands = list(self.instruction.operands)
        self.opcode = Opcode(self.instruction.opcode)
        self.root = self.opcode.root
        self.reads: set[str] = set()
        self.writes: set[str] = set()
        self.addresses: set[str] = set()

    def error(self, reason: str) -> VMError:
        """Return an error that names the instruction."""
        return unsupported(self.instruction, reason)

    # --- reading ----------------------------------------------------------------------------------------------------

    def read(self, operand: Operand, kind: str) -> Read:
        """Return a function that reads an operand as a type."""
        match operand:
            case Register():
                return self._read_register(operand, kind)
            case Negated(register=register):
                inner = self.read(register, "pred")
                return lambda group: ~inner(group)
            case Immediate():
                return _constant(_immediate(operand, kind), kind)
            case Symbol():
                return _constant(self.symbol(operand), kind)
            case Special(name=name):
                return self._read_special(name, kind)
            case Vector(items=items):
                return self._read_vector(items, kind)
        raise self.error(f"cannot read {operand}")

    def _read_register(self, register: Register, kind: str) -> Read:
        self.reads.add(register.name)
        row = self.machine.row(register, word_type(register.type))
        wanted, have = BYTES[kind], BYTES[register.type]
        if (kind == "pred") != (register.type == "pred") or wanted > have:
            raise self.error(f"register {register.name} of type .{register.type} is no .{kind}")
        if wanted == have:
            view = row.view(view_type(kind))
            found: Read = lambda group: view[group]  # noqa: E731
        else:
            narrow = word_type(kind)
            found = lambda group: row[group].astype(narrow).view(view_type(kind))  # noqa: E731
        return self._checked(register, found)

    def _checked(self, register: Register, read: Read) -> Read:
        valid = self.machine.valid.get(register.name)
        if valid is None:
            return read
        machine, code = self.machine, self.code

        def checked(group: Group) -> Array:
            good = valid[group]
            if not good.all():
                threads = machine.numbers[group][~good]
                text = f"register {register.name} is read before it is set, or while a product is under way"
                machine.find("uninitialized", text, code, threads)
                valid[group] = True
            return read(group)

        return checked

    def _read_special(self, name: str, kind: str) -> Read:
        values = special(self.machine, name)
        if values is None:
            raise self.error(f"unknown register {name}")
        row = np.broadcast_to(values.astype(word_type(kind)).view(view_type(kind)), self.machine.threads)
        return lambda group: row[group]

    def _read_vector(self, items: tuple[Operand, ...], kind: str) -> Read:
        nbytes = BYTES[kind] // len(items)
        parts = [self.read(x, f"b{8 * nbytes}") for x in items]
        word = word_type(kind)

        def join(group: Group) -> Array:
            total = parts[0](group).astype(word)
            for i, part in enumerate(parts[1:], 1):
                total = total | part(group).astype(word) << word.type(8 * nbytes * i)
            return total.view(view_type(kind))

        return join

    def symbol(self, symbol: Symbol) -> int:
        """Return the address of a variable, in its own space."""
        program, machine = self.machine.program, self.machine
        if symbol.name in program.shared:
            return program.shared[symbol.name] + symbol.offset
        if symbol.name in program.local:
            return program.local[symbol.name] + symbol.offset
        for i, buffer in enumerate(machine.globals.buffers):
            if buffer.array is None and buffer.name == symbol.name:
                return machine.globals.address(i) + symbol.offset
        params = machine.units["params"]
        if symbol.name in params:
            return int(params[symbol.name]) + symbol.offset
        raise self.error(f"no variable {symbol.name}")

    def address(self, operand: Operand) -> Read:
        """Return a function that reads `[base + offset]` as unsigned 64-bit addresses."""
        if not isinstance(operand, Address):
            raise self.error(f"expected an address, got {operand}")
        base, offset = operand.base, operand.offset
        kind = "b32" if isinstance(base, Register) and BYTES[base.type] == 4 else "b64"
        if isinstance(base, Register):
            self.addresses.add(base.name)
        read, mask = self.read(base, kind), np.uint64(0xFFFFFFFF if kind == "b32" else 0xFFFFFFFFFFFFFFFF)
        if kind == "b64" and not offset:
            return read
        step = np.array([offset % (1 << 64)], np.uint64)
        return lambda group: (read(group).astype(np.uint64) + step) & mask

    def constant(self, operand: Operand) -> int:
        """Return a constant operand."""
        if not isinstance(operand, Immediate):
            raise self.error(f"expected a constant, got {operand}")
        return operand.bits

    # --- writing ----------------------------------------------------------------------------------------------------

    def write(self, operand: Operand, kind: str) -> Write:
        """Return a function that writes values of a type to an operand; signed ones are extended."""
        if isinstance(operand, Sink):
            return lambda group, value: None
        if isinstance(operand, Vector):
            return self._write_vector(operand.items, kind)
        if not isinstance(operand, Register):
            raise self.error(f"cannot write to {operand}")
        self.writes.add(operand.name)
        row = self.machine.row(operand, word_type(operand.type))
        if (kind == "pred") != (operand.type == "pred") or BYTES[kind] > BYTES[operand.type]:
            raise self.error(f"register {operand.name} of type .{operand.type} cannot take a .{kind}")
        put = _store(row, kind)
        marks = [table[operand.name] for table in (self.machine.valid, self.machine.touched) if operand.name in table]
        if not marks:
            return put

        def marked(group: Group, value: Array) -> None:
            put(group, value)
            for mark in marks:
                mark[group] = True

        return marked

    def _write_vector(self, items: tuple[Operand, ...], kind: str) -> Write:
        nbytes = BYTES[kind] // len(items)
        part = f"b{8 * nbytes}"
        writes = [self.write(x, part) for x in items]
        word, narrow = word_type(kind), word_type(part)

        def split(group: Group, value: Array) -> None:
            bits = as_word(value, kind)
            for i, write in enumerate(writes):
                write(group, (bits >> word.type(8 * nbytes * i)).astype(narrow))

        return split


def _store(row: Array, kind: str) -> Write:
    signed = kind[0] == "s" and BYTES[kind] < row.dtype.itemsize
    wide = np.dtype(f"i{row.dtype.itemsize}") if signed else row.dtype

    def put(group: Group, value: Array) -> None:
        word = as_word(value, kind)
        row[group] = word.view(view_type(kind)).astype(wide).view(row.dtype) if signed else word

    return put


def _constant(bits: int, kind: str) -> Read:
    word = word_type(kind)
    value = np.array([bool(bits) if kind == "pred" else bits % (1 << 8 * word.itemsize)], word).view(view_type(kind))
    return lambda group: value


def _immediate(immediate: Immediate, kind: str) -> int:
    """Return the bits of a constant as a type; a float of another width is converted."""
    if immediate.kind == "f64" and kind == "f32":
        return int(np.array([immediate.bits], np.uint64).view(np.float64).astype(np.float32).view(np.uint32)[0])
    if immediate.kind == "f32" and kind == "f64":
        return int(np.array([immediate.bits], np.uint32).view(np.float32).astype(np.float64).view(np.uint64)[0])
    return immediate.bits


def special(machine: Machine, name: str) -> Array | None:
    """Return the values of a register that the machine sets."""
    base, _, axis = name[1:].partition(".")
    shape = machine.shape
    linear, block = machine.numbers % machine.padded, machine.first + machine.block_of
    rank = machine.block_of % machine.cluster
    vectors: dict[str, Any] = {"ntid": shape.block, "nctaid": shape.grid, "cluster_nctaid": shape.cluster}
    numbers: dict[str, tuple[Array, Any]] = {
        "tid": (linear, shape.block), "cluster_ctaid": (rank, shape.cluster),
        "clusterid": (block // machine.cluster, tuple(g // c for g, c in zip(shape.grid, shape.cluster, strict=True))),
        "nclusterid": (block * 0, shape.cluster),
    }  # fmt: skip
    one = np.ones(1, np.int64)
    if axis in ("x", "y", "z"):
        i = "xyz".index(axis)
        if base in vectors:
            return one * vectors[base][i]
        if base == "ctaid":
            return machine.block_index(block)[i]
        if base == "nclusterid":
            return one * (shape.grid[i] // shape.cluster[i])
        if base in numbers:
            number, extents = numbers[base]
            return (number, number // extents[0], number // (extents[0] * extents[1]))[i] % extents[i]
        return None
    lane = machine.numbers % LANES
    below = (one << lane) - 1
    scalars: dict[str, Array] = {
        "laneid": lane, "warpid": linear // LANES, "nwarpid": one * machine.warps_per_block,
        "lanemask_eq": one << lane, "lanemask_lt": below, "lanemask_le": below | one << lane,
        "lanemask_gt": 0xFFFFFFFF & ~(below | one << lane), "lanemask_ge": 0xFFFFFFFF & ~below,
        "smid": block % 132, "nsmid": one * 132, "gridid": one, "cluster_ctarank": rank,
        "cluster_nctarank": one * machine.cluster, "is_explicit_cluster": (machine.cluster > 1) & (one > 0),
        "dynamic_smem_size": one * shape.dynamic_shared, "total_smem_size": one * machine.shared.size,
        "clock": one, "clock64": one, "globaltimer": one,
    }  # fmt: skip
    return scalars.get(base)


# --- decoding ---------------------------------------------------------------------------------------------------------


def decode(machine: Machine, code: int) -> tuple[Step, Context]:
    """Return the step of one instruction, and what is known of it."""
    context = Context(machine, code)
    known = _find(context.opcode)
    if known is None:
        raise context.error("unknown instruction")
    try:
        step = known(context)
    except VMError as error:
        raise error if "PTX line" in error.message else context.error(error.message) from error
    except (IndexError, KeyError, ValueError) as error:
        raise context.error(f"its form is not known ({type(error).__name__}: {error})") from error
    guard = context.instruction.guard
    return (step if guard is None else _guarded(machine, context.read(guard, "pred"), step)), context


def _find(opcode: Opcode) -> Decoder | None:
    """Return the decoder with the longest prefix of an opcode, and take that prefix."""
    for length in range(len(opcode.rest), -1, -1):
        found = DECODERS.get(".".join([opcode.root, *opcode.rest[:length]]))
        if found is not None:
            del opcode.rest[:length]
            return found
    return _registers if opcode.root in alu.FAMILIES else None


def _guarded(machine: Machine, read: Read, step: Step) -> Step:
    numbers, total = machine.numbers, machine.threads

    def guarded(group: Group) -> None:
        on = read(group)
        if on.all():
            step(group)
        elif on.any():
            step(as_group(numbers[group][on], total))

    return guarded


def _registers(context: Context) -> Step:
    """Decode an instruction on registers alone."""
    op = operation(context.instruction.opcode)
    operands = context.operands
    results: list[Operand] = [operands[0]]
    if len(op.results) > 1 and isinstance(operands[0], Vector):
        results = list(operands[0].items)
    kinds = op.kinds(len(operands) - 1)
    reads = [context.read(x, kind) for x, kind in zip(operands[1:], kinds, strict=True)]
    writes = [context.write(x, kind) for x, kind in zip(results, op.results, strict=False)]
    function = op.function
    if len(writes) == 1 and len(op.results) == 1:
        write = writes[0]
        return lambda group: write(group, function(*[read(group) for read in reads]))

    def step(group: Group) -> None:
        for write, value in zip(writes, function(*[read(group) for read in reads]), strict=False):
            write(group, value)

    return step


@decoder("add", "sub", "addc", "subc")
def _carry(context: Context) -> Step:
    """Decode sums with carry: the carry is a register that the program does not name."""
    carry = Register("carry", "pred")
    if context.opcode.root in ("addc", "subc"):
        context.operands.append(carry)
    if "cc" in context.opcode.rest:
        context.operands[0] = Vector((context.operands[0], carry))
    return _registers(context)


@decoder("mov")
def _move(context: Context) -> Step:
    kind = context.opcode.type()
    context.opcode.finish()
    target, source = context.operands
    if isinstance(source, Symbol) and source.name in context.machine.units["params"]:
        return _generic(context, source, kind, "param")
    if kind == "b128":
        raise context.error("moves of 128 bits are not supported")
    read, write = context.read(source, kind), context.write(target, kind)
    return lambda group: write(group, read(group))


def _generic(context: Context, source: Operand, kind: str, space: str) -> Step:
    base = np.uint64(SPACE_CODE[space] << SPACE_BITS)
    read, write = context.read(source, "b64"), context.write(context.operands[0], kind)
    return lambda group: write(group, read(group) | base)


SPACE_CODE = {"global": 0, "const": 0, "shared": 1, "local": 2, "param": 3}


@decoder("cvta")
def _convert_address(context: Context) -> Step:
    """Add or remove the upper bits that tell the spaces apart."""
    op = context.opcode
    to, kind = op.take("to"), op.type("u32", "u64")
    space = op.choose("global", "shared::cta", "shared::cluster", "shared", "local", "const", "param")
    op.finish()
    code = np.uint64(SPACE_CODE[space.partition("::")[0]] << SPACE_BITS)
    low = np.uint64((1 << SPACE_BITS) - 1)
    target, source = context.operands
    read, write = context.read(source, kind), context.write(target, kind)
    if to:
        return lambda group: write(group, (read(group).astype(np.uint64) & low).astype(word_type(kind)))
    return lambda group: write(group, read(group).astype(np.uint64) | code)


@decoder("isspacep")
def _is_space(context: Context) -> Step:
    op = context.opcode
    space = op.choose("global", "shared::cta", "shared::cluster", "shared", "local", "const", "param")
    op.finish()
    target, source = context.operands
    read, write = context.read(source, "b64"), context.write(target, "pred")
    code = np.uint64(SPACE_CODE[space.partition("::")[0]])

    def step(group: Group) -> None:
        addresses = read(group)
        inside = addresses >> np.uint64(SPACE_BITS) == code
        write(group, inside & ((code > 0) | (addresses >= np.uint64(1 << WINDOW_BITS))))

    return step


@decoder("nanosleep", "prefetch", "prefetchu", "discard", "applypriority", "pmevent")
def _nothing(context: Context) -> Step:
    return lambda group: None


@decoder("griddepcontrol")
def _dependency(context: Context) -> Step:
    """Decode the wait for earlier kernels, and the leave for later ones to start."""
    machine, waits = context.machine, context.opcode.choose("wait", "launch_dependents") == "wait"
    context.opcode.finish()

    def step(group: Group) -> None:
        if waits:
            machine.early[group] = False

    return step


@decoder("createpolicy")
def _policy(context: Context) -> Step:
    write = context.write(context.operands[0], "b64")
    return lambda group: write(group, np.zeros(1, np.uint64))
