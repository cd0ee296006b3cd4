"""Evaluate calls: functions of the language, inlined functions, some builtins, and Python functions of constants."""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Callable
from typing import Any

from tilus.errors import LangError, TilusError
from tilus.lang import control, tiles
from tilus.lang.arguments import ArgumentError
from tilus.lang.builder import Builder
from tilus.lang.expressions import elements, evaluate
from tilus.lang.frame import Binding, Flow, Frame
from tilus.lang.functions import FUNCTIONS
from tilus.lang.inline import InlineFunction
from tilus.lang.primitives import BoundMethod, LangFunction
from tilus.lang.values import Tile, Value, describe, is_runtime

MAX_DEPTH = 64


def call(frame: Frame, node: ast.Call) -> Value:
    """Return the value of a call."""
    function = evaluate(frame, node.func)
    args = elements(frame, node.args)
    kwargs = _keywords(frame, node)
    if isinstance(function, _HASHABLE) and is_runtime(args):
        function = INSTEAD.get(function, function)
    match function:
        case LangFunction():
            return _call_language(frame, node, function, args, kwargs)
        case BoundMethod():
            return _call_language(frame, node, function.function, (function.owner, *args), kwargs)
        case InlineFunction():
            return _call_inline(frame, node, function, args, kwargs)
    if is_runtime(function) or not callable(function):
        raise frame.error(node.func, f"{describe(function)} cannot be called")
    special = BUILTINS.get(function) if isinstance(function, _HASHABLE) else None
    if special is not None and (function is print or is_runtime(args)):
        return special(frame.build, args, kwargs)
    if is_runtime(args) or is_runtime(tuple(kwargs.values())):
        raise _runtime_argument(frame, node, function, args, kwargs)
    return frame.python(node, function, *args, **kwargs)


_HASHABLE = (type, type(len))
_LIBRARIES = frozenset(("numpy", "torch", "math", "scipy", "jax", "cupy"))


def _keywords(frame: Frame, node: ast.Call) -> dict[str, Value]:
    kwargs: dict[str, Value] = {}
    for keyword in node.keywords:
        value = evaluate(frame, keyword.value)
        if keyword.arg is not None:
            kwargs[keyword.arg] = value
        elif isinstance(value, dict):
            kwargs.update(value)
        else:
            raise frame.error(keyword.value, f"** unpacks a dictionary, not {describe(value)}")
    return kwargs


def _runtime_argument(frame: Frame, node: ast.Call, function: Any, args: Any, kwargs: Any) -> LangError:
    name = getattr(function, "__name__", repr(function))
    value = next(v for v in (*args, *kwargs.values()) if is_runtime(v))
    # Functions of NumPy and torch have no text that could be inlined.
    ours = FUNCTIONS.get(name) if not inspect.isfunction(function) or not _is_of_user(function) else None
    return frame.error(
        node,
        f"{name} is a Python function: it runs while the kernel is compiled and cannot take {describe(value)}",
        "decorate it with @tilus.inline, or call it with compile-time values"
        if ours is None
        else f"tilus.{name}{inspect.signature(ours)} does that in a kernel",
    )


def _is_of_user(function: Any) -> bool:
    return function.__module__.partition(".")[0] not in _LIBRARIES


def _call_language(frame: Frame, node: ast.Call, function: LangFunction, args: Any, kwargs: Any) -> Value:
    signature = inspect.signature(function)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise frame.error(node, f"{function.__name__}: {error}", f"its parameters are {signature}") from None
    try:
        return function.implement(frame.build, *bound.args, **bound.kwargs)
    except ArgumentError as error:
        place = _argument(node, signature, error.parameter, len(args) - len(node.args))
        raise frame.error(place, error.message, error.hint) from None


def _argument(node: ast.Call, signature: inspect.Signature, parameter: str, bound: int) -> ast.AST:
    """Return the argument that was passed for a parameter; `bound` counts those that do not stand in the call."""
    for keyword in node.keywords:
        if keyword.arg == parameter:
            return keyword.value
    names = list(signature.parameters)
    position = names.index(parameter) - bound if parameter in names else -1
    starred = any(isinstance(arg, ast.Starred) for arg in node.args)
    return node.args[position] if 0 <= position < len(node.args) and not starred else node


