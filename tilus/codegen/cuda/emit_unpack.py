"""Emitters of what takes codes out of a bit layout: recipes of `tilus.casts`, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from tilus.casts import OPS, Recipe, Step, form_named, to_stream, unpack_values
from tilus.casts import unpack as unpack_numbers
from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.context import Context
from tilus.codegen.cuda.cpp import Expr, Name, Stmt
from tilus.codegen.cuda.emit_registers import same_registers
from tilus.codegen.cuda.values import identifier
from tilus.errors import CodegenError
from tilus.ir import instructions as I
from tilus.ir.expr import Tensor
from tilus.ir.stmt import InstStmt
from tilus.layouts import BitLayout

SOURCE, TARGET = Name("s"), Name("d")
Rule: TypeAlias = Callable[..., Expr]

# Steps that C++ has an operator for; the others are rows of the PTX table, of the same names.
_OPERATORS: dict[str, Rule] = {"and": lambda a, b: a & b, "shl": lambda a, n: a << n, "shr": lambda a, n: a >> n}


def view(ctx: Context, stmt: InstStmt, out: Tensor, inst: I.View) -> None:
    """Give the registers another meaning: free, unless codes have to be brought into the order of a stream."""
    if inst.bits is None:
        same_registers(ctx, stmt, out, inst)
    else:
        name = f"stream_{_identify(ctx, inst.bits)}"
        _call(ctx, name, to_stream(inst.bits), inst.bits.repeated(1), out, inst.x, whole=True)


def unpack(ctx: Context, stmt: InstStmt, out: Tensor, inst: I.Unpack) -> None:
    """Make words of two elements by the recipe that is derived for the types and the layout."""
    layout = _identify(ctx, inst.bits, inst.positions)
    name = f"unpack_{identifier(inst.source)}_{identifier(inst.dtype)}_{inst.form}_{layout}"
    if inst.form == "value":
        recipe = unpack_values(inst.bits.repeated(1), inst.source, inst.dtype)
    else:
        form = form_named(inst.form, inst.source, inst.dtype)
        recipe = unpack_numbers(inst.bits.repeated(1), form, inst.positions).recipe
    if recipe is None:
        raise CodegenError(
            f"no instructions are known that unpack {inst.source} to {inst.dtype}", loc=inst.loc, hint="cast a view"
        )
    _call(ctx, name, recipe, inst.bits, out, inst.x)


def _identify(ctx: Context, bits: BitLayout, positions: tuple[int, ...] = ()) -> str:
    """Return a short name, the same for equal layouts and positions of one kernel."""
    return f"bits{ctx.bit_layouts.setdefault((bits, positions), len(ctx.bit_layouts))}"


def _call(
    ctx: Context, name: str, recipe: Recipe, bits: BitLayout, out: Tensor, x: Tensor, *, whole: bool = False
) -> None:
    """Call the function `f(u32* d, const u32* s)` that follows a recipe for every unit."""
    if name not in ctx.functions:
        units = 1 if whole else bits.units
        body = [stmt for unit in range(units) for stmt in _unit(ctx, recipe, unit, units)]
        ctx.add_function(cpp.Function(name, "void", ("u32* d", "const u32* s"), tuple(body)))
    ctx.emit(cpp.Do(cpp.call(name, ctx.name(out), ctx.name(x))))


def _unit(ctx: Context, recipe: Recipe, unit: int, units: int) -> Iterator[Stmt]:
    known: dict[str, Expr] = {f"w{i}": SOURCE[unit * recipe.words + i] for i in range(recipe.words)}
    for step in recipe.steps:
        name = f"{step.out}_{unit}"
        yield cpp.Declare("u32", name, _step(ctx, step, known), constant=True)
        known[step.out] = Name(name)
    for slot, result in enumerate(recipe.results):
        yield cpp.Set(TARGET[slot * units + unit], known[result])


def _step(ctx: Context, step: Step, known: dict[str, Expr]) -> Expr:
    assert step.op in OPS
    shift = step.op in ("shl", "shr")
    args: Sequence[Expr] = [known[x] if isinstance(x, str) else cpp.Int(x) if shift else cpp.bits(x) for x in step.args]
    rule = _OPERATORS.get(step.op)
    return rule(*args) if rule is not None else ctx.ptx(step.op, *args)
