"""A cast of integers followed by the addition of a constant is one cast: it ends in an addition of its own.

So the zero point in the middle of the range, which a kernel subtracts from every weight, costs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tilus.casts import Linear, linear
from tilus.codegen.cuda.cast_integers import HALVES
from tilus.codegen.cuda.context import register
from tilus.codegen.cuda.scopes import bodies_of
from tilus.ir.expr import Const, Tensor
from tilus.ir.instructions import Cast, Elementwise
from tilus.ir.node import walk
from tilus.ir.program import Program
from tilus.ir.stmt import InstStmt, Stmt


@dataclass(frozen=True, slots=True)
class Fusions:
    """What is found in a program, by identity of statements.

    Attributes
    ----------
    absorbed : frozenset of int
        Casts that are done by the statement that uses them.
    offsets : dict
        For the statements that do it: the tile to cast, and what to add.
    """

    absorbed: frozenset[int]
    offsets: dict[int, tuple[Tensor, int]]


def find_fusions(program: Program) -> Fusions:
    """Return the casts that may take an addition with them."""
    uses = Counter(node for node in walk(program) if isinstance(node, Tensor))
    absorbed: set[int] = set()
    offsets: dict[int, tuple[Tensor, int]] = {}
    for body in _bodies(program.body):
        for at, stmt in enumerate(body):
            found = _addition(body[at + 1 :], stmt, uses) if isinstance(stmt, InstStmt) else None
            if found is not None and isinstance(stmt, InstStmt) and isinstance(stmt.inst, Cast):
                absorbed.add(id(stmt))
                offsets[id(found[0])] = stmt.inst.x, found[1]
    return Fusions(frozenset(absorbed), offsets)


def _bodies(body: tuple[Stmt, ...]) -> Iterator[tuple[Stmt, ...]]:
    yield body
    for stmt in body:
        for inner in bodies_of(stmt):
            yield from _bodies(inner)


def _addition(rest: tuple[Stmt, ...], stmt: InstStmt, uses: Counter[Tensor]) -> tuple[Stmt, int] | None:
    """Return the one use of a cast's result, and the number, if that adds one and the operand is still the same."""
    if not isinstance(stmt.inst, Cast) or not isinstance(stmt.out, Tensor) or uses[stmt.out] != 2:
        return None
    kind, operand = linear(register(stmt.inst.x).dtype), stmt.inst.x
    if kind is None or kind.nbits > 8 or stmt.inst.dtype.name not in HALVES:
        return None
    for other in rest:
        if any(node is stmt.out for node in walk(other)):
            offset = _constant(other, stmt.out)
            return (other, offset) if offset is not None and _is_exact(kind, stmt.inst.dtype.name, offset) else None
        if any(isinstance(node, InstStmt) and node.out is operand for node in walk(other)):
            return None
    return None


def _constant(stmt: Stmt, tile: Tensor) -> int | None:
    """Return k of `tile + k`, a whole number; None for everything else."""
    if not isinstance(stmt, InstStmt) or not isinstance(stmt.inst, Elementwise):
        return None
    match stmt.inst:
        case Elementwise(op="add", args=(a, Const(value=value)) | (Const(value=value), a)) if a is tile:
            number = float(value)
        case Elementwise(op="sub", args=(a, Const(value=value))) if a is tile:
            number = -float(value)
        case _:
            return None
    return int(number) if number.is_integer() and abs(number) <= 1024 else None


def _is_exact(kind: Linear, target: str, offset: int) -> bool:
    """Whether every result, and so every constant on the way, is a whole number that the target holds exactly."""
    limit = 2 << HALVES[target].mantissa
    lowest = kind.offset + offset
    return -limit // 2 <= lowest and lowest + (1 << kind.nbits) <= limit // 2
