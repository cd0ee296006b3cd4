"""Evaluate grid extents on the host: IR expressions over the arguments, compiled to one Python function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tilus.errors import LaunchError, assert_never
from tilus.ir.expr import BlockId, CastExpr, Const, Expr, Op, Var
from tilus.ir.operators import OPERATORS
from tilus.ir.program import Program

Grid = Callable[[Sequence[Any]], tuple[int, ...]]


def grid_function(program: Program) -> Grid:
    """Return a function from the list of arguments to the grid's extents."""
    index = {p.var: i for i, p in enumerate(program.params)}
    body = "".join(f"{_python(e, index)}, " for e in program.grid)
    compiled: Grid = eval(f"lambda a: ({body})", {})
    return compiled


def _python(expr: Expr, index: dict[Var, int]) -> str:
    match expr:
        case Var():
            return f"a[{index[expr]}]"
        case Const(value=value):
            return repr(value)
        case CastExpr(dtype=dtype, value=value):
            return f"{'int' if dtype.is_integer else 'float'}({_python(value, index)})"
        case Op(op=op, args=args):
            texts = [_python(a, index) for a in args]
            symbol = OPERATORS[op].symbol
            if op == "where":
                return f"({texts[1]} if {texts[0]} else {texts[2]})"
            if op == "neg":
                return f"(-{texts[0]})"
            return f"({texts[0]} {symbol} {texts[1]})" if symbol else f"{op}({', '.join(texts)})"
        case BlockId():
            raise LaunchError("the grid cannot depend on a block index")
        case _:
            assert_never(expr)


def check_grid(extents: Sequence[int], name: str) -> int:
    """Return the number of blocks; 0 if any extent is 0 or less."""
    total = 1
    for n in extents:
        total *= max(n, 0)
    if total >= 1 << 31:
        raise LaunchError(f"kernel {name!r} asks for {total} blocks, more than 2^31 - 1", hint="use larger tiles")
    return total
