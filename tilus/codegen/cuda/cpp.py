"""C++ as data: the expressions and statements that emitters make and `printer` alone turns into text.

Expressions fold integer arithmetic as they are built, so that an emitter may write `base + i * stride` and leave no
zeros and ones in the text.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tilus.errors import Loc


class _Arithmetic:
    """Operators between expressions and Python integers; they build `Binary` nodes."""

    __slots__ = ()

    def __add__(self, other: Operand) -> Expr:
        return add(self, other)

    def __radd__(self, other: int) -> Expr:
        return add(self, other)

    def __sub__(self, other: Operand) -> Expr:
        return binary("-", self, other)

    def __rsub__(self, other: int) -> Expr:
        return binary("-", other, self)

    def __mul__(self, other: Operand) -> Expr:
        return mul(self, other)

    def __rmul__(self, other: int) -> Expr:
        return mul(self, other)

    def __floordiv__(self, other: Operand) -> Expr:
        return binary("/", self, other)

    def __mod__(self, other: Operand) -> Expr:
        return binary("%", self, other)

    def __lshift__(self, other: Operand) -> Expr:
        return binary("<<", self, other)

    def __rshift__(self, other: Operand) -> Expr:
        return binary(">>", self, other)

    def __and__(self, other: Operand) -> Expr:
        return binary("&", self, other)

    def __or__(self, other: Operand) -> Expr:
        return binary("|", self, other)

    def __xor__(self, other: Operand) -> Expr:
        return binary("^", self, other)

    def __getitem__(self, index: Operand) -> Index:
        return Index(as_expr(self), as_expr(index))


@dataclass(frozen=True, slots=True)
class Name(_Arithmetic):
    """A variable, or any other atom of text: `x`, `threadIdx.x`, `1.0f`."""

    text: str


@dataclass(frozen=True, slots=True)
class Int(_Arithmetic):
    """An integer literal; `bits` prints it as an unsigned hexadecimal pattern."""

    value: int
    bits: bool = False


@dataclass(frozen=True, slots=True)
class Unary(_Arithmetic):
    """A prefix operator."""

    op: str
    operand: Expr


@dataclass(frozen=True, slots=True)
class Binary(_Arithmetic):
    """An infix operator."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Conditional(_Arithmetic):
    """`condition ? then : otherwise`."""

    condition: Expr
    then: Expr
    otherwise: Expr


@dataclass(frozen=True, slots=True)
class Call(_Arithmetic):
    """A function applied to arguments."""

    function: str
    args: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Index(_Arithmetic):
    """`base[index]`."""

    base: Expr
    index: Expr


@dataclass(frozen=True, slots=True)
class Convert(_Arithmetic):
    """`(type)operand`."""

    type: str
    operand: Expr


Expr: TypeAlias = Name | Int | Unary | Binary | Conditional | Call | Index | Convert
Operand: TypeAlias = Expr | int
EXPR_CLASSES = (Name, Int, Unary, Binary, Conditional, Call, Index, Convert)

ZERO, ONE = Int(0), Int(1)
TRUE, FALSE = Name("true"), Name("false")


def as_expr(value: object) -> Expr:
    """Return an expression as it is, and a Python integer as a literal."""
    if isinstance(value, EXPR_CLASSES):
        return value
    assert isinstance(value, int)
    return Int(value)


def bits(value: int) -> Int:
    """Return a 32-bit pattern."""
    return Int(value & 0xFFFFFFFF, bits=True)


def add(a: object, b: object) -> Expr:
    """Return a + b; a constant is kept last and added to the constant of the other side."""
    a, b = as_expr(a), as_expr(b)
    if isinstance(a, Int) and isinstance(b, Int):
        return Int(a.value + b.value)
    if isinstance(a, Int):
        a, b = b, a
    if not isinstance(b, Int):
        return Binary("+", a, b)
    if b.value == 0:
        return a
    if isinstance(a, Binary) and a.op == "+" and isinstance(a.right, Int) and not a.right.bits:
        return add(a.left, a.right.value + b.value)
    return Binary("+", a, b)


def mul(a: object, b: object) -> Expr:
    """Return a * b; a constant is kept last."""
    a, b = as_expr(a), as_expr(b)
    if isinstance(a, Int) and isinstance(b, Int):
        return Int(a.value * b.value)
    if isinstance(a, Int):
        a, b = b, a
    if isinstance(b, Int) and b.value in (0, 1):
        return a if b.value else ZERO
    return Binary("*", a, b)


_FOLDS = {
    "-": lambda a, b: a - b,
    "/": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "<<": lambda a, b: a << b,
    ">>": lambda a, b: a >> b,
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
}
# op -> right operand that leaves the left one as it is
_UNITS = {"-": 0, "/": 1, "<<": 0, ">>": 0, "|": 0, "^": 0}


