"""Programs made step by step: what tests and passes use where the language's front end does not apply.

b = Builder("double")
x, n = b.pointer("x", f32), b.scalar("n", i32)
view = b.inst(GlobalView(x, (n,), (const(1),)), "view")
tile = b.inst(LoadGlobal(view, (op("mul", b.block_id(0), 64),), (64,), (0,)), "tile")
...
program = b.program(grid=(op("floordiv", n, 64),), warps=1)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tilus.dtypes import DataType, i32
from tilus.errors import InternalError
from tilus.ir.expr import EXPR_CLASSES, BlockId, Expr, Op, Tensor, Var, as_expr, dtype_of
from tilus.ir.instructions import Instruction, result_type
from tilus.ir.program import Param, Program
from tilus.ir.stmt import Assign, Break, Continue, For, If, InstStmt, Let, Selected, Stmt, While
from tilus.ir.types import PointerType, RegisterType, ScalarType, SharedType
from tilus.layouts import RegisterLayout, SharedLayout

Number = float | bool


def op(name: str, *args: Expr | Number) -> Op:
    """Return an operator applied to expressions; Python numbers take the type of the last expression among them."""
    dtype = next((dtype_of(a) for a in reversed(args) if isinstance(a, EXPR_CLASSES)), None)
    return Op(name, tuple(as_expr(a, dtype) for a in args))


class Builder:
    """Collects parameters and statements of one program.

    Parameters
    ----------
    name : str
        Name of the program.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._params: list[Param] = []
        self._bodies: list[list[Stmt]] = [[]]

    def pointer(self, name: str, dtype: DataType, multiple: int = 1) -> Var:
        """Add a pointer parameter; `multiple` is its alignment in bytes."""
        return self._param(Var(name, PointerType(dtype)), multiple)

    def scalar(self, name: str, dtype: DataType = i32, multiple: int = 1) -> Var:
        """Add a scalar parameter that is divisible by `multiple`."""
        return self._param(Var(name, ScalarType(dtype)), multiple)

    def _param(self, var: Var, multiple: int) -> Var:
        self._params.append(Param(var, multiple))
        return var

    def block_id(self, axis: int) -> BlockId:
        """Return the index of the block along a grid axis."""
        return BlockId(axis)

    def append(self, stmt: Stmt) -> None:
        """Add a statement that was made elsewhere."""
        self._bodies[-1].append(stmt)

    def let(self, name: str, value: Expr | Number) -> Var:
        """Declare a scalar variable of the value's type."""
        expr = as_expr(value)
        var = Var(name, ScalarType(dtype_of(expr)))
        self.append(Let(var, expr))
        return var

    def assign(self, var: Var, value: Expr | Number) -> None:
        """Give a variable a new value; a Python number takes its type."""
        self.append(Assign(var, as_expr(value, dtype_of(var))))

    def inst(
        self,
        inst: Instruction,
        name: str = "t",
        *,
        layout: RegisterLayout | SharedLayout | None = None,
        out: Tensor | Var | None = None,
        selected: Selected | None = None,
    ) -> Any:
        """Add an instruction and return its result: a new tensor or scalar, or None where it has none.

        Parameters
        ----------
        inst : Instruction
        name : str
            Name of the result.
        layout : optional
            Layout of the result, where the instruction fixes none.
        out : Tensor or Var, optional
            Redefine this instead of making a new variable.
        selected : Selected, optional
            The hardware instruction.
        """
        result = result_type(inst)
        if isinstance(result, RegisterType) and isinstance(layout, RegisterLayout):
            result = replace(result, layout=layout)
        if isinstance(result, SharedType) and isinstance(layout, SharedLayout):
            result = replace(result, layout=layout)
        if out is None and result is not None:
            out = Var(name, result) if isinstance(result, ScalarType | PointerType) else Tensor(name, result)
        self.append(InstStmt(out, inst, selected))
        return out

    @contextmanager
    def for_(
        self, name: str, start: Expr | int, stop: Expr | int, step: int = 1, *, unroll: bool = False
    ) -> Iterator[Var]:
        """Open a counting loop; yields the loop variable, which has the type of `stop`."""
        stop = as_expr(stop, dtype_of(start) if isinstance(start, EXPR_CLASSES) else i32)
        var = Var(name, ScalarType(dtype_of(stop)))
        start = as_expr(start, dtype_of(stop))
        self._bodies.append([])
        yield var
        self.append(For(var, start, stop, step, self._close(), unroll))

    @contextmanager
    def while_(self, cond: Expr) -> Iterator[None]:
        """Open a loop that runs while the condition holds."""
        self._bodies.append([])
        yield
        self.append(While(cond, self._close()))

    @contextmanager
    def if_(self, cond: Expr) -> Iterator[None]:
        """Open the branch taken where the condition holds."""
        self._bodies.append([])
        yield
        self.append(If(cond, self._close()))

    @contextmanager
    def else_(self) -> Iterator[None]:
        """Open the other branch of the `if_` just closed."""
        branch = self._bodies[-1][-1] if self._bodies[-1] else None
        if not isinstance(branch, If) or branch.orelse:
            raise InternalError("else_ must follow an if_ that has no other branch yet")
        self._bodies.append([])
        yield
        orelse = self._close()
        self._bodies[-1][-1] = replace(branch, orelse=orelse)

    def break_(self) -> None:
        """Leave the innermost loop."""
        self.append(Break())

    def continue_(self) -> None:
        """Begin the next turn of the innermost loop."""
        self.append(Continue())

    def _close(self) -> tuple[Stmt, ...]:
        return tuple(self._bodies.pop())

    def program(
        self,
        grid: Sequence[Expr | int] = (1,),
        warps: int = 1,
        *,
        producer: bool = False,
        cluster: tuple[int, ...] = (),
        num_threads: int | None = None,
        shared_bytes: int | None = None,
    ) -> Program:
        """Return the program made so far."""
        if len(self._bodies) != 1:
            raise InternalError(f"{len(self._bodies) - 1} blocks of {self.name} are still open")
        blocks = tuple(as_expr(n) for n in grid)
        body = tuple(self._bodies[0])
        return Program(
            self.name, tuple(self._params), blocks, warps, body, producer, cluster, num_threads, shared_bytes
        )
