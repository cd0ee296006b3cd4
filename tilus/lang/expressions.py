"""Evaluate the expressions of a kernel: Python computes what is known at compile time, the rest becomes IR."""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable
from typing import Any

from tilus.errors import TilusError
from tilus.ir.expr import Const, Expr, Op
from tilus.ir.instructions import LoadElement
from tilus.ir.stmt import If
from tilus.lang import tiles
from tilus.lang.arguments import a_sequence, integers
from tilus.lang.arithmetic import condition, convert, meet, operate
from tilus.lang.control import escape
from tilus.lang.frame import Binding, Frame
from tilus.lang.messages import NO_EXPRESSION, unsupported
from tilus.lang.primitives import BoundMethod, LangFunction
from tilus.lang.values import NUMBER, Pointer, Scalar, SharedTile, Text, Tile, Value, View, describe, is_runtime
from tilus.lang.variables import join

Evaluator = Callable[[Frame, Any], Value]


def evaluate(frame: Frame, node: ast.expr) -> Value:
    """Return the value of an expression."""
    evaluator = EVALUATORS.get(type(node))
    if evaluator is None:
        raise unsupported(frame, node, NO_EXPRESSION)
    with frame.at(node):
        return evaluator(frame, node)


def _constant(frame: Frame, node: ast.Constant) -> Value:
    return node.value


def _name(frame: Frame, node: ast.Name) -> Value:
    return frame.lookup(node)


def elements(frame: Frame, nodes: list[ast.expr]) -> tuple[Value, ...]:
    """Return the values of the elements of a display or of positional arguments, stars unpacked."""
    values: list[Value] = []
    for node in nodes:
        if isinstance(node, ast.Starred):
            inner = evaluate(frame, node.value)
            if is_runtime(inner) and not isinstance(inner, tuple):
                raise frame.error(node, f"* unpacks a tuple, not {describe(inner)}")
            values.extend(frame.python(node, tuple, inner))
        else:
            values.append(evaluate(frame, node))
    return tuple(values)


def _display(frame: Frame, node: ast.Tuple | ast.List) -> Value:
    # A list is a tuple here: nothing in a kernel changes in place.
    return elements(frame, node.elts)


# --- operators -------------------------------------------------------------------------------------------------------

BINARY: dict[type[ast.operator], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("add", operator.add),
    ast.Sub: ("sub", operator.sub),
    ast.Mult: ("mul", operator.mul),
    ast.Div: ("div", operator.truediv),
    ast.FloorDiv: ("floordiv", operator.floordiv),
    ast.Mod: ("mod", operator.mod),
    ast.LShift: ("shl", operator.lshift),
    ast.RShift: ("shr", operator.rshift),
    ast.BitAnd: ("and", operator.and_),
    ast.BitOr: ("or", operator.or_),
    ast.BitXor: ("xor", operator.xor),
    ast.MatMult: ("matmul", operator.matmul),
    ast.Pow: ("pow", operator.pow),
}


def binary(frame: Frame, node: ast.AST, op: ast.operator, left: Value, right: Value) -> Value:
    """Apply a binary operator; `node` is where errors point."""
    name, python = BINARY[type(op)]
    both_tuples = isinstance(left, tuple) or isinstance(right, tuple)
    if not (is_runtime(left) or is_runtime(right)) or (both_tuples and name in ("add", "mul")):
        return frame.python(node, python, left, right)
    if name == "pow":
        raise TilusError("** has no run-time form", hint="write x * x, or exp2(y * log2(x))")
    if name == "matmul":
        return tiles.dot.implement(frame.build, left, right)
    if isinstance(left, Pointer) or isinstance(right, Pointer):
        raise TilusError(
            "pointers have no arithmetic", hint="p[i] reads an element; global_view(p, shape=...) makes a tensor"
        )
    return operate(frame.build, name, left, right)


def _binary(frame: Frame, node: ast.BinOp) -> Value:
    return binary(frame, node, node.op, evaluate(frame, node.left), evaluate(frame, node.right))


UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.Invert: operator.invert,
    ast.UAdd: operator.pos,
}


def _unary(frame: Frame, node: ast.UnaryOp) -> Value:
    value = evaluate(frame, node.operand)
    match node.op:
        case ast.Not():
            return negate(frame, condition(value, "the operand of `not`"))
        case ast.USub() if is_runtime(value):
            return operate(frame.build, "neg", value)
        case ast.Invert() if is_runtime(value):
            return operate(frame.build, "not", value)
        case ast.UAdd() if is_runtime(value):
            return operate(frame.build, "add", value, 0)
        case op:
            return frame.python(node, UNARY[type(op)], value)


