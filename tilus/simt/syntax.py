"""PTX as data: modules, functions, instructions and operands, after names are resolved.

A register that an inner scope declares again (inline assembly does) has a name of its own here, so that a name stands
for one register in the whole function. The same holds for labels and variables.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

BYTES = {
    "pred": 1, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2, "b32": 4, "u32": 4,
    "s32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4, "tf32": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8, "f32x2": 8,
    "b128": 16,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Source:
    """A place in the CUDA text: of the kernel, not of a function inlined there."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Register:
    """A register of the program, with the type it is declared with."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Special:
    """A register that the machine sets, such as `%tid.x`."""

    name: str


@dataclass(frozen=True, slots=True)
class Immediate:
    """A constant: an integer, or the bits of a float of 32 or 64 bits (`kind` is `s64`, `f32` or `f64`)."""

    bits: int
    kind: str = "s64"


@dataclass(frozen=True, slots=True)
class Symbol:
    """The address of a variable, plus an offset; or the name of a label or function."""

    name: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Negated:
    """A predicate that is read inverted."""

    register: Register


@dataclass(frozen=True, slots=True)
class Sink:
    """`_`: a result that nobody wants."""


@dataclass(frozen=True, slots=True)
class Vector:
    """`{a, b}`, `(a, b)`, or the pair of results `a|b`."""

    items: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Address:
    """`[base + offset]`; tensor copies add the coordinates, and some instructions more."""

    base: Operand
    offset: int = 0
    extra: tuple[Operand, ...] = ()


Operand: TypeAlias = Register | Special | Immediate | Symbol | Negated | Sink | Vector | Address


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction.

    Attributes
    ----------
    opcode : str
        With all its modifiers.
    operands : tuple of Operand
    guard : Register or Negated or None
        The predicate before it.
    line : int
        Of the PTX text.
    text : str
    source : Source or None
        The CUDA line, where the text has line information.
    """

    opcode: str
    operands: tuple[Operand, ...]
    guard: Register | Negated | None
    line: int
    text: str
    source: Source | None = None

    @property
    def root(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def place(self) -> str:
        """Where it stands: the PTX line, and the CUDA line if that is known."""
        return f"PTX line {self.line}" + (f" ({self.source})" if self.source else "")


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable in memory.

    Attributes
    ----------
    name, space : str
    nbytes : int or None
        None for the dynamic part of shared memory.
    align : int
    initial : tuple of (int or Symbol)
        Values of the first elements; the others are 0.
    element : int
        Bytes of one of them.
    """

    name: str
    space: str
    nbytes: int | None
    align: int
    initial: tuple[int | Symbol, ...] = ()
    element: int = 1


@dataclass(slots=True)
class Function:
    """A kernel or a function.

    Attributes
    ----------
    name : str
    is_entry : bool
    params, results : list of Variable
    body : list of (Instruction or str)
        A string is a label.
    variables : dict
        Those declared inside: shared, local, and parameters of calls.
    directives : dict
        `maxntid`, `reqntid`, `explicitcluster`, `reqnctapercluster` and the like, with their numbers.
    tables : dict
        Labels of tables of branch targets.
    """

    name: str
    is_entry: bool
    params: list[Variable]
    results: list[Variable] = field(default_factory=list)
    body: list[Instruction | str] = field(default_factory=list)
    variables: dict[str, Variable] = field(default_factory=dict)
    directives: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class Module:
    """A PTX text: its target, functions and variables."""

    target: str = ""
    version: tuple[int, int] = (0, 0)
    functions: dict[str, Function] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
