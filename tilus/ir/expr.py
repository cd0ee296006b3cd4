"""Scalar expressions and the two kinds of names: `Var` (scalars, pointers) and `Tensor`.

Expr = Var | Const | BlockId | Op | CastExpr
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from tilus.dtypes import DataType, boolean, f32, i32
from tilus.errors import assert_never
from tilus.ir.node import Node, identity_node
from tilus.ir.operators import OPERATORS
from tilus.ir.types import PointerType, ScalarType, TensorType


@identity_node
@dataclass(frozen=True, slots=True, eq=False)
class Var(Node):
    """A scalar or pointer variable: compared by identity; `name` is only what the printer starts from."""

    name: str
    type: ScalarType | PointerType


@identity_node
@dataclass(frozen=True, slots=True, eq=False)
class Tensor(Node):
    """A tensor variable: compared by identity. Register tensors may be redefined, like any variable."""

    name: str
    type: TensorType


@dataclass(frozen=True, slots=True)
class Const(Node):
    """A literal of a scalar type."""

    value: int | float | bool
    dtype: DataType


@dataclass(frozen=True, slots=True)
class BlockId(Node):
    """Index of the thread block along a grid axis (0, 1 or 2), an i32."""

    axis: int


@dataclass(frozen=True, slots=True)
class Op(Node):
    """A row of `OPERATORS` applied to scalars of one type (`where`: a boolean and two of one type)."""

    op: str
    args: tuple[Expr, ...]

    def __post_init__(self) -> None:
        if self.op not in OPERATORS or OPERATORS[self.op].arity != len(self.args):
            raise ValueError(f"no operator {self.op!r} with {len(self.args)} operands")


@dataclass(frozen=True, slots=True)
class CastExpr(Node):
    """A scalar converted to another type, as the `cast` instruction converts elements."""

    dtype: DataType
    value: Expr


Expr: TypeAlias = Var | Const | BlockId | Op | CastExpr
EXPR_CLASSES = (Var, Const, BlockId, Op, CastExpr)


def dtype_of(expr: Expr) -> DataType:
    """Return the data type of a scalar expression (of a pointer variable: what it points at)."""
    match expr:
        case Var(type=t):
            return t.dtype
        case Const(dtype=dtype) | CastExpr(dtype=dtype):
            return dtype
        case BlockId():
            return i32
        case Op(op=op, args=args):
            return boolean if OPERATORS[op].result == "bool" else dtype_of(args[-1])
        case _:
            assert_never(expr)


def const(value: float | bool, dtype: DataType | None = None) -> Const:
    """Return a literal; without a dtype bool, int and float become boolean, i32 and f32."""
    if dtype is None:
        dtype = boolean if isinstance(value, bool) else i32 if isinstance(value, int) else f32
    return Const(value, dtype)


def as_expr(value: Expr | float | bool, dtype: DataType | None = None) -> Expr:
    """Return an expression as it is and a Python number as a literal."""
    return value if isinstance(value, EXPR_CLASSES) else const(value, dtype)


def add(a: Expr, b: Expr) -> Expr:
    """Return a + b, with 0 folded."""
    if a == Const(0, dtype_of(a)):
        return b
    return a if b == Const(0, dtype_of(b)) else Op("add", (a, b))


def mul(a: Expr, b: Expr) -> Expr:
    """Return a * b, with 1 folded."""
    if a == Const(1, dtype_of(a)):
        return b
    return a if b == Const(1, dtype_of(b)) else Op("mul", (a, b))
