"""Emitter of operators on tiles.

f16 and bf16 are computed two at a time where the hardware can; else by way of f32. 32-bit types take one word at a
time, everything narrower is unpacked, computed and packed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.context import Context, layout_of, pairs, register
from tilus.codegen.cuda.cpp import Expr, Name
from tilus.codegen.cuda.emit_registers import copy_words, loop, splat_word
from tilus.codegen.cuda.operators import apply
from tilus.codegen.cuda.placement import local_indices, local_number
from tilus.codegen.cuda.scalars import scalar
from tilus.codegen.cuda.types import c_type, code_type
from tilus.codegen.cuda.values import bits_float, decode, encode
from tilus.codegen.cuda.words import assign, element, half_pair, pack, words_of
from tilus.dtypes import DataType, boolean
from tilus.ir import instructions as I
from tilus.ir.expr import Expr as ScalarExpr
from tilus.ir.expr import Tensor, dtype_of
from tilus.ir.operators import OPERATORS
from tilus.ir.stmt import InstStmt
from tilus.layouts import RegisterLayout

_BITWISE = {"and": "&", "or": "|", "xor": "^"}
HalfRule: TypeAlias = Callable[..., Expr]


def _half_rules(ctx: Context, kind: str) -> dict[str, HalfRule]:
    """Return what operators are on words of two 16-bit floats."""
    rules: dict[str, HalfRule] = {
        "neg": lambda a: a ^ cpp.bits(0x80008000),
        "abs": lambda a: a & cpp.bits(0x7FFF7FFF),
        "min": lambda a, b: ctx.ptx(f"min_{kind}x2", a, b),
        "max": lambda a, b: ctx.ptx(f"max_{kind}x2", a, b),
    }
    if kind == "f16":
        return rules | {op: partial(ctx.ptx, f"{op}_f16x2") for op in ("add", "sub", "mul")}
    # bf16 has nothing but the fused multiply-add before compute capability 9.0; + -0.0 keeps the sign of zero.
    one, minus_one, minus_zero = cpp.bits(0x3F803F80), cpp.bits(0xBF80BF80), cpp.bits(0x80008000)
    rules["add"] = lambda a, b: ctx.ptx("fma_bf16x2", a, one, b)
    rules["sub"] = lambda a, b: ctx.ptx("fma_bf16x2", b, minus_one, a)
    rules["mul"] = lambda a, b: ctx.ptx("fma_bf16x2", a, b, minus_zero)
    return rules


@dataclass(frozen=True, slots=True)
class _Tile:
    """A tile operand: local i of the result takes its local `places[i]`."""

    array: Name
    dtype: DataType
    places: tuple[int, ...]
    words: int

    def code(self, i: int) -> Expr:
        return element(self.array, self.words, self.places[i], self.dtype.nbits)

    def value(self, ctx: Context, i: int) -> Expr:
        place = self.places[i]
        if self.dtype.name == "f16":
            half = "high" if place % 2 else "low"
            return ctx.ptx(f"cvt_f32_f16_{half}", self.array[place // 2])
        if self.dtype.name == "bf16":
            word = self.array[place // 2]
            return bits_float(word & cpp.bits(0xFFFF0000) if place % 2 else word << 16)
        return decode(ctx, self.dtype, self.code(i))

    def pair(self, low: int, high: int) -> Expr:
        return half_pair(self.array, self.places[low], self.places[high])


@dataclass(frozen=True, slots=True)
class _Scalar:
    """A scalar operand, named once as a value; `word` repeats its code."""

    held: Expr
    dtype: DataType
    word: Expr

    def value(self, ctx: Context, i: int) -> Expr:
        return self.held

    def pair(self, low: int, high: int) -> Expr:
        return self.word


_Operand: TypeAlias = "_Tile | _Scalar"


def places_of(out: RegisterLayout, operand: RegisterLayout) -> tuple[int, ...]:
    """Return which local of a broadcast operand each local of the result needs; extents of 1 repeat."""
    missing = out.rank - operand.rank
    found = []
    for index in local_indices(out):
        kept = [0 if n == 1 else i for i, n in zip(index[missing:], operand.shape, strict=True)]
        found.append(local_number(operand, kept))
    return tuple(found)


def elementwise(ctx: Context, stmt: InstStmt, out: Tensor, inst: I.Elementwise) -> None:
    """Apply an operator to every element."""
    with ctx.block():
        operands = [_operand(ctx, arg, layout_of(out)) for arg in inst.args]
        dtype, result = operands[-1].dtype, register(out).dtype
        halves = dtype.name in ("f16", "bf16") and dtype == result and inst.op != "where"
        if halves and inst.op in (rules := _half_rules(ctx, dtype.name)):
            _by_pairs(ctx, out, operands, rules[inst.op])
        elif halves:
            _by_single_precision(ctx, out, inst.op, operands)
        elif dtype.nbits == 32 and dtype == result:
            _by_words(ctx, out, inst.op, operands)
        else:
            _by_elements(ctx, out, inst.op, operands)


def _operand(ctx: Context, arg: Tensor | ScalarExpr, out: RegisterLayout) -> _Operand:
    if isinstance(arg, Tensor):
        kind = register(arg)
        return _Tile(ctx.name(arg), kind.dtype, places_of(out, layout_of(arg)), words_of(kind))
    dtype = dtype_of(arg)
    held = ctx.constant(c_type(dtype), "value", scalar(ctx, arg))
    word: Expr = cpp.ZERO
    if dtype.name in ("f16", "bf16"):
        code = encode(ctx, dtype, held, dtype)
        word = ctx.constant(code_type(dtype), "word", splat_word(ctx, dtype, code)[0])
    return _Scalar(held, dtype, word)


def _is_plain(operands: list[_Operand], count: int) -> bool:
    """Whether every tile is laid out as the result, so that words correspond."""
    identity = tuple(range(count))
    return all(isinstance(x, _Scalar) or x.places == identity for x in operands)


def _by_pairs(ctx: Context, out: Tensor, operands: list[_Operand], rule: HalfRule) -> None:
    array, count = ctx.name(out), layout_of(out).local_size
    if _is_plain(operands, count):
        i = Name("i")
        args = [x.word if isinstance(x, _Scalar) else x.array[i] for x in operands]
        loop(ctx, words_of(register(out)), [cpp.Set(array[i], rule(*args))])
        return
    words = [rule(*(x.pair(low, high) for x in operands)) for low, high in pairs(count)]
    ctx.emit(*assign(array, words))


def _by_single_precision(ctx: Context, out: Tensor, op: str, operands: list[_Operand]) -> None:
    dtype, count = register(out).dtype, layout_of(out).local_size
    words = []
    for low, high in pairs(count):
        a, b = (apply(ctx, op, dtype, *(x.value(ctx, i) for x in operands)) for i in (low, high))
        words.append(ctx.ptx(f"cvt_{dtype}x2_f32", b, a))
    ctx.emit(*assign(ctx.name(out), words))


def _by_words(ctx: Context, out: Tensor, op: str, operands: list[_Operand]) -> None:
    dtype, array, count = register(out).dtype, ctx.name(out), layout_of(out).local_size

    def word(values: list[Expr]) -> Expr:
        return encode(ctx, dtype, apply(ctx, op, dtype, *values), dtype)

    plain = _is_plain(operands, count) and op != "where"
    if plain:
        i = Name("i")
        values = [x.held if isinstance(x, _Scalar) else decode(ctx, x.dtype, x.array[i]) for x in operands]
        loop(ctx, count, [cpp.Set(array[i], word(values))])
    else:
        ctx.emit(*assign(array, [word([x.value(ctx, i) for x in operands]) for i in range(count)]))


def _by_elements(ctx: Context, out: Tensor, op: str, operands: list[_Operand]) -> None:
    result, array, count = register(out).dtype, ctx.name(out), layout_of(out).local_size
    dtype = operands[-1].dtype
    if (
        op in _BITWISE
        and dtype.nbits < 32
        and all(isinstance(x, _Tile) for x in operands)
        and _is_plain(operands, count)
    ):
        _bitwise(ctx, out, op, operands)
        return
    codes = []
    for i in range(count):
        if op == "where" and not any(isinstance(x, _Scalar) for x in operands[1:]):
            # Codes are chosen as they are: no type needs values for that.
            value: Expr = cpp.Conditional(operands[0].value(ctx, i), *(_code(x, i) for x in operands[1:]))
        else:
            value = apply(ctx, op, dtype, *(x.value(ctx, i) for x in operands))
            value = encode(ctx, result, value, boolean if OPERATORS[op].result == "bool" else dtype)
        codes.append(value)
    words = pack(codes, result.nbits)
    if 32 % result.nbits and result.nbits < 32 and any(isinstance(x, _Tile) and x.array == array for x in operands):
        # An element that lies across words is read again after its first word is written.
        fresh = ctx.array("fresh", len(words))
        ctx.emit(*assign(fresh, words))
        copy_words(ctx, array, fresh, len(words))
    else:
        ctx.emit(*assign(array, words))


def _code(operand: _Operand, i: int) -> Expr:
    assert isinstance(operand, _Tile)
    return operand.code(i)


def _bitwise(ctx: Context, out: Tensor, op: str, operands: list[_Operand]) -> None:
    """Combine whole words: elements do not matter."""
    array, i = ctx.name(out), Name("i")
    a, b = (x.array[i] for x in operands if isinstance(x, _Tile))
    loop(ctx, words_of(register(out)), [cpp.Set(array[i], cpp.binary(_BITWISE[op], a, b))])
