"""Names that loops and branches assign: which IR variables hold them, and what joins after a branch.

On entry of a loop or branch every name that it assigns, that has a value, and that is read later becomes a *variable*:
a scalar is declared, a tile's own tensor is used if no other name holds it. While the body is evaluated, assigning the
name redefines the variable, and its type cannot change.

A name that has no run-time value before a branch gets a variable where the branch ends, from the values of both sides.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from tilus.errors import LangError, TilusError
from tilus.ir.expr import Const, Tensor, Var
from tilus.ir.instructions import Copy
from tilus.ir.node import walk
from tilus.ir.stmt import Assign, InstStmt, Stmt
from tilus.ir.types import RegisterType
from tilus.lang.arithmetic import default_dtype, expression, literal, meet
from tilus.lang.frame import Binding, Flow, Frame, Unbound
from tilus.lang.values import NUMBER, Range, Scalar, Text, Tile, Value, describe, is_runtime


def bind(frame: Frame, name: str, value: Value) -> None:
    """Assign a value to a name."""
    old = frame.names.get(name)
    if isinstance(value, Text):
        raise TilusError("an f-string with run-time values has no value of its own", hint="write it inside print(...)")
    if isinstance(value, Range):
        raise TilusError(
            "a range with run-time bounds has no value of its own", hint="write it in the header of a for loop"
        )
    if isinstance(old, Binding) and old.carried:
        _store(frame, name, old, old.value, value)
    else:
        frame.names[name] = Binding(frame.build.named(value, name), frame.build.loc)


# --- variables of loops and branches ---------------------------------------------------------------------------------


def holds_variables(binding: Binding | Unbound | None) -> bool:
    """Whether a name is bound to scalars and tiles that are not variables yet."""
    return isinstance(binding, Binding) and not binding.carried and _variable_like(binding.value)


def _variable_like(value: Value) -> bool:
    if isinstance(value, tuple):
        return is_runtime(value) and all(_variable_like(v) or isinstance(v, NUMBER) for v in value)
    return isinstance(value, Scalar | Tile)


def carry(frame: Frame, names: Iterable[str]) -> list[str]:
    """Make variables of names that have a value and are not variables yet; return these names."""
    mine = []
    for name in sorted(names):
        binding = frame.names.get(name)
        if isinstance(binding, Binding) and not binding.carried:
            frame.names[name] = Binding(_variable(frame, name, binding.value), binding.loc, carried=True)
            mine.append(name)
    return mine


def release(frame: Frame, names: Iterable[str]) -> None:
    """Let names be ordinary again: they keep the variables' values."""
    for name in names:
        binding = frame.names[name]
        assert isinstance(binding, Binding)
        frame.build.variables.difference_update(_held(binding.value))
        frame.names[name] = replace(binding, carried=False)


def _variable(frame: Frame, name: str, value: Value) -> Value:
    build = frame.build
    match value:
        case bool() | int() | float() | Scalar():
            var = build.let(name, expression(value))
            build.variables.add(var)
            return Scalar(var)
        case Tile(tensor=tensor):
            own = build.copy(tensor, name) if _shared(frame, tensor, name) else tensor
            build.variables.add(own)
            return Tile(own)
        case tuple():
            return tuple(_variable(frame, name, item) for item in value)
        case _:
            return value


def _shared(frame: Frame, tensor: Tensor, name: str) -> bool:
    """Whether something besides one name holds a tensor, or it is a variable already."""
    if tensor in frame.build.variables:
        return True
    holders = 0
    for each in frame.frames():
        holders += sum(_held(b.value).count(tensor) for b in each.names.values() if isinstance(b, Binding))
    return holders != 1


def _held(value: Value) -> list[Var | Tensor]:
    """Return the variables and tensors that a value is made of."""
    if isinstance(value, tuple):
        return [held for item in value for held in _held(item)]
    if isinstance(value, Scalar):
        return [node for node in walk(value.expr) if isinstance(node, Var)]
    return [value.tensor] if isinstance(value, Tile) else []


def _store(frame: Frame, name: str, binding: Binding, old: Value, new: Value) -> None:
    """Redefine the variables that make up `old`."""
    build = frame.build
    match old, new:
        case Scalar(expr=Var() as var), Scalar() if new.dtype == old.dtype:
            build.assign(var, new.expr)
        case Scalar(expr=Var() as var), bool() | int() | float() if _adopts(new, old):
            build.assign(var, literal(new, old.dtype))
        case Tile(), Tile() if (new.dtype, new.shape) == (old.dtype, old.shape):
            build.redefine(old.tensor, new.tensor)
        case tuple(), tuple() if len(old) == len(new):
            for one, other in zip(old, build.snapshot(new, name), strict=True):
                _store(frame, name, binding, one, other)
        case _ if same(old, new):
            return
        case _:
            raise _changed(name, binding, old, new)


def _adopts(number: float, scalar: Scalar) -> bool:
    return isinstance(number, bool) == scalar.dtype.is_boolean and not (
        isinstance(number, float) and scalar.dtype.is_integer
    )


