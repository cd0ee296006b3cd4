"""Integer, logic and movement instructions against Python's integers, one number at a time."""

from __future__ import annotations

import numpy as np
import pytest

from tests.simt.exact import samples
from tilus.simt import alu


def signed(x: int, nbits: int) -> int:
    return x - (x >> (nbits - 1) << nbits)


def typed(x, kind: str) -> int:
    return signed(int(x), int(kind[1:])) if kind[0] == "s" else int(x)


def quotient(a, b, nbits):
    return (1 << nbits) - 1 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


BINARY = {
    "add": lambda a, b, n: a + b,
    "sub": lambda a, b, n: a - b,
    "mul.lo": lambda a, b, n: a * b,
    "mul.hi": lambda a, b, n: a * b >> n,
    "div": quotient,
    "rem": lambda a, b, n: a if b == 0 else a - quotient(a, b, n) * b,
    "min": lambda a, b, n: min(a, b),
    "max": lambda a, b, n: max(a, b),
}


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", BINARY)
def test_binary(name, kind):
    nbits = int(kind[1:])
    a, b = samples(nbits, 100, 1), samples(nbits, 100, 2)
    found = alu.evaluate(f"{name}.{kind}", a, b)
    for x, y, got in zip(a, b, found, strict=True):
        wanted = BINARY[name](typed(x, kind), typed(y, kind), nbits)
        assert int(got) == wanted % (1 << nbits), (x, y)


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32"])
def test_wide_products(kind):
    nbits = int(kind[1:])
    a, b = samples(nbits, 100, 1), samples(nbits, 100, 2)
    c = samples(2 * nbits, 400, 3)[: len(a)]
    for x, y, z, got, sum_ in zip(
        a, b, c, alu.evaluate(f"mul.wide.{kind}", a, b), alu.evaluate(f"mad.wide.{kind}", a, b, c), strict=True
    ):
        product = typed(x, kind) * typed(y, kind)
        assert int(got) == product % (1 << 2 * nbits)
        assert int(sum_) == (product + int(z)) % (1 << 2 * nbits)


def test_carries():
    a, b = samples(32, 100, 1), samples(32, 100, 2)
    total, carry = alu.evaluate("add.cc.u32", a, b)
    high, _ = alu.evaluate("addc.cc.u32", a, b, carry)
    less, borrow = alu.evaluate("sub.cc.u32", a, b)
    for x, y, t, c, h, s, w in zip(a, b, total, carry, high, less, borrow, strict=True):
        x, y = int(x), int(y)
        assert (int(t), bool(c)) == ((x + y) % 2**32, x + y >= 2**32)
        assert int(h) == (x + y + bool(c)) % 2**32
        assert (int(s), bool(w)) == ((x - y) % 2**32, x < y)


def test_saturated_sum():
    assert alu.evaluate("add.sat.s32", 0x7FFFFFFF, 1) == 0x7FFFFFFF
    assert alu.evaluate("sub.sat.s32", 0x80000000, 1) == 0x80000000


def test_every_table_of_lop3():
    a, b, c = (np.uint32(x) for x in (0xF0F0A5A5, 0xCCCC3C5A, 0xAAAA0FF0))
    for table in range(256):
        got = int(alu.evaluate("lop3.b32", a, b, c, table))
        wanted = sum(
            (table >> ((int(a) >> i & 1) << 2 | (int(b) >> i & 1) << 1 | (int(c) >> i & 1)) & 1) << i for i in range(32)
        )
        assert got == wanted, table
    word, flag = alu.evaluate("lop3.or.b32", a, b, c, 0x00, True)
    assert (word, flag) == (0, True)


@pytest.mark.parametrize("kind", ["b32", "b64", "u32", "s32", "u64", "s64", "b16", "s16"])
def test_shifts(kind):
    nbits = int(kind[1:])
    a = samples(nbits, 100)
    for n in (0, 1, nbits - 1, nbits, nbits + 1, 0xFFFFFFFF):
        if kind[0] == "b":
            for x, got in zip(a, alu.evaluate(f"shl.{kind}", a, n), strict=True):
                assert int(got) == (int(x) << min(n, nbits)) % (1 << nbits)
        for x, got in zip(a, alu.evaluate(f"shr.{kind}", a, n), strict=True):
            assert int(got) == (typed(x, kind) >> min(n, nbits)) % (1 << nbits)


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
@pytest.mark.parametrize("side", ["l", "r"])
def test_funnel_shift(side, mode):
    low, high, n = samples(32, 200, 1), samples(32, 200, 2), samples(32, 200, 3)
    n = np.where(np.arange(len(n)) % 2, n % 40, n)
    for x, y, s, got in zip(low, high, n, alu.evaluate(f"shf.{side}.{mode}.b32", low, high, n), strict=True):
        shift = int(s) & 31 if mode == "wrap" else min(int(s), 32)
        both = int(y) << 32 | int(x)
        assert int(got) == (both << shift >> 32 if side == "l" else both >> shift) & 0xFFFFFFFF


def permuted(a: int, b: int, selector: int) -> int:
    data = (b << 32 | a).to_bytes(8, "little")
    out = []
    for i in range(4):
        field = selector >> 4 * i & 15
        byte = data[field & 7]
        out.append((0xFF if byte & 0x80 else 0) if field & 8 else byte)
    return int.from_bytes(bytes(out), "little")


