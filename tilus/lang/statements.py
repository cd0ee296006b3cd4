"""Evaluate the statements of a kernel. What is known at compile time is taken or unrolled, the rest becomes IR."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from tilus.dtypes import DataType, boolean
from tilus.errors import TilusError
from tilus.ir.expr import Const, Expr, Var, dtype_of
from tilus.ir.stmt import Break, Continue, For, If, While
from tilus.ir.types import ScalarType
from tilus.lang import control
from tilus.lang.arithmetic import condition, literal, number_as
from tilus.lang.calls import call
from tilus.lang.expressions import EVALUATORS, binary, evaluate, negate
from tilus.lang.frame import Binding, Flow, Frame, Scope, Unbound
from tilus.lang.liveness import Names, assigned
from tilus.lang.messages import NO_STATEMENT, unsupported
from tilus.lang.values import NUMBER, Range, Scalar, Tile, Value, describe, is_runtime
from tilus.lang.variables import Side, bind, carry, holds_variables, join_names, release

Executor = Callable[[Frame, Any], Flow]
EVALUATORS[ast.Call] = call


def execute(frame: Frame, body: list[ast.stmt]) -> Flow:
    """Evaluate statements in order; what follows one that does not end with `NEXT` is never reached."""
    for stmt in body:
        executor = EXECUTORS.get(type(stmt))
        if executor is None:
            raise unsupported(frame, stmt, NO_STATEMENT)
        with frame.at(stmt):
            flow = executor(frame, stmt)
        if flow is not Flow.NEXT:
            return flow
    return Flow.NEXT


# --- assignment ------------------------------------------------------------------------------------------------------


def _assign(frame: Frame, node: ast.Assign) -> Flow:
    value = evaluate(frame, node.value)
    for target in node.targets:
        assign_to(frame, target, value)
    return Flow.NEXT


def assign_to(frame: Frame, target: ast.expr, value: Value) -> None:
    """Assign a value to a name or to a tuple of targets."""
    match target:
        case ast.Name(id=name):
            with frame.at(target):
                bind(frame, name, value)
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            _unpack(frame, target, parts, value)
        case ast.Subscript():
            raise frame.error(
                target,
                "elements cannot be assigned",
                "store tiles with store_global or store_shared; where(...) changes parts of a tile",
            )
        case ast.Attribute():
            raise frame.error(target, "attributes cannot be assigned", "assign to a name")
        case _:
            raise frame.error(
                target, "cannot assign to a starred name", "unpack into as many names as there are values"
            )


def _unpack(frame: Frame, target: ast.expr, parts: list[ast.expr], value: Value) -> None:
    if is_runtime(value) and not isinstance(value, tuple):
        raise frame.error(target, f"cannot unpack {describe(value)}")
    values = frame.python(target, tuple, value)
    if len(values) != len(parts):
        raise frame.error(target, f"cannot unpack {len(values)} values into {len(parts)} names")
    # All right-hand sides are read before the first name changes: a, b = b, a.
    bindings = [frame.names.get(name) for name in assigned([target])]
    if any(isinstance(b, Binding) and b.carried for b in bindings):
        values = frame.build.snapshot(values)
    for part, item in zip(parts, values, strict=True):
        assign_to(frame, part, item)


def _augmented(frame: Frame, node: ast.AugAssign) -> Flow:
    if not isinstance(node.target, ast.Name):
        assign_to(frame, node.target, None)
    assert isinstance(node.target, ast.Name)
    old = frame.lookup(ast.copy_location(ast.Name(node.target.id, ast.Load()), node.target))
    value = evaluate(frame, node.value)
    assign_to(frame, node.target, binary(frame, node, node.op, old, value))
    return Flow.NEXT


def _annotated(frame: Frame, node: ast.AnnAssign) -> Flow:
    """`x: f16 = 0` gives a number a type, `x: float = 0` makes it a float; other annotations are for people."""
    if node.value is None:
        return Flow.NEXT
    kind, value = evaluate(frame, node.annotation), evaluate(frame, node.value)
    if isinstance(kind, str):  # in quotes
        kind = frame.source.names().get(kind, kind)
    assign_to(frame, node.target, _as_annotated(frame, node.value, kind, value))
    return Flow.NEXT


def _as_annotated(frame: Frame, node: ast.expr, kind: Value, value: Value) -> Value:
    if isinstance(kind, DataType):
        if isinstance(value, NUMBER):
            return Scalar(literal(value, kind))
        if not isinstance(value, Scalar | Tile) or value.dtype != kind:
            message = f"the annotation says {kind}, the value is {describe(value)}"
            raise frame.error(node, message, f"convert it with .to({kind})")
    elif isinstance(kind, type) and kind in _PYTHON_TYPES:
        if isinstance(value, Scalar | Tile):
            if not _PYTHON_TYPES[kind](value.dtype):
                message = f"the annotation says {kind.__name__}, the value is {describe(value)}"
                raise frame.error(node, message, "convert it with .to(...), or annotate it with its own type")
            return value
        try:
            return number_as(kind, value)
        except TilusError as error:
            raise frame.error(node, f"the value {error.message}", error.hint) from None
    return value


_PYTHON_TYPES: dict[type, Callable[[DataType], bool]] = {
    int: lambda dtype: dtype.is_integer,
    float: lambda dtype: dtype.is_float,
    bool: lambda dtype: dtype.is_boolean,
}


# --- branches --------------------------------------------------------------------------------------------------------


def _if(frame: Frame, node: ast.If) -> Flow:
    with frame.at(node.test):
        cond = condition(evaluate(frame, node.test), "the condition of `if`")
    if isinstance(cond, bool):
        return execute(frame, node.body if cond else node.orelse)
    names = sorted(assigned([*node.body, *node.orelse]) & frame.live[node].out)
    mine = carry(frame, [name for name in names if holds_variables(frame.names.get(name))])
    before = frame.names
    sides = [_side(frame, body, before) for body in (node.body, node.orelse)]
    frame.names = dict(before)
    join_names(frame, names, sides, node)
    frame.build.append(If(cond, tuple(sides[0].block), tuple(sides[1].block), loc=frame.build.loc))
    release(frame, mine)
    return Flow.NEXT if any(side.flow is Flow.NEXT for side in sides) else Flow.STOP


def _side(frame: Frame, body: list[ast.stmt], before: dict[str, Any]) -> Side:
    frame.names = dict(before)
    frame.scopes.append(Scope.BRANCH)
    with frame.build.nested() as block:
        flow = execute(frame, body)
    frame.scopes.pop()
    return Side(block, frame.names, flow)


# --- loops -----------------------------------------------------------------------------------------------------------


def _for(frame: Frame, node: ast.For) -> Flow:
    if node.orelse:
        raise frame.error(
            node.orelse[0], "a loop has no `else`", "set a flag before `break` and test it after the loop"
        )
    source = evaluate(frame, node.iter)
    if isinstance(source, range):
        source = Range(source.start, source.stop, source.step)
    if isinstance(source, Range):
        return _counted(frame, node, source)
    if is_runtime(source) and not isinstance(source, tuple):
        raise frame.error(
            node.iter, f"cannot loop over {describe(source)}", "loop over range(...), static_range(...) or a tuple"
        )
    return _unrolled(frame, node, frame.python(node.iter, tuple, source))


def _unrolled(frame: Frame, node: ast.For, items: tuple[Value, ...]) -> Flow:
    if len(items) > control.MAX_UNROLL:
        raise frame.error(
            node.iter,
            f"unrolling {len(items)} turns, more than {control.MAX_UNROLL}",
            "use range(...), a loop that the block runs",
        )
    frame.scopes.append(Scope.UNROLLED)
    flow = Flow.NEXT
    for item in items:
        assign_to(frame, node.target, item)
        flow = execute(frame, node.body)
        if flow in (Flow.BREAK, Flow.RETURN, Flow.STOP):
            break
    frame.scopes.pop()
    return flow if flow in (Flow.RETURN, Flow.STOP) else Flow.NEXT


def _counted(frame: Frame, node: ast.For, bounds: Range) -> Flow:
    if not isinstance(node.target, ast.Name):
        raise frame.error(node.target, "a loop over a range has one name as its variable")
    start, stop = control.loop_bounds(frame.build, bounds)
    var = Var(node.target.id, ScalarType(dtype_of(start)), loc=frame.source.loc(node.target))

    def begin() -> None:
        frame.names[var.name] = Binding(Scalar(var), frame.build.loc)

    body = _loop(frame, node, begin, assigned([node.target]))
    frame.build.append(For(var, start, stop, bounds.step, body, bounds.unroll, loc=frame.build.loc))
    return Flow.NEXT


def _while(frame: Frame, node: ast.While) -> Flow:
    if node.orelse:
        raise frame.error(
            node.orelse[0], "a loop has no `else`", "set a flag before `break` and test it after the loop"
        )
    found: list[Expr | bool] = []

    def test() -> None:
        with frame.at(node.test):
            found.append(condition(evaluate(frame, node.test), "the condition of `while`"))
            if found[0] is True and not any(isinstance(n, ast.Break) for n in ast.walk(node)):
                raise TilusError(
                    "this loop never ends",
                    hint="leave it with break, or let its condition depend on what the loop changes",
                )
            if not isinstance(found[0], bool) and frame.build.block:
                # What the condition computes is computed in every turn.
                stop = negate(frame, found[0]).expr
                frame.build.append(If(stop, (Break(loc=frame.build.loc),), loc=frame.build.loc))
                found[0] = True

    body = _loop(frame, node, test, frozenset())
    cond = found[0]
    if cond is not False:
        expr = Const(True, boolean, loc=frame.build.loc) if isinstance(cond, bool) else cond
        frame.build.append(While(expr, body, loc=frame.build.loc))
    return Flow.NEXT


def _loop(frame: Frame, node: ast.For | ast.While, begin: Callable[[], None], target: Names) -> tuple[Any, ...]:
    """Evaluate the body of a loop that the block runs, and return its statements."""
    live, changed = frame.live[node], assigned(node.body)
    mine = carry(frame, (changed & live.head) - target)
    before = frame.names
    frame.names = dict(before)
    frame.scopes.append(Scope.LOOP)
    with frame.build.nested() as body:
        begin()
        execute(frame, node.body)
    frame.scopes.pop()
    frame.names = before
    for name in (changed | target) & live.out:
        binding = before.get(name)
        if name in target or not isinstance(binding, Binding):
            before[name] = _gone(frame, node, name in target)
    release(frame, mine)
    return tuple(body)


def _gone(frame: Frame, node: ast.AST, is_variable: bool) -> Unbound:
    line = frame.source.loc(node).line
    if is_variable:
        return Unbound(
            f"is the variable of the loop in line {line} and has no value after it",
            "assign it to another name in the loop",
        )
    return Unbound(
        f"is assigned only inside the loop in line {line}, which may not run", "give it a value before the loop"
    )


# --- jumps and the rest ----------------------------------------------------------------------------------------------


def _jump(flow: Flow, stmt: type[Break] | type[Continue], word: str) -> Executor:
    def jump(frame: Frame, node: ast.stmt) -> Flow:
        for scope in reversed(frame.scopes):
            if scope is Scope.LOOP:
                frame.build.append(stmt(loc=frame.build.loc))
                return Flow.STOP
            if scope is Scope.UNROLLED:
                inner = frame.scopes[-1 - frame.scopes[::-1].index(Scope.UNROLLED) :]
                if Scope.BRANCH in inner:
                    raise TilusError(
                        f"{word} under a run-time condition cannot leave a loop that is unrolled at compile time",
                        hint="use range(...), or put the rest of the body under the opposite condition",
                    )
                return flow
        raise TilusError(f"{word} outside a loop")

    return jump


def _return(frame: Frame, node: ast.Return) -> Flow:
    if Scope.LOOP in frame.scopes or Scope.BRANCH in frame.scopes:
        raise TilusError(
            "return stands inside a loop or branch that is decided at run time",
            hint="put the rest of the body under the opposite condition, or leave a loop with break",
        )
    if node.value is not None:
        value = evaluate(frame, node.value)
        if frame.parent is None and value is not None:
            raise frame.error(
                node.value, "a kernel returns nothing", "pass an output pointer and write to it with store_global"
            )
        frame.result = value
    return Flow.RETURN


def _expression(frame: Frame, node: ast.Expr) -> Flow:
    if isinstance(node.value, ast.Constant):
        return Flow.NEXT  # a docstring
    if isinstance(node.value, ast.expr) and not isinstance(
        node.value, ast.Call | ast.Await | ast.Yield | ast.YieldFrom
    ):
        raise TilusError("this expression has no effect", hint="assign it to a name, or leave it out")
    evaluate(frame, node.value)
    return Flow.NEXT


def _assert(frame: Frame, node: ast.Assert) -> Flow:
    cond = condition(evaluate(frame, node.test), "the condition of `assert`")
    message = f"assertion failed: {ast.unparse(node.test)}" if node.msg is None else evaluate(frame, node.msg)
    if not isinstance(message, str):
        assert node.msg is not None
        raise frame.error(
            node.msg,
            f"the message of an assertion is compile-time text, got {describe(message)}",
            "print values with print(...)",
        )
    if cond is False:
        raise TilusError(message, hint="this assertion is checked while the kernel is compiled")
    if not isinstance(cond, bool):
        control.assertion(frame.build, cond, message)
    return Flow.NEXT


def _pass(frame: Frame, node: ast.Pass) -> Flow:
    return Flow.NEXT


EXECUTORS: dict[type[ast.stmt], Executor] = {
    ast.Assign: _assign,
    ast.AugAssign: _augmented,
    ast.AnnAssign: _annotated,
    ast.If: _if,
    ast.For: _for,
    ast.While: _while,
    ast.Break: _jump(Flow.BREAK, Break, "break"),
    ast.Continue: _jump(Flow.CONTINUE, Continue, "continue"),
    ast.Return: _return,
    ast.Expr: _expression,
    ast.Assert: _assert,
    ast.Pass: _pass,
}
