"""LLVM IR text, one line at a time.

A value is its spelling with its type, `Value("<8 x float>", "%12")`. Variables are allocas in the entry block, which
the optimiser turns into registers (mem2reg), so emitters need no phi nodes for them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

_AS_IT_STANDS = '!{!"llvm.loop.unroll.disable"}, !{!"llvm.loop.vectorize.enable", i1 false}'
_UNSPELLABLE = re.compile(r"[^A-Za-z0-9_.]")


@dataclass(frozen=True, slots=True)
class Value:
    """An LLVM value: its type and its spelling."""

    type: str
    name: str

    def __str__(self) -> str:
        return f"{self.type} {self.name}"


def literal(type_: str, value: Any) -> str:
    """Spell a scalar constant. Floats are spelt by their bits as a double, as LLVM wants them."""
    if type_ in ("float", "double", "half"):
        number = float(value)
        if type_ == "float":
            number = struct.unpack("<f", struct.pack("<f", number))[0]
        if type_ == "half":
            return f"0xH{struct.unpack('<H', struct.pack('<e', number))[0]:04X}"
        return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"
    if type_ == "i1":
        return "true" if value else "false"
    return str(int(value))


def lanes_of(type_: str) -> tuple[int, str]:
    """Split `<8 x float>` into (8, `float`); a scalar type has 0 lanes."""
    if not type_.startswith("<"):
        return 0, type_
    count, element = type_[1:-1].split(" x ")
    return int(count), element


def vector(lanes: int, element: str) -> str:
    """Spell a vector type; 0 lanes is the scalar."""
    return f"<{lanes} x {element}>" if lanes else element


def constant(type_: str, value: Any) -> Value:
    """Return a constant: a number for every lane, or a sequence with one for each."""
    lanes, element = lanes_of(type_)
    if not lanes:
        return Value(type_, literal(element, value))
    values = list(value) if isinstance(value, Sequence) else [value] * lanes
    return Value(type_, "<" + ", ".join(f"{element} {literal(element, v)}" for v in values) + ">")


@dataclass(slots=True)
class Builder:
    """Writes the body of one function.

    Attributes
    ----------
    lanes : int
        SIMD lanes of the block.
    features : frozenset of str
        Features of the CPU that may be used.
    entry, lines : list of str
        Allocas of the entry block; everything after it.
    declarations, globals_ : dict
        External functions and constants used, by name.
    nodes : list of str
        Metadata.
    """

    lanes: int
    features: frozenset[str] = frozenset()
    entry: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    declarations: dict[str, str] = field(default_factory=dict)
    globals_: dict[str, str] = field(default_factory=dict)
    nodes: list[str] = field(default_factory=list)
    count: int = 0

    def fresh(self, hint: str = "v") -> str:
        """Return a name not used before."""
        self.count += 1
        return f"{hint}{self.count}"

    def line(self, text: str) -> None:
        """Write one instruction without a result."""
        self.lines.append("  " + text)

    def value(self, type_: str, text: str) -> Value:
        """Write an instruction with a result of a type."""
        name = "%" + self.fresh()
        self.line(f"{name} = {text}")
        return Value(type_, name)

    def op(self, opcode: str, a: Value, b: Value | Any) -> Value:
        """Write a binary instruction; a number stands for a constant of the type of `a`."""
        b = b if isinstance(b, Value) else constant(a.type, b)
        return self.value(a.type, f"{opcode} {a}, {b.name}")

    def compare(self, predicate: str, a: Value, b: Value | Any) -> Value:
        """Write `icmp` or `fcmp` (`icmp slt`, `fcmp olt`, ...)."""
        b = b if isinstance(b, Value) else constant(a.type, b)
        lanes, _ = lanes_of(a.type)
        return self.value(vector(lanes, "i1"), f"{predicate} {a}, {b.name}")

    def select(self, cond: Value, a: Value, b: Value | Any) -> Value:
        """Write a select."""
        b = b if isinstance(b, Value) else constant(a.type, b)
        return self.value(a.type, f"select {cond}, {a}, {b}")

    def convert(self, opcode: str, a: Value, type_: str) -> Value:
        """Write a conversion (`sext`, `bitcast`, `fpext`, ...); nothing if the type is there already."""
        return a if a.type == type_ else self.value(type_, f"{opcode} {a} to {type_}")

    def call(self, type_: str, name: str, *args: Value, intrinsic: bool = True) -> Value:
        """Call an intrinsic, named without its type suffix, or an external function."""
        if intrinsic:
            lanes, element = lanes_of(args[0].type)
            short = {"float": "f32", "double": "f64", "half": "f16"}.get(element, element)
            name = f"llvm.{name}.v{lanes}{short}" if lanes else f"llvm.{name}.{short}"
        self.declare(type_, name, [a.type for a in args])
        return self.value(type_, f"call {type_} @{name}({', '.join(map(str, args))})")

    def declare(self, type_: str, name: str, args: Sequence[str]) -> None:
        """Declare an external function."""
        self.declarations[name] = f"declare {type_} @{name}({', '.join(args)})"

    def alloca(self, type_: str, hint: str, align: int = 0) -> Value:
        """Make room for a variable in the entry block."""
        # Names of programs may hold anything and begin with a digit, LLVM's may not; the number keeps them apart.
        name = "%" + self.fresh(f"_{_UNSPELLABLE.sub('_', hint)}.")
        self.entry.append(f"  {name} = alloca {type_}" + (f", align {align}" if align else ""))
        return Value("ptr", name)

    def load(self, type_: str, pointer: Value, align: int = 0) -> Value:
        """Load; `align` in bytes where it is less than natural."""
        return self.value(type_, f"load {type_}, {pointer}" + (f", align {align}" if align else ""))

    def store(self, value: Value, pointer: Value, align: int = 0) -> None:
        """Store; `align` in bytes where it is less than natural."""
        self.line(f"store {value}, {pointer}" + (f", align {align}" if align else ""))

    def gep(self, element: str, pointer: Value, index: Value | int) -> Value:
        """Return the address `index` elements after a pointer."""
        if isinstance(index, int) and index == 0:
            return pointer
        index = index if isinstance(index, Value) else constant("i64", index)
        return self.value("ptr", f"getelementptr {element}, {pointer}, {index}")

    def entry_gep(self, element: str, pointer: Value, index: int) -> Value:
        """Return the address `index` elements after a variable, computed in the entry block."""
        if index == 0:
            return pointer
        name = "%" + self.fresh()
        self.entry.append(f"  {name} = getelementptr {element}, {pointer}, i64 {index}")
        return Value("ptr", name)

    def splat(self, value: Value) -> Value:
        """Return a vector with a scalar in every lane."""
        type_ = vector(self.lanes, value.type)
        first = self.value(type_, f"insertelement {type_} poison, {value}, i32 0")
        return self.shuffle(first, [0] * self.lanes)

    def shuffle(self, a: Value, mask: Sequence[int], b: Value | None = None) -> Value:
        """Permute lanes; indices from `lanes` on select from `b`."""
        other = b.name if b is not None else "poison"
        picks = ", ".join(f"i32 {m}" if m >= 0 else "i32 poison" for m in mask)
        lanes, element = lanes_of(a.type)
        return self.value(
            vector(len(mask), element),
            f"shufflevector {a}, <{lanes} x {element}> {other}, <{len(mask)} x i32> <{picks}>",
        )

    def extract(self, a: Value, lane: int) -> Value:
        """Return one lane."""
        return self.value(lanes_of(a.type)[1], f"extractelement {a}, i32 {lane}")

    def insert(self, a: Value, element: Value, lane: int) -> Value:
        """Replace one lane."""
        return self.value(a.type, f"insertelement {a}, {element}, i32 {lane}")

    def table(self, type_: str, values: Sequence[Any]) -> Value:
        """Return the address of a constant array."""
        body = f"[{len(values)} x {type_}] [" + ", ".join(f"{type_} {literal(type_, v)}" for v in values) + "]"
        name = next((n for n, text in self.globals_.items() if text == body), None)
        if name is None:
            name = f"table{len(self.globals_)}"
            self.globals_[name] = body
        return Value("ptr", "@" + name)

    def hidden(self, pointer: Value) -> Value:
        """Return an address of which LLVM does not know that it is constant.

        A choice between a constant and another address it would take apart, to make it anew for every access.
        """
        return self.call("ptr", "llvm.launder.invariant.group.p0", pointer, intrinsic=False)

    def label(self, name: str) -> None:
        """Begin a basic block."""
        self.lines.append(f"{name}:")

    def branch(self, name: str) -> None:
        """Jump."""
        self.line(f"br label %{name}")

    def branch_if(self, cond: Value, then: str, orelse: str) -> None:
        """Jump to one of two blocks."""
        self.line(f"br {cond}, label %{then}, label %{orelse}")

    @contextmanager
    def when(self, cond: Value) -> Iterator[None]:
        """Run what is written inside only if a scalar condition holds."""
        name = self.fresh("if")
        self.branch_if(cond, f"{name}.then", f"{name}.end")
        self.label(f"{name}.then")
        yield
        self.branch(f"{name}.end")
        self.label(f"{name}.end")

    @contextmanager
    def loop(self, stop: Value, *, rare: bool = False) -> Iterator[Value]:
        """Count an i64 from 0 to `stop` around what is written inside; a `rare` loop is compiled as it stands.

        LLVM would spend most of its time on unrolling and vectorising loops that run at the borders of a matrix only.
        """
        name = self.fresh("loop")
        slot = self.alloca("i64", "index")
        self.store(constant("i64", 0), slot)
        self.branch(f"{name}.test")
        self.label(f"{name}.test")
        index = self.load("i64", slot)
        self.branch_if(self.compare("icmp slt", index, stop), f"{name}.body", f"{name}.end")
        self.label(f"{name}.body")
        yield index
        self.store(self.op("add", index, 1), slot)
        self.line(f"br label %{name}.test" + (f", !llvm.loop {self.metadata(_AS_IT_STANDS)}" if rare else ""))
        self.label(f"{name}.end")

    def metadata(self, hints: str) -> str:
        """Return a new node of metadata for a loop: it begins with itself, so that no two loops are one."""
        node = f"!{len(self.nodes)}"
        self.nodes.append(f"{node} = distinct !{{{node}, {hints}}}")
        return node