def test_byte_permutation():
    a, b, c = (samples(32, 300, seed) for seed in range(3))
    for x, y, s, got in zip(a, b, c, alu.evaluate("prmt.b32", a, b, c), strict=True):
        assert int(got) == permuted(int(x), int(y), int(s))
    modes = {"f4e": [0x3210, 0x4321, 0x5432, 0x6543], "b4e": [0x5670, 0x6701, 0x7012, 0x0123],
             "rc8": [0x0000, 0x1111, 0x2222, 0x3333], "ecl": [0x3210, 0x3211, 0x3222, 0x3333],
             "ecr": [0x0000, 0x1110, 0x2210, 0x3210], "rc16": [0x1010, 0x3232, 0x1010, 0x3232]}  # fmt: skip
    for mode, selectors in modes.items():
        for n, selector in enumerate(selectors):
            assert int(alu.evaluate(f"prmt.b32.{mode}", 0x33221100, 0x77665544, n)) == permuted(
                0x33221100, 0x77665544, selector
            )


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_fields(kind):
    nbits = int(kind[1:])
    words, others = samples(nbits, 8, 1)[:12], samples(nbits, 8, 2)[:12]
    for pos in (0, 1, 7, nbits - 1, nbits, 200):
        for size in (0, 1, 5, nbits - 1, nbits, 255):
            extracted = alu.evaluate(f"bfe.{kind}", words, pos, size)
            inserted = alu.evaluate(f"bfi.b{nbits}", words, others, pos, size)
            for x, y, e, i in zip(words, others, extracted, inserted, strict=True):
                assert int(e) == field(int(x), pos, size, kind), (x, pos, size)
                mask = ((1 << size) - 1) << pos & ((1 << nbits) - 1)
                assert int(i) == (int(y) & ~mask | int(x) << pos & mask), (x, y, pos, size)


def field(x: int, pos: int, size: int, kind: str) -> int:
    """Follow the manual's loop over bits."""
    nbits = int(kind[1:])
    msb = nbits - 1
    sign = 0 if kind[0] == "u" or size == 0 else x >> min(pos + size - 1, msb) & 1
    return sum((x >> pos + i & 1 if i < size and pos + i <= msb else sign) << i for i in range(nbits))


@pytest.mark.parametrize("nbits", [32, 64])
def test_counts(nbits):
    words = samples(nbits, 100)
    for name, kind, define in (
        ("popc", "b", lambda x: bin(x).count("1")),
        ("clz", "b", lambda x: nbits - x.bit_length()),
        ("brev", "b", lambda x: int(f"{x:0{nbits}b}"[::-1], 2)),
        ("bfind", "u", lambda x: (x.bit_length() - 1) % 2**32),
        ("bfind", "s", lambda x: ((x if x >> nbits - 1 == 0 else x ^ (1 << nbits) - 1).bit_length() - 1) % 2**32),
    ):
        for x, got in zip(words, alu.evaluate(f"{name}.{kind}{nbits}", words), strict=True):
            assert int(got) == define(int(x)), (name, x)
    for x, got in zip(words, alu.evaluate(f"bfind.shiftamt.u{nbits}", words), strict=True):
        assert int(got) == (nbits - int(x).bit_length() if x else 0xFFFFFFFF)


@pytest.mark.parametrize("kinds", ["u32.u32", "s32.s32", "u32.s32", "s32.u32"])
def test_dot_products(kinds):
    a, b, c = (samples(32, 100, seed) for seed in range(3))
    left, right = kinds.split(".")

    def byte(x, i, kind):
        v = int(x) >> 8 * i & 255
        return signed(v, 8) if kind == "s32" else v

    def half(x, i):
        v = int(x) >> 16 * i & 0xFFFF
        return signed(v, 16) if left == "s32" else v

    for x, y, z, four, low, high in zip(
        a, b, c, alu.evaluate(f"dp4a.{kinds}", a, b, c), alu.evaluate(f"dp2a.lo.{kinds}", a, b, c),
        alu.evaluate(f"dp2a.hi.{kinds}", a, b, c), strict=True,
    ):  # fmt: skip
        assert int(four) == (int(z) + sum(byte(x, i, left) * byte(y, i, right) for i in range(4))) % 2**32
        assert int(low) == (int(z) + sum(half(x, i) * byte(y, i, right) for i in range(2))) % 2**32
        assert int(high) == (int(z) + sum(half(x, i) * byte(y, 2 + i, right) for i in range(2))) % 2**32


def test_small_ones():
    assert alu.evaluate("sad.u32", 5, 9, 100) == 104
    assert alu.evaluate("sad.s32", -5, 9, 100) == 114
    assert alu.evaluate("abs.s32", -7) == 7
    assert alu.evaluate("neg.s16", 7) == 0xFFF9
    assert alu.evaluate("not.b64", 0) == 2**64 - 1
    assert alu.evaluate("cnot.b32", 0) == 1
    assert alu.evaluate("selp.b32", 1, 2, False) == 2
    assert alu.evaluate("slct.b32.s32", 1, 2, -1) == 2
    assert alu.evaluate("bmsk.clamp.b32", 4, 8) == 0xFF0
    assert alu.evaluate("szext.wrap.s32", 0x8F, 8) == 0xFFFFFF8F
    assert alu.evaluate("szext.clamp.u32", 0x18F, 8) == 0x8F
    assert alu.evaluate("fns.b32", 0b101100, 0, 2) == 3
    assert alu.evaluate("mul24.lo.s32", 0xFFFFFF, 3) == 0xFFFFFFFD
    assert alu.evaluate("mad24.hi.u32", 0xFFFFFF, 0xFFFFFF, 1) == (0xFFFFFF**2 >> 16) % 2**32 + 1
    for name, wanted in (("lt", True), ("ge", False), ("ne", True)):
        assert alu.evaluate(f"setp.{name}.s32", -1, 1)[0] == wanted
    assert alu.evaluate("setp.hi.u32", 0xFFFFFFFF, 1)[0]
    assert not alu.evaluate("setp.lt.and.s32", -1, 1, False)[0]
