"""Writes IR statements: the one place where the front end makes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from tilus.errors import Loc
from tilus.ir.expr import Const, Expr, Tensor, Var, dtype_of
from tilus.ir.instructions import Copy, Dot, Elementwise, Instruction, result_type
from tilus.ir.node import children, walk
from tilus.ir.stmt import Assign, InstStmt, Let, Stmt
from tilus.ir.types import ScalarType
from tilus.lang.values import Scalar, Tile, Value
from tilus.layouts import RegisterLayout, SharedLayout

N = TypeVar("N", Var, Tensor)


@dataclass(frozen=True, slots=True)
class Launch:
    """What `launch` said."""

    grid: tuple[Expr, ...]
    warps: int
    producer: bool
    cluster: tuple[int, ...]


@dataclass(slots=True)
class Builder:
    """The program being written.

    Attributes
    ----------
    loc : Loc
        The place in the user's text that is being evaluated.
    root, block : list of Stmt
        The kernel's body; the body that statements are appended to.
    variables : set
        Variables and tensors that are redefined by the loop or branch being written. A value that reads one is
        copied before another name takes it.
    fresh : set
        Results of instructions that no name holds yet.
    layouts : dict
        Layouts that `annotate` gave to tensors after their definition.
    launch : Launch or None
    """

    loc: Loc
    root: list[Stmt] = field(default_factory=list)
    block: list[Stmt] = field(init=False)
    variables: set[Var | Tensor] = field(default_factory=set)
    fresh: set[Var | Tensor] = field(default_factory=set)
    layouts: dict[Tensor, RegisterLayout] = field(default_factory=dict)
    launch: Launch | None = None

    def __post_init__(self) -> None:
        self.block = self.root

    @contextmanager
    def nested(self) -> Iterator[list[Stmt]]:
        """Append to a new body inside the `with`."""
        outer, self.block = self.block, []
        try:
            yield self.block
        finally:
            self.block = outer

    def append(self, stmt: Stmt) -> None:
        """Append a statement."""
        self.block.append(stmt)

    def run(self, inst: Instruction) -> None:
        """Append an instruction without a result."""
        result_type(inst)
        self.append(InstStmt(None, inst, loc=self.loc))

    def tensor(self, inst: Instruction, name: str = "t", layout: RegisterLayout | SharedLayout | None = None) -> Tensor:
        """Append an instruction and return its result; `layout` fixes the layout of the result."""
        kind = result_type(inst)
        if layout is not None:
            kind = replace(kind, layout=layout)  # type: ignore[type-var]
        out = Tensor(name, kind, loc=self.loc)  # type: ignore[arg-type]
        self.append(InstStmt(out, inst, loc=self.loc))
        self.fresh.add(out)
        return out

    def tile(self, inst: Instruction, layout: RegisterLayout | None = None) -> Tile:
        """Append an instruction that makes a register tensor."""
        return Tile(self.tensor(inst, layout=layout))

    def scalar(self, inst: Instruction, name: str) -> Scalar:
        """Append an instruction that makes a scalar."""
        kind = result_type(inst)
        assert isinstance(kind, ScalarType)
        out = Var(name, kind, loc=self.loc)
        self.append(InstStmt(out, inst, loc=self.loc))
        self.fresh.add(out)
        return Scalar(out)

    def let(self, name: str, value: Expr) -> Var:
        """Declare a scalar variable."""
        var = Var(name, ScalarType(dtype_of(value)), loc=self.loc)
        self.append(Let(var, value, loc=self.loc))
        return var

    def assign(self, var: Var, value: Expr) -> None:
        """Give a declared variable a new value."""
        if value is not var:
            self.append(Assign(var, value, loc=self.loc))

    def copy(self, x: Tensor, name: str) -> Tensor:
        """Copy a register tensor into a new one."""
        out = Tensor(name, x.type, loc=self.loc)
        self.append(InstStmt(out, Copy(x, loc=self.loc), loc=self.loc))
        return out

    def redefine(self, out: Tensor, value: Tensor) -> None:
        """Give a register tensor the value of another: the instruction that made it may write there directly."""
        if out is value:
            return
        last = self.block[-1] if self.block else None
        direct = (
            isinstance(last, InstStmt)
            and last.out is value
            and value in self.fresh
            and value.type == out.type
            and _may_overwrite(last.inst, out)
        )
        if direct:
            assert isinstance(last, InstStmt)
            self.fresh.discard(value)
            self.block[-1] = replace(last, out=out)
        else:
            self.append(InstStmt(out, Copy(value, loc=self.loc), loc=self.loc))

    def reads_variable(self, value: Value) -> bool:
        """Whether a scalar or tile would change if a variable were redefined."""
        if isinstance(value, Scalar):
            return any(node in self.variables for node in walk(value.expr) if isinstance(node, Var))
        return isinstance(value, Tile) and value.tensor in self.variables

    def snapshot(self, value: Value, name: str = "v") -> Value:
        """Return the value as it is now, unaffected by later redefinitions."""
        if isinstance(value, tuple):
            return tuple(self.snapshot(item, name) for item in value)
        if not self.reads_variable(value):
            return value
        return Scalar(self.let(name, value.expr)) if isinstance(value, Scalar) else Tile(self.copy(value.tensor, name))

    def named(self, value: Value, name: str) -> Value:
        """Return the value as a name holds it: scalars declared under that name, results renamed."""
        match value:
            case tuple():
                return tuple(self.named(item, name) for item in value)
            case Scalar(expr=Const()):
                return value
            case Scalar(expr=Var() as var) if var not in self.variables:
                return Scalar(self._rename(var, name))
            case Scalar(expr=expr):
                return Scalar(self.let(name, expr))
            case Tile(tensor=tensor):
                return Tile(self._rename(tensor, name)) if tensor not in self.variables else self.snapshot(value, name)
            case _ if hasattr(value, "tensor"):
                return replace(value, tensor=self._rename(value.tensor, name))
            case _:
                return value

    def _rename(self, old: N, name: str) -> N:
        """Call a fresh result by the user's name."""
        if old not in self.fresh:
            return old
        self.fresh.discard(old)
        return self.replace_result(old, replace(old, name=name)) or old

    def replace_result(self, old: N, new: N) -> N | None:
        """Let the instruction that made `old` make `new`; None if it is not in this body or `old` is used already."""
        for position in reversed(range(len(self.block))):
            stmt = self.block[position]
            if isinstance(stmt, InstStmt) and stmt.out is old:
                self.block[position] = replace(stmt, out=new)
                return new
            if any(node is old for node in walk(stmt)):
                return None
        return None


def _may_overwrite(inst: Instruction, out: Tensor) -> bool:
    """Whether an instruction still means the same when its result replaces an operand.

    An element of an elementwise result needs the same element of an operand of its shape only, and a dot product adds
    to its accumulator; any other instruction may read an element after it was overwritten.
    """
    match inst:
        case Elementwise():
            return True
        case Dot(a=a, b=b):
            return out is not a and out is not b
        case _:
            return all(child is not out for child in children(inst))
