"""Emitters of `print` and `assert_`."""

from __future__ import annotations

import re

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.context import Context, layout_of, register
from tilus.codegen.cuda.cpp import Expr, Name, call
from tilus.codegen.cuda.placement import is_first_replica, local_indices, sum_of, thread_terms
from tilus.codegen.cuda.printer import string_literal
from tilus.codegen.cuda.scalars import scalar
from tilus.codegen.cuda.types import c_type, signed
from tilus.codegen.cuda.values import decode
from tilus.codegen.cuda.words import element, words_of
from tilus.dtypes import DataType
from tilus.ir import instructions as I
from tilus.ir.expr import Tensor, dtype_of
from tilus.ir.stmt import InstStmt

_FORMATS = {"bool": "%d", "i32": "%d", "u32": "%u", "i64": "%lld", "u64": "%llu", "float": "%g", "double": "%g"}
_FIRST_THREAD = cpp.binary("==", Name("tid"), 0)


def print_(ctx: Context, stmt: InstStmt, out: None, inst: I.Print) -> None:
    """Print once per block.

    A line with tiles is printed with their names in it; their elements follow on lines of their own, in no fixed order,
    each by the thread that holds it.
    """
    tiles = [a for a in inst.args if isinstance(a, Tensor)]
    values: list[Expr] = []
    formats: list[str] = []
    for arg in inst.args:
        if isinstance(arg, Tensor):
            formats.append(arg.name.replace("%", "%%"))
        else:
            text, value = _printable(dtype_of(arg), scalar(ctx, arg))
            formats.append(text)
            values.append(value)
    with ctx.where(_FIRST_THREAD):
        ctx.emit(_printf(_filled(inst.format, formats) + "\n", values))
    for tile in tiles:
        _print_tile(ctx, tile)


def _filled(text: str, formats: list[str]) -> str:
    """Return a printf format for a text with `{}` slots and doubled braces."""
    slots = iter(formats)
    pieces = {"{{": "{", "}}": "}", "%": "%%"}
    return re.sub(r"\{\{|\}\}|\{\}|%", lambda m: pieces.get(m[0]) or next(slots), text)


def _printable(dtype: DataType, value: Expr) -> tuple[str, Expr]:
    """Return the conversion of printf for a value, and the value as that takes it."""
    held = c_type(dtype)
    if held in ("float", "double"):
        return "%g", cpp.convert("double", value)
    kind = held.replace("u", "i") if dtype.is_signed and held != "bool" else held
    return _FORMATS[kind], cpp.convert("i32", value) if held == "bool" else signed(dtype, value)


def _printf(text: str, values: list[Expr]) -> cpp.Stmt:
    return cpp.Do(call("printf", Name(string_literal(text)), *values))


def _print_tile(ctx: Context, tile: Tensor) -> None:
    kind, layout = register(tile), layout_of(tile)
    array, words = ctx.name(tile), words_of(kind)
    thread = [sum_of(terms) for terms in thread_terms(ctx, layout)]
    subscript = ", ".join(["%u"] * layout.rank)
    with ctx.where(is_first_replica(ctx, layout)):
        for i, index in enumerate(local_indices(layout)):
            value = decode(ctx, kind.dtype, element(array, words, i, kind.dtype.nbits))
            text, shown = _printable(kind.dtype, value)
            place = [cpp.convert("u32", start + at) for start, at in zip(thread, index, strict=True)]
            ctx.emit(_printf(f"{tile.name}[{subscript}] = {text}\n", [*place, shown]))


def assert_(ctx: Context, stmt: InstStmt, out: None, inst: I.Assert) -> None:
    """Stop the kernel with a message, printed by one thread, unless a condition holds."""
    failed = cpp.Unary("!", scalar(ctx, inst.cond))
    where = f" ({inst.loc})" if inst.loc is not None else ""
    text = f"block (%u, %u, %u): assertion failed: {inst.message.replace('%', '%%')}{where.replace('%', '%%')}\n"
    blocks: list[Expr] = [Name(f"blockIdx.{axis}") for axis in "xyz"]
    with ctx.where(failed):
        with ctx.where(_FIRST_THREAD):
            ctx.emit(_printf(text, blocks))
        ctx.emit(cpp.Do(call("__trap")))
