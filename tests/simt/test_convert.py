"""`cvt` in full: against fractions, and against `ml_dtypes` wherever it has the type."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest

from tests.simt import exact
from tilus.simt import alu

WORDS = exact.samples(32, 600)
NARROW = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "e3m2": ml_dtypes.float6_e3m2fn,
          "e2m3": ml_dtypes.float6_e2m3fn, "e2m1": ml_dtypes.float4_e2m1fn}  # fmt: skip


def near(form: str) -> np.ndarray:
    """Return f32 words around what a format can hold: its values, midpoints, and their neighbours."""
    e, m, _ = exact.FORMS[form]
    codes = np.arange(1 << (e + m)) if e + m < 12 else np.linspace(0, (1 << e + m) - 1, 80).astype(int)
    values = [exact.decode(int(c), form) for c in codes]
    values = [float(v) for v in values if math.isfinite(v)]
    middles = [(a + b) / 2 for a, b in pairwise(values)]
    base = np.array([*values, *middles], np.float32).view(np.uint32)
    words = np.concatenate([base, base + 1, np.maximum(base, 1) - 1])
    return np.concatenate([words, words | np.uint32(0x80000000), WORDS[:150]])


@pytest.mark.parametrize("rounding", ["rn", "rz", "rna"])
@pytest.mark.parametrize("form", ["f16", "bf16", "tf32"])
def test_f32_to_narrower(form, rounding):
    if rounding == "rna" and form != "tf32":
        rounding = "rn"
    words = near(form)
    shift = 13 if form == "tf32" else 0
    for satfinite in (False, True):
        text = f"cvt.{rounding}{'.satfinite' * satfinite}.{form}.f32"
        for word, got in zip(words, alu.evaluate(text, words), strict=True):
            wanted = exact.encode(exact.decode(int(word), "f32"), form, rounding, satfinite)
            assert int(got) == wanted << shift, hex(word)


@pytest.mark.parametrize("rounding", ["rm", "rp"])
def test_directed_rounding_to_f16(rounding):
    words = near("f16")
    for word, got in zip(words, alu.evaluate(f"cvt.{rounding}.f16.f32", words), strict=True):
        assert int(got) == exact.encode(exact.decode(int(word), "f32"), "f16", rounding)


@pytest.mark.parametrize("form", NARROW)
def test_pairs_of_narrow_floats(form):
    words = near(form)
    high, low = words, np.roll(words, 7)
    packed = alu.evaluate(f"cvt.rn.satfinite.{form}x2.f32", high, low)
    width = 4 if form == "e2m1" else 8
    for h, lo, got in zip(high, low, packed, strict=True):
        parts = [exact.encode(exact.decode(int(x), "f32"), form, "rn", True) for x in (h, lo)]
        assert int(got) == parts[0] << width | parts[1]
    back(form, width)


def back(form: str, width: int) -> None:
    """Every code, through ml_dtypes."""
    codes = np.arange(1 << (1 + sum(exact.FORMS[form][:2])), dtype=np.uint8)
    pairs = codes.astype(np.uint16) << width | codes[::-1]
    words = pairs.astype(np.uint8) if width == 4 else pairs
    found = alu.evaluate(f"cvt.rn.f16x2.{form}x2", words)
    wanted = codes.view(NARROW[form]).astype(np.float16)
    halves = found.view(np.uint16).reshape(-1, 2).view(np.float16)
    np.testing.assert_array_equal(halves[:, 1], wanted)
    np.testing.assert_array_equal(halves[:, 0], wanted[::-1])


def test_packed_halves():
    high, low = WORDS, np.roll(WORDS, 3)
    for form, dtype in (("f16", np.float16), ("bf16", ml_dtypes.bfloat16)):
        found = (
            alu.evaluate(f"cvt.rn.{form}x2.f32", high, low)
            .view(np.uint16)
            .reshape(-1, 2)
            .view(dtype)
            .astype(np.float32)
        )
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(found[:, 1], high.view(np.float32).astype(dtype).astype(np.float32))
            np.testing.assert_array_equal(found[:, 0], low.view(np.float32).astype(dtype).astype(np.float32))
    relu = alu.evaluate("cvt.rn.relu.f16x2.f32", np.uint32(0xBF800000), np.uint32(0x3F800000))
    assert relu == 0x00003C00


def test_widening_is_exact():
    codes = np.arange(1 << 16, dtype=np.uint16)
    for form, dtype in (("f16", np.float16), ("bf16", ml_dtypes.bfloat16)):
        found = alu.evaluate(f"cvt.f32.{form}", codes).view(np.float32)
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(found, codes.view(dtype).astype(np.float32))
    doubles = alu.evaluate("cvt.f64.f32", WORDS).view(np.float64)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(doubles, WORDS.view(np.float32).astype(np.float64))
    scales = alu.evaluate("cvt.rn.bf16x2.ue8m0x2", np.uint16(0x7F80))
    assert scales == 0x3F804000


@pytest.mark.parametrize("rounding", ["rni", "rzi", "rmi", "rpi"])
@pytest.mark.parametrize("target", ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"])
def test_float_to_integer(target, rounding):
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(size=200) * 10.0 ** rng.integers(0, 20, 200), np.arange(-10, 10) / 4])
    words = np.concatenate([values.astype(np.float32).view(np.uint32), WORDS[:200]])
    nbits, signed = int(target[1:]), target[0] == "s"
    low, high = (-(1 << nbits - 1), (1 << nbits - 1) - 1) if signed else (0, (1 << nbits) - 1)
    for word, got in zip(words, alu.evaluate(f"cvt.{rounding}.{target}.f32", words), strict=True):
        x = exact.decode(int(word), "f32")
        if exact.is_nan(x):
            continue
        wanted = (high if x > 0 else low) if x in (math.inf, -math.inf) else exact.integer(Fraction(x), rounding[:2])
        assert int(got) == max(low, min(high, wanted)) % (1 << nbits), x


def test_nan_to_integer():
    nan = np.uint32(0x7FC00000)
    assert alu.evaluate("cvt.rzi.s32.f32", nan) == 0
    assert alu.evaluate("cvt.rzi.s64.f32", nan) == 1 << 63


@pytest.mark.parametrize("rounding", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("source", ["u8", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("target", ["f16", "bf16", "f32", "f64"])
def test_integer_to_float(target, source, rounding):
    if target == "f64" and rounding != "rn":
        return
    nbits = int(source[1:])
    words = exact.samples(nbits, 200) if nbits > 8 else np.arange(256, dtype=np.uint8)
    for word, got in zip(words, alu.evaluate(f"cvt.{rounding}.{target}.{source}", words), strict=True):
        x = int(word) - (int(word) >> nbits - 1 << nbits) if source[0] == "s" else int(word)
        assert int(got) == exact.encode(Fraction(x), target, rounding), x


def test_integers():
    assert alu.evaluate("cvt.s64.s32", 0xFFFFFFFF) == 2**64 - 1
    assert alu.evaluate("cvt.u64.u32", 0xFFFFFFFF) == 0xFFFFFFFF
    assert alu.evaluate("cvt.u32.u64", (1 << 40) + 5) == 5
    assert alu.evaluate("cvt.sat.s8.s32", 300) == 127
    assert alu.evaluate("cvt.sat.u8.s32", -5) == 0
    assert alu.evaluate("cvt.s32.s8", 0x80) == 0xFFFFFF80
    assert alu.evaluate("cvt.pack.sat.s8.s32.b32", 300, -300, 0x1234) == 0x12347F80
    assert alu.evaluate("cvt.pack.sat.u16.s32", -1, 70000) == 0x0000FFFF
    assert alu.evaluate("cvt.pack.sat.u4.s32.b32", 99, 3, 0x12) == 0x12F3
    assert alu.evaluate("cvt.pack.sat.s2.s32.b32", -9, 1, 0x1) == 0x19


def test_rounding_to_whole_floats():
    for mode, wanted in (("rni", 2.0), ("rzi", 2.0), ("rmi", 2.0), ("rpi", 3.0)):
        got = alu.evaluate(f"cvt.{mode}.f32.f32", np.float32(2.5).view(np.uint32))
        assert got.view(np.float32) == wanted
    assert alu.evaluate("cvt.sat.f32.f32", np.float32(1.5).view(np.uint32)).view(np.float32) == 1
    assert alu.evaluate("cvt.ftz.f32.f32", np.uint32(0x80000001)) == 0x80000000
