"""Floats of 5 to 8 bits to f16 and bf16, two at a time, and e8m0 to bf16.

The code is brought to the top of its half. The sign stays, the magnitude moves down until its mantissa lies at the top
of the target's: the bits then spell value * 2^(bias - target bias), for subnormals too, and one exact multiplication
gives the value. Where infinity and NaN alone have a carry when something is added to the magnitude, it comes to stand
above a shorter exponent, and makes it full.
"""

from __future__ import annotations

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.cast_body import SOURCE, CastBody, both
from tilus.codegen.cuda.context import pairs
from tilus.codegen.cuda.cpp import Expr, call
from tilus.codegen.cuda.values import first_special
from tilus.dtypes import Float, f16
from tilus.errors import InternalError

_SIGNS = both(0x8000)
_LEAST_SCALE = both(0x0040)  # 2^-127 as bf16, subnormal


def floats_to_halves(body: CastBody, source: Float, target: Float) -> None:
    """Convert floats of 5 to 8 bits to f16 or bf16; the exponent must not be longer than the target's."""
    hardware = f"cvt_f16x2_{source.name[2:]}x2"
    if target == f16 and source.has_nan and body.ctx.has(f"{hardware}_low"):
        for word, (low, _) in enumerate(pairs(body.count)):
            half = "high" if low % 4 else "low"
            body.put(word, body.ctx.ptx(f"{hardware}_{half}", SOURCE[low // 4]))
        return
    for word, (low, high) in enumerate(pairs(body.count)):
        x = body.let(_at_top(body, low, high, source.nbits))
        if source.has_nan and source.exponent_bits + 1 == target.exponent_bits:
            magnitude = x & both(0x7F00)
            marked = body.ctx.ptx("and_or", _marked(body, magnitude, source), _SIGNS, magnitude)
            small = body.ctx.ptx("and_or", x, _SIGNS, marked >> 1)
            body.put(word, _multiplied(body, small, source, target))
        else:
            body.put(word, _mend_specials(body, x, _scaled(body, x, source, target), source, target))


def exponents_to_bf16(body: CastBody) -> None:
    """Convert e8m0 to bf16: 2^-127 is subnormal, and infinity times 0 is the NaN of code 255."""
    for word, (low, high) in enumerate(pairs(body.count)):
        x = body.let(body.ctx.ptx("max_bf16x2", _at_top(body, low, high, 8) >> 1, _LEAST_SCALE))
        body.put(word, body.ctx.ptx("fma_bf16x2", x, cpp.ZERO, x))


def _at_top(body: CastBody, low: int, high: int, n: int) -> Expr:
    """Return a word with one code at the top of each half; what lies below them is to be masked."""
    if n == 8:
        selector = (low % 4) << 4 | (high % 4) << 12 | 0x0404
        return call("__byte_perm", SOURCE[low // 4], cpp.ZERO, cpp.bits(selector))
    u, v = body.window(low * n + n - 16, 16), body.window(high * n + n - 32, 32)
    return call("__byte_perm", u, v, cpp.bits(0x7610))


def _scaled(body: CastBody, x: Expr, source: Float, target: Float) -> Expr:
    magnitude = ((1 << (source.exponent_bits + source.mantissa_bits)) - 1) << (
        target.mantissa_bits - source.mantissa_bits
    )
    shift = target.exponent_bits - source.exponent_bits
    moved = (x & _SIGNS) | ((x >> shift) & both(magnitude))
    small = x & both(0x8000 | magnitude) if shift == 0 else moved
    return _multiplied(body, small, source, target)


def _multiplied(body: CastBody, small: Expr, source: Float, target: Float) -> Expr:
    """Return values, given what their bits spell under the target's bias."""
    scale = 2.0 ** (target.bias - source.bias)
    if scale == 1:
        return small
    factor = both(int(target.encode(scale)))
    if target == f16:
        return body.ctx.ptx("mul_f16x2", small, factor)
    return body.ctx.ptx("fma_bf16x2", small, factor, _SIGNS)  # + -0.0 keeps the sign of zero


def _mend_specials(body: CastBody, x: Expr, value: Expr, source: Float, target: Float) -> Expr:
    """Give infinity and NaN a full exponent: their mantissas are right already."""
    if not source.has_nan or target.exponent_bits == source.exponent_bits:
        return value
    if source.nbits != 8:
        raise InternalError(f"{source} has special values, and is no byte")
    spread = body.ctx.ptx("prmt", _marked(body, x & both(0x7F00), source), cpp.ZERO, cpp.bits(0xBB99))
    exponent = ((1 << target.exponent_bits) - 1) << target.mantissa_bits
    return value | (spread & both(exponent))


def _marked(body: CastBody, magnitude: Expr, source: Float) -> Expr:
    """Return magnitudes at the top of halves plus what carries into the sign of infinity and NaN alone."""
    first = first_special(source)
    assert first is not None
    return magnitude + both((0x80 - first) << 8)
