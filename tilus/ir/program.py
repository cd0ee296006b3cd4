"""A program: one kernel for a grid of thread blocks."""

from __future__ import annotations

from dataclasses import dataclass

from tilus.ir.equality import alpha_equal
from tilus.ir.expr import Expr, Var
from tilus.ir.node import Node
from tilus.ir.printer import Names, to_text
from tilus.ir.stmt import Stmt


@dataclass(frozen=True, slots=True)
class Param(Node):
    """A run-time parameter; `multiple` is what the caller promises.

    The promise of a pointer is its alignment in bytes, that of an integer a number that divides it.
    """

    var: Var
    multiple: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Program(Node):
    """A kernel.

    Two programs are equal if they differ in nothing but names of variables and locations; `str` is the text form.

    Attributes
    ----------
    name : str
    params : tuple of Param
        Pointers and scalars, in call order.
    grid : tuple of 1 to 3 Expr
        Number of blocks along each axis, in terms of the parameters.
    num_warps : int
        Warps per block, as the author wrote it.
    body : tuple of Stmt
    producer : bool
        Whether a warp of its own starts asynchronous copies: as the author wants it, and once instructions are
        selected, as it is. It is not among `num_warps`, and changes nothing of what the program means.
    cluster : tuple of int
        Extents, one for each axis of the grid, of groups of blocks that run at the same time and can reach each other;
        () where blocks run alone.
    num_threads : int or None
        Threads per block on the target; None until layouts are inferred. On a CPU these are SIMD lanes.
    shared_bytes : int or None
        Shared memory per block; None until it is planned.
    """

    name: str
    params: tuple[Param, ...]
    grid: tuple[Expr, ...]
    num_warps: int
    body: tuple[Stmt, ...]
    producer: bool = False
    cluster: tuple[int, ...] = ()
    num_threads: int | None = None
    shared_bytes: int | None = None

    def __str__(self) -> str:
        return to_text(self)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Program) and alpha_equal(self, other))

    def __hash__(self) -> int:
        return hash(to_text(self, Names(numbered=True)))