def binary(op: str, a: object, b: object) -> Expr:
    """Return `a op b`, folded where both are literals (not negative, but for `-`) or b changes nothing."""
    a, b = as_expr(a), as_expr(b)
    if isinstance(b, Int):
        if isinstance(a, Int) and op in _FOLDS and ((a.value >= 0 and b.value >= 0) or op == "-"):
            return Int(_FOLDS[op](a.value, b.value), bits=a.bits or b.bits)
        if _UNITS.get(op) == b.value:
            return a
        if op == "%" and b.value == 1:
            return ZERO
    return Binary(op, a, b)


def call(function: str, *args: Operand) -> Call:
    """Return a call."""
    return Call(function, tuple(as_expr(arg) for arg in args))


def convert(type_: str, value: Operand) -> Expr:
    """Return `(type)value`; small literals need none."""
    return Convert(type_, as_expr(value))


def total(terms: Sequence[Operand]) -> Expr:
    """Return the sum of terms, constants folded into the last."""
    constant = sum(t if isinstance(t, int) else t.value for t in terms if isinstance(t, int | Int))
    result: Expr = ZERO
    for term in terms:
        if not isinstance(term, int | Int):
            result = add(result, term)
    return add(result, constant)


def all_of(conditions: Sequence[Expr]) -> Expr:
    """Return the conjunction of conditions, `true` of none."""
    found = [c for c in dict.fromkeys(conditions) if c != TRUE]
    if FALSE in found:
        return FALSE
    result = found[0] if found else TRUE
    for condition in found[1:]:
        result = Binary("&&", result, condition)
    return result


def float_literal(value: float) -> Expr:
    """Return an f32 literal of exactly this value (rounded to f32 if need be)."""
    pattern = struct.unpack("<I", struct.pack("<f", value))[0]
    if not math.isfinite(value) or (value == 0 and math.copysign(1, value) < 0):
        return call("__uint_as_float", bits(pattern))
    return Name(f"{struct.unpack('<f', struct.pack('<f', value))[0]!r}f")


def double_literal(value: float) -> Expr:
    """Return an f64 literal."""
    if math.isfinite(value):
        return Name(repr(float(value)))
    pattern = struct.unpack("<q", struct.pack("<d", value))[0]
    return call("__longlong_as_double", Name(f"{pattern}ll"))


# --- statements -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Declare:
    """`type name = value;`, or an array of `extent` elements. A constant never changes."""

    type: str
    name: str
    value: Expr | None = None
    extent: int | None = None
    constant: bool = False


@dataclass(frozen=True, slots=True)
class Set:
    """`target = value;`."""

    target: Expr
    value: Expr


@dataclass(frozen=True, slots=True)
class Do:
    """A call for its effect."""

    call: Call


@dataclass(frozen=True, slots=True)
class Comment:
    """A remark, one line.

    `loc` is where in the user's program the code after it comes from, `shared` the bytes of shared memory that this
    code may access, if fewer than all.
    """

    text: str
    loc: Loc | None = None
    shared: range | None = None


@dataclass(frozen=True, slots=True)
class If:
    """A branch."""

    condition: Expr
    then: tuple[Stmt, ...]
    otherwise: tuple[Stmt, ...] = ()


@dataclass(frozen=True, slots=True)
class For:
    """`for (type name = start; name < stop; name += step)`, with `>` for a negative step."""

    type: str
    name: str
    start: Expr
    stop: Expr
    step: int
    body: tuple[Stmt, ...]
    unroll: bool = False


@dataclass(frozen=True, slots=True)
class While:
    """A loop."""

    condition: Expr
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Statements with names of their own."""

    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Jump:
    """`break`, `continue`, or `return` with a value."""

    word: str
    value: Expr | None = None


@dataclass(frozen=True, slots=True)
class Asm:
    """An inline PTX instruction: operands are (constraint, expression), outputs first."""

    template: str
    outputs: tuple[tuple[str, Expr], ...]
    inputs: tuple[tuple[str, Expr], ...]
    touches_memory: bool
    stays: bool  # must neither move nor vanish


Stmt: TypeAlias = Declare | Set | Do | Comment | If | For | While | Block | Jump | Asm


@dataclass(frozen=True, slots=True)
class Function:
    """A device function that is always inlined; `params` are texts such as `u32* d`."""

    name: str
    result: str
    params: tuple[str, ...]
    body: tuple[Stmt, ...]
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A constant array in global memory."""

    type: str
    name: str
    values: tuple[int, ...]