def negate(frame: Frame, cond: Expr | bool) -> Value:
    """Return the opposite of a condition."""
    return not cond if isinstance(cond, bool) else Scalar(Op("not", (cond,), loc=frame.build.loc))


COMPARE: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Eq: ("eq", operator.eq),
    ast.NotEq: ("ne", operator.ne),
    ast.Lt: ("lt", operator.lt),
    ast.LtE: ("le", operator.le),
    ast.Gt: ("gt", operator.gt),
    ast.GtE: ("ge", operator.ge),
    ast.Is: ("is", operator.is_),
    ast.IsNot: ("is not", operator.is_not),
    ast.In: ("in", lambda a, b: a in b),
    ast.NotIn: ("not in", lambda a, b: a not in b),
}


def _compare(frame: Frame, node: ast.Compare) -> Value:
    left = evaluate(frame, node.left)
    result: Value = True
    for op, right_node in zip(node.ops, node.comparators, strict=True):
        right = evaluate(frame, right_node)
        result = _both(frame, result, _compared(frame, node, op, left, right))
        left = right
    return result


def _both(frame: Frame, a: Value, b: Value) -> Value:
    if isinstance(a, bool):
        return b if a else False
    if isinstance(b, bool):
        return a if b else False
    return operate(frame.build, "and", a, b)


def _compared(frame: Frame, node: ast.AST, op: ast.cmpop, left: Value, right: Value) -> Value:
    name, python = COMPARE[type(op)]
    known = not (is_runtime(left) or is_runtime(right))
    if known or (name in ("is", "is not") and (left is None or right is None)):
        return frame.python(node, python, left, right)
    if name in ("is", "is not", "in", "not in"):
        raise TilusError(
            f"`{name}` needs compile-time values, got {describe(left)} and {describe(right)}",
            hint="compare with == or !=",
        )
    return operate(frame.build, name, left, right)


def _boolean(frame: Frame, node: ast.BoolOp) -> Value:
    is_and = isinstance(node.op, ast.And)
    word = "and" if is_and else "or"
    value = evaluate(frame, node.values[0])
    for right in node.values[1:]:
        cond = condition(value, f"the operand of `{word}`")
        if isinstance(cond, bool):
            if cond != is_and:
                return value
            value = evaluate(frame, right)
        else:
            value = _short_circuit(frame, cond, right, word)
    return value


def _short_circuit(frame: Frame, cond: Expr, right: ast.expr, word: str) -> Value:
    """`cond and right`: one expression where `right` is one too, else a branch, so that `right` runs only if needed."""
    with frame.build.nested() as block:
        value = condition(evaluate(frame, right), f"the operand of `{word}`")
    decided = word == "or"
    if block:
        there: Value = value if isinstance(value, bool) else Scalar(value)
        blocks: tuple[list[Any], list[Any]] = ([], block) if decided else (block, [])
        sides = [(blocks[0], decided if decided else there), (blocks[1], there if decided else decided)]
        return _branch(frame, cond, "cond", sides)
    if isinstance(value, bool):
        return decided if value == decided else Scalar(cond)
    return Scalar(Op(word, (cond, value), loc=frame.build.loc))


def _branch(frame: Frame, cond: Expr, name: str, sides: list[tuple[list[Any], Value]]) -> Value:
    value = join(frame, name, sides)
    frame.build.append(If(cond, tuple(sides[0][0]), tuple(sides[1][0]), loc=frame.build.loc))
    return value


def _conditional(frame: Frame, node: ast.IfExp) -> Value:
    cond = condition(evaluate(frame, node.test), "the condition")
    if isinstance(cond, bool):
        return evaluate(frame, node.body if cond else node.orelse)
    with frame.build.nested() as then:
        a = evaluate(frame, node.body)
    with frame.build.nested() as orelse:
        b = evaluate(frame, node.orelse)
    numeric = all(isinstance(v, (*NUMBER, Scalar)) for v in (a, b))
    if numeric and not then and not orelse:
        return operate(frame.build, "where", Scalar(cond), a, b)
    if numeric:
        dtype = meet("where", (a, b))
        a, b = convert(frame.build, a, dtype), convert(frame.build, b, dtype)
    return _branch(frame, cond, "chosen", [(then, a), (orelse, b)])


# --- attributes and subscripts ---------------------------------------------------------------------------------------

