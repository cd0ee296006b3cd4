"""Runs a program block by block, statement by statement."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from tilus.dtypes import DataType, i32
from tilus.errors import DTypeError, VMError, assert_never
from tilus.ir.expr import BlockId, CastExpr, Const, Expr, Op, Tensor, Var, dtype_of
from tilus.ir.printer import Names, to_text
from tilus.ir.program import Program
from tilus.ir.stmt import Assign, Break, Continue, For, If, InstStmt, Let, Stmt, While
from tilus.ir.types import PointerType
from tilus.vm.cluster import Cluster, clusters_of
from tilus.vm.fault import Fault
from tilus.vm.instructions import MEANING
from tilus.vm.memory import make_buffer
from tilus.vm.shared import SharedMemory
from tilus.vm.values import Array, apply, cast, decode, encode

MAX_TURNS = 1_000_000


def run(
    program: Program,
    args: Sequence[np.ndarray[Any, Any] | int | float],
    *,
    blocks: Iterable[tuple[int, ...]] | None = None,
    max_turns: int = MAX_TURNS,
) -> None:
    """Run a program on arrays, which it changes in place.

    Parameters
    ----------
    program : Program
        Lowered or not.
    args : sequence of numpy.ndarray and numbers
        One per parameter. A pointer takes a contiguous array of its type (see `make_buffer`), a scalar a number.
    blocks : iterable of tuple of int, optional
        Run these blocks only, in this order; by default all of them, the last axis fastest. Blocks of a cluster run
        at the same time, and only all of them.
    max_turns : int
        Turns of loops that a block may make before it is taken to hang.

    Raises
    ------
    VMError
        For arguments that do not fit, and every fault of the program: `loc` is the statement's.
    """
    if len(args) != len(program.params):
        raise VMError(f"{program.name} takes {len(program.params)} arguments, got {len(args)}")
    env: dict[Var | Tensor, Any] = {
        p.var: _bind(p.var, p.multiple, value) for p, value in zip(program.params, args, strict=True)
    }
    grid = _grid(program, env)
    if program.cluster and blocks is None:
        _run_clusters(program, grid, env, max_turns)
        return
    for block in np.ndindex(*grid) if blocks is None else blocks:
        if len(block) != len(grid) or not all(0 <= i < n for i, n in zip(block, grid, strict=True)):
            raise VMError(f"there is no block {tuple(block)} in the grid {grid}")
        Block(program, tuple(block), dict(env), max_turns).run()


def _run_clusters(program: Program, grid: tuple[int, ...], env: dict[Var | Tensor, Any], max_turns: int) -> None:
    if any(n % extent for n, extent in zip(grid, program.cluster, strict=True)):
        raise VMError(f"a grid of {grid} blocks is not made of whole clusters of {program.cluster}", loc=program.loc)
    for places in clusters_of(grid, program.cluster):
        cluster = Cluster(len(places))
        blocks = [Block(program, at, dict(env), max_turns, cluster, rank) for rank, at in enumerate(places)]
        cluster.run([block.run for block in blocks])


def _grid(program: Program, env: dict[Var | Tensor, Any]) -> tuple[int, ...]:
    try:
        grid = Block(program, (), env, 0).integers(program.grid)
    except Fault as fault:
        raise VMError(f"the grid of {program.name}: {fault.message}", loc=program.loc) from None
    if any(extent < 0 for extent in grid):
        raise VMError(f"the grid of {program.name} is {grid}: extents must not be negative", loc=program.loc)
    return grid


def _bind(var: Var, multiple: int, value: Any) -> Any:
    """Return what a parameter is bound to: a buffer or a scalar."""
    kind = var.type
    if isinstance(kind, PointerType):
        buffer = make_buffer(var.name, kind.dtype, value)
        address = value.__array_interface__["data"][0]
        if buffer.size and address % multiple:
            raise VMError(f"argument {var.name!r} must be aligned to {multiple} bytes, its address is {address:#x}")
        return buffer
    if not isinstance(value, bool | int | float | np.generic):
        raise VMError(f"argument {var.name!r} must be a number of type {kind}, got {type(value).__name__}")
    if kind.dtype.is_integer and not _fits(kind.dtype, value):
        raise VMError(f"argument {var.name!r} must be a number of type {kind}, got {value!r}")
    if kind.dtype.is_integer and int(value) % multiple:
        raise VMError(f"argument {var.name!r} must be a multiple of {multiple}, got {value!r}")
    return encode(kind.dtype, np.asarray(value))


def _fits(kind: DataType, value: Any) -> bool:
    return float(value).is_integer() and kind.min_value <= int(value) <= kind.max_value


class _Flow(enum.Enum):
    NEXT = enum.auto()
    BREAK = enum.auto()
    CONTINUE = enum.auto()


@lru_cache(maxsize=4096)
def _literal(text: str, kind: DataType) -> Array:
    # By text, because 0.0 == -0.0 and True == 1 as keys of a cache.
    if kind.is_boolean:
        return encode(kind, text not in ("False", "0"))
    return encode(kind, int(text) if text.lstrip("-").isdigit() else float(text))


class Block:
    """One thread block: its variables, its shared memory, and the statement it is at.

    Parameters
    ----------
    program : Program
    index : tuple of int
        Block index along each grid axis.
    env : dict
        What variables are bound to: buffers, scalars (arrays without dimensions), and once they are defined register
        tensors (arrays of the tile's shape), views and shared tensors.
    max_turns : int
        Turns of loops before the block is taken to hang.
    cluster : Cluster, optional
        The blocks that run at the same time.
    rank : int
        Among these.
    """

    def __init__(
        self,
        program: Program,
        index: tuple[int, ...],
        env: dict[Var | Tensor, Any],
        max_turns: int,
        cluster: Cluster | None = None,
        rank: int = 0,
    ) -> None:
        self.program = program
        self.index = index
        self.env = env
        self.shared = SharedMemory(program.shared_bytes, program.num_threads)
        self.max_turns = max_turns
        self.cluster, self.rank = cluster, rank
        self.turns = 0

    def run(self) -> None:
        """Run all statements."""
        self.body(self.program.body)

    # Statements

    def body(self, body: tuple[Stmt, ...]) -> _Flow:
        """Run statements up to the first that leaves them."""
        for stmt in body:
            try:
                flow = self.statement(stmt)
            except Fault as fault:
                raise self.placed(stmt, fault.message, fault.hint) from None
            except DTypeError as error:
                raise self.placed(stmt, error.message, error.hint) from error
            if flow is not _Flow.NEXT:
                return flow
        return _Flow.NEXT

    def statement(self, stmt: Stmt) -> _Flow:
        """Run one statement; say how to go on."""
        match stmt:
            case Let(var=var, value=value) | Assign(var=var, value=value):
                self.env[var] = self.scalar(value)
            case If(cond=cond, then=then, orelse=orelse):
                return self.body(then if self.scalar(cond) else orelse)
            case For():
                self.for_loop(stmt)
            case While(cond=cond, body=body):
                while self.scalar(cond) and self.turn(body):
                    pass
            case Break():
                return _Flow.BREAK
            case Continue():
                return _Flow.CONTINUE
            case InstStmt(out=out, inst=inst):
                result = MEANING[type(inst)](self, stmt, inst)
                if out is not None:
                    self.env[out] = result
            case _:
                assert_never(stmt)
        return _Flow.NEXT

    def for_loop(self, stmt: For) -> None:
        """Run a counting loop."""
        kind = dtype_of(stmt.var)
        for value in range(self.integer(stmt.start), self.integer(stmt.stop), stmt.step):
            self.env[stmt.var] = encode(kind, value)
            if not self.turn(stmt.body):
                return

    def turn(self, body: tuple[Stmt, ...]) -> bool:
        """Run a loop's body once; whether to go on."""
        self.turns += 1
        if self.turns > self.max_turns:
            raise Fault(f"the block has made {self.max_turns} turns of its loops: it seems to hang")
        return self.body(body) is not _Flow.BREAK

    def placed(self, stmt: Stmt, message: str, hint: str | None) -> VMError:
        """Return the error for a fault at a statement."""
        names = Names()
        to_text(self.program, names)
        names.show_types()
        line = to_text(stmt, names).partition("\n")[0]
        loc = (stmt.inst.loc if isinstance(stmt, InstStmt) else None) or stmt.loc
        return VMError(f"{message}\n    in block {self.index}: {line}", loc=loc, hint=hint)

    # Values

    def read(self, var: Var | Tensor) -> Any:
        """Return what a variable is bound to; `Fault` if it was never defined."""
        if var not in self.env:
            what = "register" if isinstance(var, Tensor) else "variable"
            raise Fault(f"{what} {var.name!r} is read before anything was written to it")
        return self.env[var]

    def tile(self, tensor: Tensor) -> Array:
        """Return the elements of a register tensor."""
        return np.asarray(self.read(tensor))

    def value(self, operand: Tensor | Expr) -> Array:
        """Return the elements of a register tensor, or of a scalar expression."""
        return self.tile(operand) if isinstance(operand, Tensor) else self.scalar(operand)

    def scalar(self, expr: Expr) -> Array:
        """Return the value of an expression, an array without dimensions."""
        match expr:
            case Var():
                return np.asarray(self.read(expr))
            case Const(value=value, dtype=kind):
                return _literal(str(value), kind)
            case BlockId(axis=axis):
                return encode(i32, self.index[axis])
            case CastExpr(dtype=kind, value=inner):
                return cast(self.scalar(inner), dtype_of(inner), kind)
            case Op(op=op, args=args):
                return np.asarray(apply(op, dtype_of(args[-1]), tuple(self.scalar(arg) for arg in args)))
            case _:
                assert_never(expr)

    def integer(self, expr: Expr) -> int:
        """Return the value of an integer expression."""
        return int(decode(dtype_of(expr), self.scalar(expr)))

    def integers(self, exprs: Sequence[Expr]) -> tuple[int, ...]:
        """Return the values of integer expressions."""
        return tuple(self.integer(e) for e in exprs)
