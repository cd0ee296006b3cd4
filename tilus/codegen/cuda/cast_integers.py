"""Integers of up to 16 bits to floats, without a conversion instruction (those run at a quarter of the rate).

Laid under the exponent of 2^M, where M is the number of mantissa bits, a field at bit p of the mantissa is the number
2^M + code * 2^p; one exact multiply-add takes 2^M off and undoes the 2^p. So a field may stay where it is found, as
long as it ends within the mantissa. A signed code has its sign bit flipped on the way, which adds 2^(n-1) to its value.
A pair for f16 costs a byte permutation that brings both elements into their halves, one logical operation and the
multiply-add.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilus.casts import Linear
from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.cast_body import SOURCE, CastBody, both
from tilus.codegen.cuda.context import pairs
from tilus.codegen.cuda.cpp import Expr, call
from tilus.codegen.cuda.values import bits_float, float_bits
from tilus.dtypes import DataType, bf16, f16


@dataclass(frozen=True, slots=True)
class _Half:
    """A 16-bit float: mantissa bits, and the bits of 2^mantissa."""

    dtype: DataType
    mantissa: int
    magic: int


HALVES = {"f16": _Half(f16, 10, 0x6400), "bf16": _Half(bf16, 7, 0x4300)}


def integers_to_halves(body: CastBody, kind: Linear) -> None:
    """Convert integers to f16 or bf16, two at a time."""
    half = HALVES[body.target.name]
    if kind.nbits == 8:
        bytes_to_f16(body, kind) if body.target == f16 else bytes_to_bf16(body, kind)
        return
    for word, (low, high) in enumerate(pairs(body.count)):
        x, positions = _bring_together(body, low, high, kind, half)
        body.put(word, _take_off(body, x, positions, kind, half))


def _bring_together(body: CastBody, low: int, high: int, kind: Linear, half: _Half) -> tuple[Expr, tuple[int, int]]:
    """Return a word of two floats `2^M + code * 2^p`, and where in their halves the codes begin."""
    n, room = kind.nbits, half.mantissa
    first, second = low * n, high * n
    places = _places(body, first, second, n, room)
    mask, top, insert = (1 << n) - 1, kind.flipped, _insert(kind)
    if places is None:
        u, v = body.window(first, n), body.window(second - 16, 16 + n)
        one = body.ctx.ptx(insert, u, cpp.bits(mask), both(half.magic | top))
        return body.ctx.ptx(insert, v, cpp.bits(mask << 16), one), (0, 0)
    x, p, q = places
    magic = both(half.magic | top << p, half.magic | top << q)
    return body.ctx.ptx(insert, x, both(mask << p, mask << q), magic), (p, q)


def _insert(kind: Linear) -> str:
    """Return the instruction that lays masked codes under a constant, which inverts the bits that it has in common."""
    return "and_xor" if kind.flipped else "and_or"


def _places(body: CastBody, first: int, second: int, n: int, room: int) -> tuple[Expr, int, int] | None:
    """Return a word whose halves hold the fields at stream bits `first` and `second`, within `room` bits of each."""
    if first % 8 + n <= room and second % 8 + n <= room:
        word = first // 32
        following = SOURCE[word + 1] if word + 1 < body.words else SOURCE[word]
        last = 4 * (body.words - word) - 1
        selector = _selector(first - 32 * word, second - 32 * word, n, min(last, 7))
        return call("__byte_perm", SOURCE[word], following, cpp.bits(selector)), first % 8, second % 8
    for shift in range(room - n + 1):
        # Behind a shift that leaves the first field at bit `shift`.
        p, q = shift % 8, (shift + second - first) % 8
        if p + n <= room and q + n <= room:
            x = body.let(body.window(first - shift, shift + second - first + n))
            return call("__byte_perm", x, cpp.ZERO, cpp.bits(_selector(shift, shift + second - first, n, 3))), p, q
    return None


def _selector(first: int, second: int, n: int, last: int) -> int:
    """Return the byte permutation that brings the bytes from bits `first` and `second` on into the two halves."""
    selector = 0
    for place, start in ((0, first), (8, second)):
        byte = start // 8
        upper = byte + 1 if start % 8 + n > 8 else byte
        assert upper <= last, "the field ends within the words"
        selector |= (byte | upper << 4) << place
    return selector


def _take_off(body: CastBody, x: Expr, positions: tuple[int, int], kind: Linear, half: _Half) -> Expr:
    """Return (x - 2^M) * 2^-p + offset for both halves."""
    scales = [2.0**-p for p in positions]
    offsets = [kind.offset - 2.0**half.mantissa * scale for scale in scales]
    scale, offset = (both(*(int(half.dtype.encode(v)) for v in pair)) for pair in (scales, offsets))
    if half.dtype == f16 and positions == (0, 0):
        return body.ctx.ptx("add_f16x2", x, offset)
    return body.ctx.ptx(f"fma_{half.dtype}x2", x, scale, offset)


def _flipped(body: CastBody, word: int, kind: Linear) -> Expr:
    return body.let(SOURCE[word] ^ cpp.bits(kind.flipped * 0x01010101)) if kind.flipped else SOURCE[word]


def bytes_to_f16(body: CastBody, kind: Linear) -> None:
    """Permute a code and the upper byte of 1024.0 into each half at once."""
    for word, (low, high) in enumerate(pairs(body.count)):
        selector = cpp.bits(0x4040 | low % 4 | (high % 4) << 8)
        x = call("__byte_perm", _flipped(body, low // 4, kind), cpp.bits(0x64646464), selector)
        body.put(word, _take_off(body, x, (0, 0), kind, HALVES["f16"]))


def bytes_to_bf16(body: CastBody, kind: Linear) -> None:
    """Go through f32: bf16 has 8 significant bits, so the upper half of each f32 is the exact result."""
    for word, (low, high) in enumerate(pairs(body.count)):
        first, second = (float_bits(x) for x in (_byte_to_f32(body, i, kind) for i in (low, high)))
        body.put(word, call("__byte_perm", first, second, cpp.bits(0x7632)))


def _byte_to_f32(body: CastBody, i: int, kind: Linear) -> Expr:
    x = call("__byte_perm", _flipped(body, i // 4, kind), cpp.bits(0x4B000000), cpp.bits(0x7440 | i % 4))
    return cpp.Binary("+", bits_float(x), cpp.float_literal(kind.offset - 2.0**23))


def integer_to_f32(body: CastBody, i: int, kind: Linear) -> Expr:
    """Return an integer as f32: the field under 2^23, in place where it ends below bit 23."""
    n, mantissa, magic = kind.nbits, 23, 0x4B000000
    if n == 8:
        return _byte_to_f32(body, i, kind)
    word, p = divmod(i * n, 32)
    x: Expr = SOURCE[word]
    if p + n > mantissa:
        x, p = body.window(i * n, n), 0
    mask = cpp.bits(((1 << n) - 1) << p)
    bits = body.ctx.ptx(_insert(kind), x, mask, cpp.bits(magic | kind.flipped << p))
    scale, offset = 2.0**-p, cpp.float_literal(kind.offset - 2.0 ** (mantissa - p))
    if p == 0:
        return cpp.Binary("+", bits_float(bits), offset)
    return call("__fmaf_rn", bits_float(bits), cpp.float_literal(scale), offset)
