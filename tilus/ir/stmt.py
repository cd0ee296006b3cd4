"""Statements: Stmt = Let | Assign | If | For | While | Break | Continue | InstStmt. A body is a tuple of statements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from tilus.ir.expr import Expr, Tensor, Var
from tilus.ir.instructions.base import Instruction
from tilus.ir.node import Node, children


@dataclass(frozen=True, slots=True)
class Let(Node):
    """Declare a scalar variable."""

    var: Var
    value: Expr


@dataclass(frozen=True, slots=True)
class Assign(Node):
    """Give a declared scalar variable a new value."""

    var: Var
    value: Expr


@dataclass(frozen=True, slots=True)
class If(Node):
    """Branch on a block-uniform boolean."""

    cond: Expr
    then: tuple[Stmt, ...]
    orelse: tuple[Stmt, ...] = ()


@dataclass(frozen=True, slots=True)
class For(Node):
    """Count `var` from `start` while below `stop` (above, for a negative step) by the constant `step`."""

    var: Var
    start: Expr
    stop: Expr
    step: int
    body: tuple[Stmt, ...]
    unroll: bool = False


@dataclass(frozen=True, slots=True)
class While(Node):
    """Repeat while a block-uniform boolean holds."""

    cond: Expr
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Break(Node):
    """Leave the innermost loop."""


@dataclass(frozen=True, slots=True)
class Continue(Node):
    """Begin the next turn of the innermost loop."""


@dataclass(frozen=True, slots=True)
class Selected:
    """Which hardware instruction a line became, and why: written by selection, read by the emitters.

    Attributes
    ----------
    atom : str
        Name in `tilus.ir.atoms`.
    width : int
        Elements per access for memory operations, 1 otherwise.
    note : str
        The reason, for the reader: `16 B: offset % 8 == 0`, `0 bank conflicts`.
    unmasked : tuple of int
        Dimensions of the *view* (those that the tile does not run along included) in which the access is proved to
        lie inside, from 0 to the extent: no bounds test is needed there.
    """

    atom: str
    width: int = 1
    note: str = ""
    unmasked: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class InstStmt(Node):
    """Run an instruction for the whole block; its result, if any, (re)defines `out`."""

    out: Tensor | Var | None
    inst: Instruction
    selected: Selected | None = None


Stmt: TypeAlias = Let | Assign | If | For | While | Break | Continue | InstStmt


def inst_stmts(node: Node) -> Iterator[InstStmt]:
    """Yield every instruction statement below a node, in program order."""
    left = [node]  # an instruction holds no statements: leaving it out makes this much faster than `walk`
    while left:
        item = left.pop()
        if isinstance(item, InstStmt):
            yield item
        else:
            left += [*children(item)][::-1]