# --- inlining --------------------------------------------------------------------------------------------------------


def _call_inline(frame: Frame, node: ast.Call, function: InlineFunction, args: Any, kwargs: Any) -> Value:
    name = function.source.tree.name
    if sum(1 for _ in frame.frames()) > MAX_DEPTH:
        raise frame.error(
            node, f"{name} is inlined more than {MAX_DEPTH} calls deep", "a recursion must end at compile time"
        )
    try:
        bound = function.signature.bind(*args, **kwargs)
    except TypeError as error:
        raise frame.error(node, f"{name}: {error}", f"its parameters are {function.signature}") from None
    bound.apply_defaults()
    callee = Frame(frame.build, function.source, frame.execute, frame)
    for parameter, value in bound.arguments.items():
        callee.names[parameter] = Binding(_as_argument(frame.build, value, parameter), frame.build.loc)
    try:
        flow = frame.execute(callee, function.source.tree.body)
    except LangError as error:
        note = f"{error.message} (inlined from {frame.source.loc(node)})"
        raise LangError(note, loc=error.loc, hint=error.hint) from None
    return callee.result if flow is Flow.RETURN else None


def _as_argument(build: Builder, value: Value, name: str) -> Value:
    # A tile of the caller is not copied: while the callee runs nobody redefines it, and what the callee makes a
    # variable of is copied then, because the caller holds it too.
    return value if isinstance(value, Tile) and value.tensor in build.variables else build.named(value, name)


# --- builtins --------------------------------------------------------------------------------------------------------

Special = Callable[[Builder, Any, Any], Value]


def _print(build: Builder, args: Any, kwargs: Any) -> None:
    if kwargs:
        raise TilusError(
            f"print takes no keyword {next(iter(kwargs))!r} in a kernel",
            hint="values are separated by spaces, each call is a line",
        )
    control.print_(build, args)


def _extreme(op: str) -> Special:
    def fold(build: Builder, args: Any, kwargs: Any) -> Value:
        values = args[0] if len(args) == 1 and isinstance(args[0], tuple) else args
        if kwargs or len(values) < 2:
            raise TilusError(
                f"{op} takes two or more values here", hint=f"tilus.{op}(tile, dim) reduces a tile along a dimension"
            )
        result = values[0]
        for value in values[1:]:
            result = tiles.apply(build, op, result, value)
        return result

    return fold


def _structural(function: Callable[..., Any]) -> Special:
    """Return a builtin that arranges the elements of tuples without looking at them."""

    def arrange(_: Builder, args: Any, kwargs: Any) -> Value:
        if not all(isinstance(arg, tuple) or not is_runtime(arg) for arg in args):
            wrong = next(arg for arg in args if is_runtime(arg) and not isinstance(arg, tuple))
            raise TilusError(f"{function.__name__} takes a tuple, not {describe(wrong)}")
        try:
            result = function(*args, **kwargs)
            return result if isinstance(result, int) else tuple(result)
        except (TypeError, ValueError) as error:
            raise TilusError(str(error)) from None

    return arrange


def _instead(name: str, hint: str) -> Special:
    def refuse(build: Builder, args: Any, kwargs: Any) -> Value:
        value = next(arg for arg in args if is_runtime(arg))
        raise TilusError(f"{name} cannot take {describe(value)}", hint=hint)

    return refuse


INSTEAD: dict[Any, LangFunction] = {builtins.range: control.range_, builtins.abs: tiles.abs_}
BUILTINS: dict[Any, Special] = {
    builtins.print: _print,
    builtins.min: _extreme("min"),
    builtins.max: _extreme("max"),
    builtins.sum: _instead("sum", "tilus.sum(tile, dim) adds along a dimension"),
    builtins.int: _instead("int", "convert with .to(i32)"),
    builtins.float: _instead("float", "convert with .to(f32)"),
    builtins.bool: _instead("bool", "compare it: x != 0"),
    builtins.round: _instead("round", "tilus.round(x) rounds floats"),
    **{f: _structural(f) for f in (tuple, list, zip, enumerate, reversed, len)},
}
