"""Emitters of what takes codes out of a bit layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from tilus.casts import Form, form_named, to_stream
from tilus.codegen.llvm import casts
from tilus.codegen.llvm.builder import Builder, Value, constant, vector
from tilus.codegen.llvm.context import Context, pack, register
from tilus.codegen.llvm.context import unpack as codes_of
from tilus.codegen.llvm.fields import placed
from tilus.codegen.llvm.types import is_packed
from tilus.dtypes import bf16
from tilus.ir.expr import Tensor
from tilus.ir.instructions import Unpack, View
from tilus.layouts import BitLayout, RegisterLayout, index_table
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
    width, source = inst.dtype.nbits, inst.x.type.dtype.nbits
    deferrable = out in c.deferrable
    if inst.bits is not None:
        (_defer_codes if deferrable and source == WORD else _keep)(c, out, inst, inst.bits)
    elif deferrable and source == WORD and width in (8, 16):
        _defer_parts(c, out, inst)
    elif deferrable and width == WORD and source in (8, 16):
        _defer_wholes(c, out, inst)
    else:
        c.write_words(out, c.read_words(inst.x))


def _keep(c: Context, out: Tensor, inst: View, bits: BitLayout) -> None:
    if out in c.single and is_packed(inst.dtype):
        c.write_words(out, c.read_words(inst.x))
        c.bits[out] = bits
    else:
        c.write_words(out, _stream(c.b, c.read_words(inst.x), bits))


def _defer_codes(c: Context, out: Tensor, inst: View, bits: BitLayout) -> None:
    """Let codes be taken from their words one by one, or several at once."""
    word, type_ = _as_words(c, c.read(inst.x)), c.lanes(inst.dtype)
    c.defer(
        out,
        lambda i: c.b.convert("trunc", placed(c.b, word, bits, [i]), type_),
        lambda: _keep(c, out, inst, bits),
        group=lambda numbers: placed(c.b, word, bits, numbers),
    )


def _defer_wholes(c: Context, out: Tensor, inst: View) -> None:
    """Let words be put together one by one from their halves or quarters."""
    count, type_ = WORD // inst.x.type.dtype.nbits, c.lanes(inst.dtype)

    def element(number: int) -> Value:
        return c.b.convert("bitcast", c.group(inst.x, tuple(range(number * count, (number + 1) * count))), type_)

    c.defer(out, element, lambda: c.write_words(out, c.read_words(inst.x)))


def _defer_parts(c: Context, out: Tensor, inst: View) -> None:
    """Let halves or quarters of words be taken one by one, or together as the words that they are."""
    width = inst.dtype.nbits
    count, word, type_ = WORD // width, _as_words(c, c.read(inst.x)), c.lanes(inst.dtype)

    def element(number: int) -> Value:
        part = c.b.op("lshr", word(number // count), number % count * width)
        return c.b.convert("bitcast", c.b.convert("trunc", part, vector(c.b.lanes, f"i{width}")), type_)

    def group(numbers: tuple[int, ...]) -> Value | None:
        first = numbers[0]
        whole = first % count == 0 and numbers == tuple(range(first, first + count))
        return word(first // count) if whole else None

    found = c.deferred.get(inst.x)
    run = _run(inst.layout, register(inst.x)[1], count)
    lies = None if found is None else found.elements
    words = None if lies is None or run is None else replace(lies, run=run)
    c.defer(out, element, lambda: c.write_words(out, c.read_words(inst.x)), group=group, words=words)


def _run(parts: RegisterLayout, words: RegisterLayout, count: int) -> int | None:
    """Return the dimension along which the parts of a word are neighbours, if its own index counts words there."""
    inner, outer = index_table(parts), index_table(words)
    if inner.shape[-1] != outer.shape[-1]:
        return None
    steps = inner[:, 1] - inner[:, 0]
    run = int(np.flatnonzero(steps[0])[0])
    scale = np.ones(inner.shape[-1], int)
    scale[run] = count
    wanted = np.repeat(outer * scale, count, axis=1)
    wanted[..., run] += np.tile(np.arange(count), outer.shape[1])
    return run if wanted.shape == inner.shape and (wanted == inner).all() else None


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
    patterns = [
        _pattern(c.b, form, inst.positions[i // run], code, inst.bits.turned(i)) for i, code in enumerate(codes)
    ]
    c.write_words(out, pack(c.b, patterns, inst.dtype))


def _pattern(b: Builder, form: Form, position: int, code: Value, turned: bool) -> Value:
    """Return the lane that spells a code."""
    m = form.magnitude
    stored = b.op("xor", code, form.flipped ^ (form.source.num_codes - 1 if turned else 0))
    field = b.op("and", b.op("lshr", stored, form.low), (1 << m) - 1)
    lane = b.op("shl", field, position)
    if form.name == "exponent":
        lane = b.op("or", lane, b.op("shl", b.op("lshr", stored, m), form.lane - 1))
    lane = b.op("or", lane, form.constant(position, turned))
    if form.factor == 1.0:
        return lane
    assert form.target == bf16, "the upper half of an f32"
    wide = b.convert("bitcast", b.op("shl", lane, 16), vector(b.lanes, "float"))
    scaled = b.op("fmul", wide, form.factor)
    return b.op("lshr", b.convert("bitcast", scaled, code.type), 16)
