"""Emitters of what takes codes out of a bit layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from tilus.casts import Form, form_named, to_stream
from tilus.codegen.llvm import casts
from tilus.codegen.llvm.builder import Builder, Value, constant, vector
from tilus.codegen.llvm.context import Context, pack, placed_code
from tilus.codegen.llvm.context import unpack as codes_of
from tilus.codegen.llvm.types import is_packed
from tilus.dtypes import bf16
from tilus.ir.expr import Tensor
from tilus.ir.instructions import Unpack, View
from tilus.layouts import BitLayout
from tilus.layouts.bits import WORD

Rule: TypeAlias = Callable[..., Value]

_STEPS: dict[str, Callable[[Builder], Rule]] = {
    "and": lambda b: lambda a, mask: b.op("and", a, mask),
    "and_xor": lambda b: lambda a, mask, other: b.op("xor", b.op("and", a, mask), other),
    "shl": lambda b: lambda a, n: b.op("shl", a, n),
    "shr": lambda b: lambda a, n: b.op("lshr", a, n),
}


def view(c: Context, out: Tensor, inst: View) -> None:
    """Keep the bits; where a bit layout says that codes lie is remembered, and nothing is moved between words."""
    if inst.bits is None or out not in c.single or not is_packed(inst.dtype):
        words = c.read_words(inst.x)
        c.write_words(out, words if inst.bits is None else _stream(c.b, words, inst.bits))
    elif out in c.deferrable and inst.x.type.dtype.nbits == WORD:
        bits, read = inst.bits, c.read(inst.x)
        c.defer(out, lambda i: placed_code(c.b, _as_words(c, read), bits, i), lambda: _keep(c, out, inst, bits))
    else:
        _keep(c, out, inst, inst.bits)


def _keep(c: Context, out: Tensor, inst: View, bits: BitLayout) -> None:
    c.write_words(out, c.read_words(inst.x))
    c.bits[out] = bits


def _as_words(c: Context, elements: Sequence[Value]) -> Callable[[int], Value]:
    return lambda i: c.b.convert("bitcast", elements[i], vector(c.b.lanes, "i32"))


def _stream(b: Builder, words: list[Value], bits: BitLayout) -> list[Value]:
    """Return words in which codes lie one after the other."""
    recipe = to_stream(bits)
    known = {f"w{i}": word for i, word in enumerate(words)}
    for step in recipe.steps:
        args = [known[x] if isinstance(x, str) else constant(words[0].type, x) for x in step.args]
        known[step.out] = _STEPS[step.op](b)(*args)
    return [known[name] for name in recipe.results]


def unpack(c: Context, out: Tensor, inst: Unpack) -> None:
    """Convert every code, or move its bits to where the form has them."""
    stream = _stream(c.b, c.read_words(inst.x), inst.bits)
    codes = codes_of(c.b, stream, inst.source, inst.layout.local_size)
    if inst.form == "value":
        c.write(out, [casts.cast(c.b, inst.source, inst.dtype, code) for code in codes])
        return
    form = form_named(inst.form, inst.source, inst.dtype)
    run = inst.bits.units * inst.bits.lanes
    patterns = [_pattern(c.b, form, inst.positions[i // run], code) for i, code in enumerate(codes)]
    c.write_words(out, pack(c.b, patterns, inst.dtype))


def _pattern(b: Builder, form: Form, position: int, code: Value) -> Value:
    """Return the lane that spells a code."""
    m = form.magnitude
    stored = b.op("xor", code, form.flipped)
    field = b.op("and", b.op("lshr", stored, form.low), (1 << m) - 1)
    lane = b.op("shl", field, position)
    if form.name == "exponent":
        lane = b.op("or", lane, b.op("shl", b.op("lshr", stored, m), form.lane - 1))
    lane = b.op("or", lane, form.constant)
    if form.factor == 1.0:
        return lane
    assert form.target == bf16, "the upper half of an f32"
    wide = b.convert("bitcast", b.op("shl", lane, 16), vector(b.lanes, "float"))
    scaled = b.op("fmul", wide, form.factor)
    return b.op("lshr", b.convert("bitcast", scaled, code.type), 16)