def _changed(name: str, binding: Binding, old: Value, new: Value) -> TilusError:
    before = f"{describe(old)} before the loop or branch (line {binding.loc.line})"
    after = describe(new) if describe(new) != describe(old) else "another one"
    message = f"{name!r} is {before}, and becomes {after} in it"
    if isinstance(old, Scalar | Tile) and isinstance(new, Scalar | Tile | float):
        if isinstance(old, Scalar) and old.dtype.is_integer and getattr(new, "dtype", None) != old.dtype:
            return TilusError(
                message, hint="give it the same type before: a float begins as 0.0, not 0; or use another name"
            )
        return TilusError(
            message, hint=f"keep its type, for instance with .to({old.dtype}), or use another name inside"
        )
    return TilusError(message, hint="use another name inside, or unroll the loop with static_range")


def same(a: Value, b: Value) -> bool:
    """Whether two values are the same without a doubt."""
    if a is b:
        return True
    if isinstance(a, float) and isinstance(b, float):
        return repr(a) == repr(b)  # 0.0 == -0.0, but they are not the same
    try:
        return type(a) is type(b) and bool(a == b)
    except Exception:  # arrays and the like: not comparable, so not the same
        return False


# --- joining ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a branch: its body, the names after it, and how it ends."""

    block: list[Stmt]
    names: dict[str, Binding | Unbound]
    flow: Flow = Flow.NEXT


def join_names(frame: Frame, names: Iterable[str], sides: list[Side], node: ast.AST) -> None:
    """Bind names after a branch to what the sides that reach its end made of them."""
    falling = [side for side in sides if side.flow is Flow.NEXT]
    for name in names:
        before = frame.names.get(name)
        if isinstance(before, Binding) and before.carried:
            continue
        bindings = [side.names.get(name) for side in falling]
        defined = [b for b in bindings if isinstance(b, Binding)]
        if len(defined) < len(falling):
            frame.names[name] = Unbound(
                f"is not assigned on every path through the `if` in line {frame.source.loc(node).line}",
                "assign it before the `if`, or in both branches",
            )
        elif falling and any(b is not before for b in defined):
            pairs = [(side.block, b.value) for side, b in zip(falling, defined, strict=True)]
            frame.names[name] = _joined(frame, name, pairs, defined, node)


def _joined(frame: Frame, name: str, pairs: list[Any], bindings: list[Binding], node: ast.AST) -> Binding | Unbound:
    try:
        return Binding(join(frame, name, pairs), bindings[0].loc)
    except LangError:
        raise
    except TilusError as error:
        lines = " and ".join(f"line {b.loc.line}" for b in bindings)
        return Unbound(
            f"has no single value after the `if` in line {frame.source.loc(node).line} ({lines}): {error.message}",
            error.hint or "",
        )


def join(frame: Frame, name: str, sides: list[tuple[list[Stmt], Value]]) -> Value:
    """Return one value for what each of several bodies ends with; the bodies get statements that assign it.

    Raises
    ------
    TilusError : if the values are of different types.
    """
    values = [value for _, value in sides]
    first = values[0]
    if (not is_runtime(first) or len(sides) > 1) and all(same(first, other) for other in values[1:]):
        return first
    build = frame.build
    if all(isinstance(v, (*NUMBER, Scalar)) for v in values):
        return _join_scalars(frame, name, sides)
    if all(isinstance(v, Tile) and (v.dtype, v.shape) == (first.dtype, first.shape) for v in values):
        out = Tensor(name, RegisterType(first.dtype, first.shape), loc=build.loc)
        for block, value in sides:
            block.append(InstStmt(out, Copy(value.tensor, loc=build.loc), loc=build.loc))
        return Tile(out)
    if all(isinstance(v, tuple) and len(v) == len(first) for v in values):
        return tuple(join(frame, name, [(block, v[i]) for block, v in sides]) for i in range(len(first)))
    if len(sides) == 1:
        return first  # a view or shared tensor that only this side makes
    raise TilusError(f"it is {' or '.join(map(describe, values))}", hint="give it one type, or use different names")


def _join_scalars(frame: Frame, name: str, sides: list[tuple[list[Stmt], Value]]) -> Scalar:
    build = frame.build
    values = [value for _, value in sides]
    scalars = [v for v in values if isinstance(v, Scalar)]
    if len({v.dtype for v in scalars}) > 1:
        raise TilusError(f"it is {' or '.join(map(describe, values))}", hint="convert one with .to(...)")
    kinds = {default_dtype(v) for v in values if not isinstance(v, Scalar)}
    dtype = scalars[0].dtype if scalars else kinds.pop() if len(kinds) == 1 else meet("where", tuple(values))
    exprs = [expression(value, dtype) for value in values]
    # One side's constant may as well be there from the beginning.
    first = next((e for e in exprs if isinstance(e, Const)), literal(False if dtype.is_boolean else 0, dtype))
    var = build.let(name, first)
    for (block, _), expr in zip(sides, exprs, strict=True):
        if expr is not first:
            block.append(Assign(var, expr, loc=build.loc))
    return Scalar(var)
