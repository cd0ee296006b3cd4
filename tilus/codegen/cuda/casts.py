"""Tiles from one data type to another: one device function for each (source, target, number of elements).

The ways are tried in order, and the first that applies is taken; all are exact, as `DataType.encode(decode(code))`.
"""

from __future__ import annotations

from dataclasses import replace

from tilus.casts import linear
from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.cast_body import SOURCE, TARGET, CastBody
from tilus.codegen.cuda.cast_floats import exponents_to_bf16, floats_to_halves
from tilus.codegen.cuda.cast_integers import HALVES, integer_to_f32, integers_to_halves
from tilus.codegen.cuda.cast_tables import by_table, table_codes
from tilus.codegen.cuda.context import Context, layout_of, pairs, register
from tilus.codegen.cuda.cpp import Expr, Name, call
from tilus.codegen.cuda.values import bits_float, decode, encode, float_bits, identifier
from tilus.codegen.cuda.words import pack, word_count
from tilus.dtypes import Codebook, DataType, Exponent, Float, bf16, f16, f32
from tilus.ir.expr import Tensor

_TABLE_BITS = 4  # codes that a byte permutation looks up
_F16_EXPONENT = 5  # bits


def cast_function(ctx: Context, source: DataType, target: DataType, count: int, offset: int = 0) -> str:
    """Return the function that converts `count` elements of a thread: `f(u32* d, const u32* s)`.

    Parameters
    ----------
    ctx : Context
    source, target : DataType
        Different types.
    count : int
        Elements per thread.
    offset : int
        Added to every element: for casts of integers to 16-bit floats only, see `fusion`.
    """
    name = f"cast_{identifier(source)}_{identifier(target)}_x{count}"
    if offset:
        name += f"_{'plus' if offset > 0 else 'minus'}_{abs(offset)}"
    if name not in ctx.functions:
        body = CastBody(ctx, source, target, count, offset)
        _fill(body)
        ctx.add_function(cpp.Function(name, "void", ("u32* d", "const u32* s"), tuple(body.statements)))
    return name


def _fill(body: CastBody) -> None:
    source, target = body.source, body.target
    if target.name in HALVES and _to_halves(body):
        return
    half = _half_for(source) if target == f32 else None
    if half is not None:
        _by_way_of(body, half)
    elif target == f32 and source.nbits <= _TABLE_BITS and not source.is_integer and linear(source) is None:
        by_table(body)
    elif isinstance(source, Codebook) and linear(source) is None:
        _by_memory(body)
    elif target.is_float and target.name != "f64" and has_f32(source):
        _from_f32(body, [f32_value(body, i) for i in range(body.count)])
    else:
        codes = [encode(body.ctx, target, decode(body.ctx, source, body.code(i)), source) for i in range(body.count)]
        _put_codes(body, codes)


def _to_halves(body: CastBody) -> bool:
    """Convert to f16 or bf16 in one of the ways that make two at a time; False if none applies."""
    source, target = body.source, body.target
    kind = linear(source)
    if kind is not None and kind.nbits <= 8:
        integers_to_halves(body, replace(kind, offset=kind.offset + body.offset))
    elif source.nbits <= _TABLE_BITS and not source.is_integer:
        by_table(body)
    elif isinstance(source, Exponent) and target == bf16:
        exponents_to_bf16(body)
    elif isinstance(source, Float) and isinstance(target, Float) and _TABLE_BITS < source.nbits <= 8:
        if source.exponent_bits >= target.exponent_bits and not source.has_inf:
            return False  # values beyond the target's range
        floats_to_halves(body, source, target)
    else:
        return False
    return True


def _half_for(source: DataType) -> DataType | None:
    """Return the 16-bit float by way of which a type is converted to f32; None where that is not the way."""
    if isinstance(source, Exponent):
        return bf16
    if not isinstance(source, Float) or not _TABLE_BITS < source.nbits <= 8:
        return None
    return f16 if source.exponent_bits < _F16_EXPONENT or source.has_inf else bf16


def _by_way_of(body: CastBody, half: DataType) -> None:
    """Convert to a 16-bit float, two at a time, and that to the target."""
    between = Name("h")
    body.statements += [
        cpp.Declare("u32", between.text, extent=word_count(half.nbits, body.count)),
        cpp.Do(call(cast_function(body.ctx, body.source, half, body.count), between, SOURCE)),
        cpp.Do(call(cast_function(body.ctx, half, body.target, body.count), TARGET, between)),
    ]


def has_f32(source: DataType) -> bool:
    """Whether f32 holds every value of a type."""
    return source.nbits <= 16 or source.name in ("f32", "tf32")


def f32_value(body: CastBody, i: int) -> Expr:
    """Return a source element as an f32 value."""
    kind = linear(body.source)
    if kind is not None:
        return integer_to_f32(body, i, kind)
    match body.source.name:
        case "f16":
            return body.ctx.ptx(f"cvt_f32_f16_{'high' if i % 2 else 'low'}", SOURCE[i // 2])
        case "bf16":
            word = SOURCE[i // 2]
            return bits_float(word & cpp.bits(0xFFFF0000) if i % 2 else word << 16)
        case _:
            return decode(body.ctx, body.source, body.code(i))


def _from_f32(body: CastBody, values: list[Expr]) -> None:
    if body.target.name in HALVES:
        for word, (low, high) in enumerate(pairs(body.count)):
            body.put(word, body.ctx.ptx(f"cvt_{body.target}x2_f32", values[high], values[low]))
    elif body.target == f32:
        for word, value in enumerate(values):
            body.put(word, float_bits(value))
    else:
        _put_codes(body, [encode(body.ctx, body.target, value, f32) for value in values])


def _by_memory(body: CastBody) -> None:
    """Look every code up in a table in global memory."""
    wide = body.target.nbits == 64
    name = f"table_{identifier(body.source)}_{identifier(body.target)}"
    table = body.ctx.add_table(cpp.Table("u64" if wide else "u32", name, tuple(table_codes(body.source, body.target))))
    _put_codes(body, [table[body.code(i)] for i in range(body.count)])


def _put_codes(body: CastBody, codes: list[Expr]) -> None:
    for word, value in enumerate(pack(codes, body.target.nbits)):
        body.put(word, value)


def cast_call(ctx: Context, out: Tensor, x: Tensor, offset: int = 0) -> cpp.Stmt:
    """Return the statement that converts a tile into another of a different type, and adds a number."""
    function = cast_function(ctx, register(x).dtype, register(out).dtype, layout_of(out).local_size, offset)
    return cpp.Do(call(function, ctx.name(out), ctx.name(x)))
