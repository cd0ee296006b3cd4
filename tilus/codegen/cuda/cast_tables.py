"""Codes of up to 4 bits to any 16- or 32-bit type by table, without memory: a byte permutation looks up four codes.

`__byte_perm(a, b, selector)` takes four bytes out of the eight of a and b; its selector has a nibble for each, of which
three bits choose and the fourth would spread a sign. So it is a table of 8 bytes that four 3-bit codes index at once.
A 16-bit target takes two such tables (its bytes' planes), 16 entries take two tables and a choice by the fourth bit.
"""

from __future__ import annotations

import numpy as np

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.cast_body import CastBody
from tilus.codegen.cuda.cpp import Expr, call
from tilus.dtypes import DataType, Exponent

_GROUP = 4  # codes a permutation looks up


def table_codes(source: DataType, target: DataType) -> list[int]:
    """Return the target code of every source code."""
    values = source.decode(np.arange(source.num_codes))
    if target.is_integer:
        values = np.trunc(values)
    if isinstance(target, Exponent):
        values = np.abs(values)  # as the function for single values does
    codes = [int(c) for c in target.encode(values)]
    return codes + [0] * ((1 << source.nbits) - len(codes))


def by_table(body: CastBody) -> None:
    """Convert codes of up to 4 bits to a type of 16 or 32 bits."""
    codes, size = table_codes(body.source, body.target), body.target.nbits // 8
    planes = [[code >> (8 * plane) & 0xFF for code in codes] for plane in range(size)]
    for first in range(0, body.count, _GROUP):
        group = min(_GROUP, body.count - first)
        nibbles, upper = _selectors(body, first, group)
        words = [_look_up(body, plane, nibbles, upper) for plane in planes]
        start = first * body.target.nbits // 32
        for i, word in enumerate(_interleave(body, words)[: -(-group * body.target.nbits // 32)]):
            body.put(start + i, word)


def _selectors(body: CastBody, first: int, group: int) -> tuple[Expr, Expr]:
    """Return words whose lowest four nibbles are the codes' lowest three bits, and their fourth bit."""
    n = body.source.nbits
    x = body.let(body.window(first * n, group * n))
    if n == 4:
        # Where the fourth bit of each code is set, pick byte 1 of 0xff00: a mask of bytes.
        upper = call("__byte_perm", cpp.bits(0xFF00), cpp.ZERO, (x >> 3) & cpp.bits(0x1111))
        return body.let(x & cpp.bits(0x7777)), upper
    # Spread the codes to nibbles: the upper two go up by 2 (4 - n), then the odd ones by 4 - n.
    gap, pair = 4 - n, (1 << (2 * n)) - 1
    y = body.let((x & cpp.bits(pair)) | ((x << (2 * gap)) & cpp.bits(pair << 8)))
    one = (1 << n) - 1
    return body.let((y & cpp.bits(one * 0x0101)) | ((y << gap) & cpp.bits(one * 0x1010))), cpp.ZERO


def _look_up(body: CastBody, plane: list[int], nibbles: Expr, upper: Expr) -> Expr:
    """Return the bytes of a plane for four codes."""
    padded = plane + [0] * (-len(plane) % 8)
    tables = [cpp.bits(int.from_bytes(bytes(padded[i : i + 4]), "little")) for i in range(0, len(padded), 4)]
    if len(set(plane)) == 1:
        return cpp.bits(plane[0] * 0x01010101)
    low: Expr = call("__byte_perm", tables[0], tables[1], nibbles)
    if len(tables) == 2:
        return body.let(low)
    if tables[:2] == tables[2:]:
        return body.let(low)
    high, mask = body.let(call("__byte_perm", tables[2], tables[3], nibbles)), body.let(upper)
    low = body.let(low)
    return body.let((low & cpp.Unary("~", mask)) | (high & mask))


def _interleave(body: CastBody, planes: list[Expr]) -> list[Expr]:
    """Return the words that four elements of 2 or 4 bytes make, from one word for each byte's plane."""

    def pairs(low: Expr, high: Expr) -> list[Expr]:
        return [call("__byte_perm", low, high, cpp.bits(selector)) for selector in (0x5140, 0x7362)]

    if len(planes) == 2:
        return pairs(*planes)
    words: list[Expr] = []
    for lower, upper in zip(pairs(*planes[:2]), pairs(*planes[2:]), strict=True):
        a, b = body.let(lower), body.let(upper)
        words += [call("__byte_perm", a, b, cpp.bits(selector)) for selector in (0x5410, 0x7632)]
    return words