PROPERTIES: dict[type, dict[str, Callable[[Frame, Any], Value]]] = {
    Scalar: {"dtype": lambda f, v: v.dtype},
    Pointer: {"dtype": lambda f, v: v.dtype},
    Tile: {
        "dtype": lambda f, v: v.dtype,
        "shape": lambda f, v: v.shape,
        "layout": lambda f, v: v.type.layout or f.build.layouts.get(v.tensor),
        "T": lambda f, v: tiles.transpose.implement(f.build, v),
        "mT": lambda f, v: tiles.matrix_transpose(f.build, v),
    },
    View: {"dtype": lambda f, v: v.dtype, "shape": lambda f, v: v.shape, "strides": lambda f, v: v.strides},
    SharedTile: {"dtype": lambda f, v: v.dtype, "shape": lambda f, v: v.shape},
}
METHODS: dict[type, dict[str, LangFunction]] = {
    Scalar: {"to": tiles.to},
    Tile: {"to": tiles.to, "reshape": tiles.reshape, "transpose": tiles.transpose},
}


def _attribute(frame: Frame, node: ast.Attribute) -> Value:
    owner, name = evaluate(frame, node.value), node.attr
    if not is_runtime(owner) or isinstance(owner, tuple):
        return _python_attribute(frame, node, owner)
    properties, methods = PROPERTIES.get(type(owner), {}), METHODS.get(type(owner), {})
    if name in properties:
        return properties[name](frame, owner)
    if name in methods:
        return BoundMethod(methods[name], owner)
    known = [*properties, *methods]
    raise TilusError(
        f"{describe(owner)} has no attribute {name!r}", hint=f"it has {', '.join(known)}" if known else None
    )


def _python_attribute(frame: Frame, node: ast.Attribute, owner: Value) -> Value:
    try:
        return getattr(owner, node.attr)
    except AttributeError:
        pass
    if isinstance(owner, NUMBER) and node.attr == "to":
        raise TilusError(
            f"{describe(owner)} is a compile-time number: it has no .to", hint="it takes the type of what it meets"
        )
    close = difflib.get_close_matches(node.attr, dir(owner), n=1)
    what = f"module {owner.__name__!r}" if hasattr(owner, "__name__") else describe(owner)
    raise TilusError(f"{what} has no attribute {node.attr!r}", hint=f"did you mean {close[0]}?" if close else None)


def _subscript(frame: Frame, node: ast.Subscript) -> Value:
    owner, index = evaluate(frame, node.value), evaluate(frame, node.slice)
    match owner:
        case Pointer(var=var):
            position = integers(index, "the index")
            if len(position) != 1:
                raise TilusError(
                    f"a pointer takes one index, got {len(position)}", hint="global_view(p, shape=...) makes a tensor"
                )
            if isinstance(position[0], Const) and position[0].value < 0:
                raise TilusError(f"a pointer's index counts from its first element, got {position[0].value}")
            return frame.build.scalar(LoadElement(var, position[0], loc=frame.build.loc), f"{var.name}_element")
        case Tile():
            return _slice_of_tile(frame, owner, index)
        case View():
            raise TilusError(
                "a global view is not read by index",
                hint="load_global(view, offset=..., shape=...) loads a tile, p[i] an element",
            )
        case SharedTile():
            raise TilusError(
                "a shared tensor is not read by index", hint="load_shared(s, offset=..., shape=...) loads a tile"
            )
    if is_runtime(index) or (is_runtime(owner) and not isinstance(owner, tuple)):
        raise TilusError(
            f"cannot index {describe(owner)} with {describe(index)}",
            hint="an index into Python values is a compile-time integer: loop with static_range",
        )
    return frame.python(node, operator.getitem, owner, index)


def _slice_of_tile(frame: Frame, tile: Tile, index: Value) -> Tile:
    items = a_sequence(index)
    if len(items) > len(tile.shape):
        raise TilusError(f"a tile of {len(tile.shape)} dimensions takes as many slices, got {len(items)}")
    offset, shape = [], []
    for item, extent in zip((*items, *[slice(None)] * (len(tile.shape) - len(items))), tile.shape, strict=True):
        start, stop = _slice_bounds(item, extent)
        offset.append(start)
        shape.append(stop - start)
    if tuple(shape) == tile.shape:
        return tile
    result: Tile = tiles.slice_tile.implement(frame.build, tile, tuple(offset), tuple(shape))
    return result


