"""Float instructions against fractions: every rounding, flushes, saturation, special values, packed pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.simt import exact
from tilus.errors import VMError
from tilus.simt import alu

COUNT = 150


def operands(kind: str, number: int) -> list[np.ndarray]:
    """Return random codes; half of them of like magnitude, so that sums cancel."""
    nbits = 32 if kind == "f32" else 16
    found = [exact.samples(nbits, COUNT, seed) for seed in range(number)]
    e, m, _ = exact.FORMS[kind]
    rng = np.random.default_rng(number)
    near = [
        (rng.integers(0, 1 << (m + 2), COUNT) + (((1 << (e - 1)) - 2) << m)).astype(f"u{nbits // 8}") for _ in found
    ]
    signs = [rng.integers(0, 2, COUNT).astype(f"u{nbits // 8}") << (nbits - 1) for _ in found]
    return [np.concatenate([a, b ^ s]) for a, b, s in zip(found, near, signs, strict=True)]


@pytest.mark.parametrize("rounding", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("op", ["add", "sub", "mul", "fma"])
def test_f32_arithmetic(op, rounding):
    words = operands("f32", 3 if op == "fma" else 2)
    found = alu.evaluate(f"{op}.{rounding}.f32", *words)
    for row, got in zip(zip(*words, strict=True), found, strict=True):
        values = [exact.decode(int(w), "f32") for w in row]
        wanted = exact.encode(exact.arithmetic(op, *values, rounding=rounding), "f32", rounding)
        assert int(got) == wanted, (row, values)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("op", ["add", "sub", "mul", "fma"])
def test_half_arithmetic(op, kind):
    words = operands(kind, 3 if op == "fma" else 2)
    text = f"{op}.rn.{kind}"
    found = alu.evaluate(text, *words)
    for row, got in zip(zip(*words, strict=True), found, strict=True):
        values = [exact.decode(int(w), kind) for w in row]
        assert int(got) == exact.encode(exact.arithmetic(op, *values), kind), (row, values)
    pairs = [w[: len(w) // 2 * 2].view(np.uint32) for w in words]
    packed = alu.evaluate(f"{text}x2", *pairs).view(np.uint16)
    np.testing.assert_array_equal(packed, found[: len(packed)])


def test_flushing_and_saturation():
    tiny, one, two = np.uint32(0x00000001), np.uint32(0x3F800000), np.uint32(0x40000000)
    assert alu.evaluate("add.ftz.f32", tiny, tiny) == 0
    assert alu.evaluate("add.f32", tiny, tiny) == 2
    assert alu.evaluate("mul.ftz.f32", np.uint32(0x80000001), one) == 0x80000000
    assert alu.evaluate("mul.ftz.f32", np.uint32(0x00800000), np.uint32(0x3F000000)) == 0  # the result is flushed
    assert alu.evaluate("add.sat.f32", one, two) == one
    assert alu.evaluate("add.sat.f32", np.uint32(0x7FC00000), two) == 0
    assert alu.evaluate("fma.rn.sat.f32", one, two, np.uint32(0xC0400000)) == 0
    assert alu.evaluate("fma.rn.relu.f16", np.uint16(0xBC00), np.uint16(0x3C00), np.uint16(0)) == 0


@pytest.mark.parametrize("rounding", ["rn", "rz", "rm", "rp"])
def test_division_and_roots(rounding):
    a, b = operands("f32", 2)
    quotients = alu.evaluate(f"div.{rounding}.f32", a, b)
    roots = alu.evaluate(f"sqrt.{rounding}.f32", a)
    reciprocals = alu.evaluate(f"rcp.{rounding}.f32", b)
    for x, y, q, r, s in zip(a, b, quotients, reciprocals, roots, strict=True):
        u, v = exact.decode(int(x), "f32"), exact.decode(int(y), "f32")
        if not isinstance(u, float) and not isinstance(v, float) and u and v:
            assert int(q) == exact.encode(u / v, "f32", rounding), (u, v)
            assert int(r) == exact.encode(1 / v, "f32", rounding), v
        if not isinstance(u, float) and u > 0:
            check_root(u, exact.decode(int(s), "f32"), rounding)


def check_root(x, root, rounding):
    """The square of the root, and of its neighbours, lie on the right sides of x."""
    unit = math.ulp(1.0) * 2**29 * 2.0 ** math.floor(math.log2(root))
    up, down = root + exact.Fraction(unit), root - exact.Fraction(unit)
    if rounding in ("rz", "rm"):
        assert root**2 <= x < up**2
    elif rounding == "rp":
        assert down**2 < x <= root**2
    else:
        assert ((root + down) / 2) ** 2 <= x <= ((root + up) / 2) ** 2


def test_special_divisions():
    inf, one, zero = 0x7F800000, 0x3F800000, 0
    assert alu.evaluate("div.rn.f32", np.uint32(one), np.uint32(zero)) == inf
    assert alu.evaluate("div.rn.f32", np.uint32(zero), np.uint32(zero)) == 0x7FFFFFFF
    assert alu.evaluate("rcp.rn.f32", np.uint32(0x80000000)) == 0xFF800000
    assert alu.evaluate("sqrt.rn.f32", np.uint32(0x80000000)) == 0x80000000
    assert alu.evaluate("sqrt.rn.f32", np.uint32(0xBF800000)) == 0x7FFFFFFF
    assert alu.evaluate("ex2.approx.ftz.f32", np.uint32(0xFF800000)) == 0
    assert alu.evaluate("ex2.approx.f32", np.uint32(0x40400000)) == 0x41000000
    assert alu.evaluate("lg2.approx.f32", np.uint32(0x41000000)) == 0x40400000


@pytest.mark.parametrize("rounding", ["rn", "rz", "rm", "rp"])
def test_double(rounding):
    a, b, c = (exact.samples(64, 60, seed) for seed in range(3))
    found = alu.evaluate(f"fma.{rounding}.f64", a, b, c)
    for row, got in zip(zip(a, b, c, strict=True), found, strict=True):
        values = [exact.decode(int(w), "f64") for w in row]
        wanted = exact.arithmetic("fma", *values, rounding=rounding)
        if exact.is_nan(wanted):
            assert np.isnan(got.view(np.float64))
        else:
            assert int(got) == exact.encode(wanted, "f64", rounding), values


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("propagate", [False, True])
@pytest.mark.parametrize("op", ["min", "max"])
def test_min_max(op, propagate, kind):
    a, b = operands(kind, 2)
    found = alu.evaluate(f"{op}{'.NaN' * propagate}.{kind}", a, b)
    for x, y, got in zip(a, b, found, strict=True):
        u, v = exact.decode(int(x), kind), exact.decode(int(y), kind)
        if exact.is_nan(u) or exact.is_nan(v):
            both = exact.is_nan(u) and exact.is_nan(v)
            wanted = exact.NAN[kind] if both or propagate else int(y) if exact.is_nan(u) else int(x)
        else:
            order = sorted([(u, math.copysign(1, float(u)), int(x)), (v, math.copysign(1, float(v)), int(y))])
            wanted = order[0 if op == "min" else 1][2]
        assert int(got) == wanted, (u, v)


def test_comparisons_with_nan():
    nan, one = np.uint32(0x7FC00000), np.uint32(0x3F800000)
    for name, ordered in (("eq", False), ("ne", False), ("ltu", True), ("neu", True), ("geu", True), ("num", False)):
        assert alu.evaluate(f"setp.{name}.f32", nan, one)[0] == ordered
    assert alu.evaluate("setp.nan.f32", nan, one)[0]
    assert alu.evaluate("setp.lt.ftz.f32", np.uint32(1), np.uint32(0))[0] == np.False_
    p, q = alu.evaluate("setp.lt.f16x2", np.uint32(0x3C000000), np.uint32(0x00003C00))
    assert (bool(p), bool(q)) == (True, False)
    assert alu.evaluate("set.gt.u32.f32", np.uint32(0x40000000), one) == 0xFFFFFFFF
    assert alu.evaluate("set.gt.f32.f32", np.uint32(0x40000000), one) == 0x3F800000


def test_unknown_forms_are_errors():
    for text in ("fma.rn.oob.f16", "add.f8", "frobnicate.b32", "ex2.f32", "setp.lo.f32", "mul.lo.weird.s32"):
        with pytest.raises(VMError, match="does not know"):
            alu.operation(text)


@pytest.mark.parametrize("rounding", ["rn", "rz", "rm", "rp"])
def test_divisions_of_f64_at_the_limits(rounding):
    a = np.array([1, 1, 1, -1, 0, np.inf, np.inf, -0.0])
    b = np.array([np.inf, 0, -0.0, 0, 0, 2, np.inf, 2])
    with np.errstate(all="ignore"):
        wanted = a / b
    found = alu.evaluate(f"div.{rounding}.f64", a.view(np.uint64), b.view(np.uint64)).view(np.float64)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(np.signbit(found[:4]), np.signbit(wanted[:4]))
