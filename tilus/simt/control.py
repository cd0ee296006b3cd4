"""Branches, ends of threads, and printing."""

from __future__ import annotations

import re
import struct

import numpy as np

from tilus.simt.decode import Context, decoder
from tilus.simt.formats import Array
from tilus.simt.machine import EXITED, Group, Machine, Step
from tilus.simt.program import call_parts
from tilus.simt.syntax import Symbol


@decoder("bra")
def _branch(context: Context) -> Step:
    context.opcode.drop("uni")
    context.opcode.finish()
    machine, target = context.machine, _piece(context, context.operands[0])

    def step(group: Group) -> None:
        machine.pc[group] = target

    return step


def _piece(context: Context, label: object) -> int:
    program = context.machine.program
    if not isinstance(label, Symbol) or label.name not in program.labels:
        raise context.error(f"no label {label}")
    at = program.labels[label.name]
    return program.leaders.index(at) if at < len(program.code) else len(program.leaders)


@decoder("brx")
def _indirect(context: Context) -> Step:
    context.opcode.drop("idx", "uni")
    context.opcode.finish()
    table = context.operands[1]
    targets = context.machine.program.tables.get(table.name) if isinstance(table, Symbol) else None
    if targets is None:
        raise context.error("no such table of branch targets")
    pieces = np.array([_piece(context, Symbol(t)) for t in targets])
    index, machine = context.read(context.operands[0], "u32"), context.machine

    def step(group: Group) -> None:
        machine.pc[group] = pieces[index(group)]

    return step


@decoder("ret", "exit")
def _leave(context: Context) -> Step:
    context.opcode.drop("uni")
    context.opcode.finish()
    return context.machine.leave


@decoder("trap", "brkpt")
def _trap(context: Context) -> Step:
    machine, code = context.machine, context.code

    def step(group: Group) -> None:
        machine.find("trap", "the kernel stops itself", code, machine.numbers[group])
        machine.pc[:] = EXITED

    return step


# --- printing ---------------------------------------------------------------------------------------------------------


@decoder("call")
def _intrinsic(context: Context) -> Step:
    """Decode calls of functions that the driver provides."""
    name, results, arguments = call_parts(context.instruction)
    machine, code = context.machine, context.code
    places = [machine.program.local[a] for a in arguments]
    if name == "__assertfail":

        def fail(group: Group) -> None:
            machine.find("trap", "an assertion of the kernel failed", code, machine.numbers[group])
            machine.pc[:] = EXITED

        return fail

    def show(group: Group) -> None:
        for thread in machine.numbers[group]:
            base = int(thread) * machine.local_stride
            text, values = (int(machine.local.bytes[base + p : base + p + 8].view(np.uint64)[0]) for p in places)
            machine.report.printed.append(_format(_string(machine, text), machine, int(thread), values))
        for result in results:
            machine.local.store(machine.numbers[group] * machine.local_stride + machine.program.local[result],
                                [np.zeros(1, np.uint32)])  # fmt: skip

    return show


def _string(machine: Machine, address: int) -> str:
    place = int(machine.globals.locate(np.array([address], np.uint64), 1)[0][0])
    return bytes(machine.globals.bytes[place : place + 4096]).split(b"\0")[0].decode(errors="replace")


_CONVERSION = re.compile(r"%(%|[-+ #0]*\d*(?:\.\d+)?(?:hh|h|ll|l|z)?[diouxXcsfFeEgGaAp])")


def _format(text: str, machine: Machine, thread: int, values: int) -> str:
    """Fill in a text as C's printf does; the values lie in local memory, each aligned to its size."""
    at = values & 0xFFFFFFFF

    def take(nbytes: int) -> bytes:
        nonlocal at
        at = -(-at // nbytes) * nbytes
        base = thread * machine.local_stride + at
        at += nbytes
        return bytes(machine.local.bytes[base : base + nbytes])

    def fill(match: re.Match[str]) -> str:
        form = match[1]
        if form == "%":
            return "%"
        kind, wide = form[-1], "ll" in form or "l" in form or "z" in form
        plain = "%" + re.sub(r"hh|h|ll|l|z", "", form)
        if kind in "fFeEgGaA":
            return str(plain % struct.unpack("<d", take(8)))
        if kind == "s":
            return plain % _string(machine, int.from_bytes(take(8), "little"))
        if kind == "p":
            return hex(int.from_bytes(take(8), "little"))
        return plain.replace("u", "d") % int.from_bytes(take(8 if wide else 4), "little", signed=kind in "di")

    return _CONVERSION.sub(fill, text)


def bits_of(value: Array) -> Array:
    """Return booleans, lanes last, as one 32-bit word."""
    return (value.astype(np.uint64) << np.arange(value.shape[-1], dtype=np.uint64)).sum(-1).astype(np.uint32)