def _slice_bounds(item: Value, extent: int) -> tuple[int, int]:
    if not isinstance(item, slice):
        raise TilusError(
            f"a tile is indexed by slices, got {describe(item)}", hint="x[i:i+1] keeps the dimension; reshape drops it"
        )
    if any(is_runtime(bound) for bound in (item.start, item.stop, item.step)):
        raise TilusError(
            "the bounds of a tile's slice must be compile-time integers",
            hint="load the part you need with load_global or load_shared",
        )
    if item.step not in (None, 1):
        raise TilusError(f"a tile's slice has step 1, got {item.step}")
    start, stop, _ = item.indices(extent)
    if stop <= start:
        raise TilusError(f"the slice {item.start}:{item.stop} of an extent of {extent} is empty")
    return start, stop


def _slice(frame: Frame, node: ast.Slice) -> Value:
    return slice(*(None if part is None else evaluate(frame, part) for part in (node.lower, node.upper, node.step)))


# --- text and comprehensions -----------------------------------------------------------------------------------------


def _f_string(frame: Frame, node: ast.JoinedStr) -> Value:
    pieces: list[str] = []
    args: list[Value] = []
    for part in node.values:
        if isinstance(part, ast.Constant):
            pieces.append(escape(str(part.value)))
            continue
        assert isinstance(part, ast.FormattedValue)
        value = evaluate(frame, part.value)
        if not is_runtime(value):
            pieces.append(escape(_formatted(frame, part, value)))
        elif part.format_spec is not None or part.conversion != -1:
            raise frame.error(
                part.value, "a run-time value is printed without a format", "write {x} instead of {x:...} or {x!r}"
            )
        else:
            pieces.append("{}")
            args.append(value)
    text = "".join(pieces)
    return Text(text, tuple(args)) if args else text.replace("{{", "{").replace("}}", "}")


def _formatted(frame: Frame, part: ast.FormattedValue, value: Value) -> str:
    spec = "" if part.format_spec is None else evaluate(frame, part.format_spec)
    convert_ = CONVERSIONS.get(part.conversion)
    text: str = frame.python(part, lambda: format(value if convert_ is None else convert_(value), spec))
    return text


CONVERSIONS: dict[int, Callable[[object], str]] = {ord("r"): repr, ord("s"): str, ord("a"): ascii}


def _comprehension(frame: Frame, node: ast.ListComp | ast.GeneratorExp) -> Value:
    names = dict(frame.names)
    values: list[Value] = []
    _generate(frame, node, 0, values)
    frame.names = names
    return tuple(values)


def _generate(frame: Frame, node: ast.ListComp | ast.GeneratorExp, depth: int, values: list[Value]) -> None:
    if depth == len(node.generators):
        values.append(evaluate(frame, node.elt))
        return
    generator = node.generators[depth]
    source = evaluate(frame, generator.iter)
    if is_runtime(source) and not isinstance(source, tuple):
        raise frame.error(
            generator.iter, f"a comprehension runs over compile-time values, got {describe(source)}", "write a for loop"
        )
    for item in frame.python(generator.iter, tuple, source):
        _bind_target(frame, generator.target, item)
        conds = (condition(evaluate(frame, test), "the condition") for test in generator.ifs)
        if all(_compile_time(frame, generator, cond) for cond in conds):
            _generate(frame, node, depth + 1, values)


def _compile_time(frame: Frame, generator: ast.comprehension, cond: Expr | bool) -> bool:
    if not isinstance(cond, bool):
        raise frame.error(
            generator.ifs[0], "the condition of a comprehension must be known at compile time", "use where(...) inside"
        )
    return cond


def _bind_target(frame: Frame, target: ast.expr, value: Value) -> None:
    if isinstance(target, ast.Name):
        frame.names[target.id] = Binding(value, frame.build.loc)
        return
    if not isinstance(target, ast.Tuple) or not isinstance(value, tuple) or len(target.elts) != len(value):
        raise frame.error(target, f"cannot unpack {describe(value)} here")
    for part, item in zip(target.elts, value, strict=True):
        _bind_target(frame, part, item)


EVALUATORS: dict[type[ast.expr], Evaluator] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.Tuple: _display,
    ast.List: _display,
    ast.BinOp: _binary,
    ast.UnaryOp: _unary,
    ast.Compare: _compare,
    ast.BoolOp: _boolean,
    ast.IfExp: _conditional,
    ast.Attribute: _attribute,
    ast.Subscript: _subscript,
    ast.Slice: _slice,
    ast.JoinedStr: _f_string,
    ast.ListComp: _comprehension,
    ast.GeneratorExp: _comprehension,
}
