"""A program: one kernel for a grid of thread blocks."""

from __future__ import annotations

from dataclasses import dataclass

from tilus.ir.expr import Expr, Var
from tilus.ir.node import Node
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
    num_threads: int | None = None
    shared_bytes: int | None = None
