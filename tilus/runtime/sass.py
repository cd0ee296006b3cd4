"""Machine code as text and as instructions: `nvdisasm` from its wheel, and a reader of what it prints.

Works for Volta and later, whose instructions have 16 bytes and one line each.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tilus.errors import CompileError, FormatError
from tilus.runtime.opcodes import HALF2_CONSTANT, KINDS, OPCODES, OTHER, OpcodeClass
from tilus.runtime.toolchain import nvdisasm


@dataclass(frozen=True, slots=True)
class Instruction:
    """One SASS instruction.

    Attributes
    ----------
    address : int
        Within its function, in bytes.
    predicate : str
        Guard such as `P0` or `!UP1`; empty without one, `!PT` for an instruction that never has an effect.
    opcode : str
        Without modifiers: `HMMA`.
    modifiers : tuple of str
        `("16816", "F32")`.
    operands : tuple of str
        As printed. A label stands as its name.
    notes : tuple of str
        Remarks that the disassembler prints behind the instruction, such as `SpillRefill`.
    """

    address: int
    predicate: str
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def klass(self) -> OpcodeClass:
        """Kind of work and pipe; dummies that only pad the code are `nop`, a constant made by HFMA2 is a `mov`."""
        if self.predicate == "!PT":
            return OPCODES["NOP"]
        if self.opcode == "HFMA2" and self.operands[1:3] == ("-RZ", "RZ"):
            return HALF2_CONSTANT
        return OPCODES.get(self.opcode, OTHER)

    def __str__(self) -> str:
        guard = f"@{self.predicate} " if self.predicate else ""
        return f"{guard}{'.'.join((self.opcode, *self.modifiers))} {', '.join(self.operands)}".rstrip()


@dataclass(frozen=True, slots=True)
class Function:
    """One function's instructions in the order of their addresses, and the address of every label."""

    name: str
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]


def disassemble(cubin: bytes) -> str:
    """Return the code of a cubin as `nvdisasm` prints it.

    Raises
    ------
    CompileError
        If there is no `nvdisasm` (the message says what to install), or if it rejects the cubin.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = _print_code(path, "--no-dataflow")
        # The analysis of data flow, a quarter of the time, is what finds the targets of indexed branches.
        return _print_code(path) if _INDEXED_BRANCH.search(text) else text


def _print_code(path: Path, *options: str) -> str:
    done = subprocess.run([nvdisasm(), "--print-code", *options, path], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CompileError(f"nvdisasm rejected the cubin: {(done.stderr or done.stdout).strip()}")
    return done.stdout


INDEXED_BRANCHES = frozenset({"BRX", "BRXU", "JMX", "JMXU"})
_INDEXED_BRANCH = re.compile(rf"\b({'|'.join(sorted(INDEXED_BRANCHES))})\b")
_SECTION = re.compile(r"\s*\.section\s+\.text\.([^,\s]+)")
_LABEL = re.compile(r"([.$\w]+):\s*$")
_INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[\dT]+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;\s*(.*)$")
_NOTE = re.compile(r'\(\*"(.*?)"\*\)')
_TARGET = re.compile(r"`\(([^)]+)\)")


def parse_sass(text: str) -> tuple[Function, ...]:
    """Read the output of `disassemble`.

    Raises
    ------
    FormatError
        If a line with an address is no instruction that this reader knows, or if the text has no code at all.
    """
    names: list[str] = []
    code: dict[str, list[Instruction]] = {}
    labels: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        if section := _SECTION.match(line):
            names.append(section[1])
            code[names[-1]], labels[names[-1]] = [], {}
        elif names and (label := _LABEL.match(line)):
            labels[names[-1]][label[1]] = len(code[names[-1]]) * 16
        elif names and re.match(r"\s*/\*[0-9a-f]{4,}\*/", line):
            code[names[-1]].append(_instruction(line))
    if not any(code.values()):
        raise FormatError("the text holds no SASS instructions", hint="pass what disassemble(cubin) returned")
    return tuple(Function(name, tuple(code[name]), labels[name]) for name in names)


def _instruction(line: str) -> Instruction:
    found = _INSTRUCTION.match(line)
    if found is None:
        raise FormatError(f"not a SASS instruction: {line.strip()}")
    address, predicate, opcode, operands, rest = found.groups()
    notes = tuple(_NOTE.findall(operands) + _NOTE.findall(rest))
    name, *modifiers = opcode.split(".")
    return Instruction(
        int(address, 16), predicate or "", name, tuple(modifiers), _operands(_NOTE.sub("", operands)), notes
    )


def _operands(text: str) -> tuple[str, ...]:
    text = _TARGET.sub(r"\1", text.strip())
    return tuple(part.strip() for part in text.split(",")) if text else ()


def instruction_mix(instructions: Iterable[Instruction]) -> dict[str, int]:
    """Return how many instructions there are of each kind; every kind is a key, in the table's order."""
    counts = Counter(instruction.klass.kind for instruction in instructions)
    return {kind: counts[kind] for kind in KINDS}


def pipe_mix(instructions: Iterable[Instruction]) -> dict[str, int]:
    """Return how many instructions each pipe takes."""
    return dict(Counter(instruction.klass.pipe for instruction in instructions))
