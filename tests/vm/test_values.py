"""Casts over all codes of all small types, and arithmetic, against definitions written a second time."""

from __future__ import annotations

import math
import operator

import ml_dtypes
import numpy as np
import pytest

from tilus.dtypes import ALL, bf16, boolean, dtype, f16, f32, f64, i8, i32, i64, u3, u8, u32, u64
from tilus.vm.fault import Fault
from tilus.vm.values import apply, cast, decode, dot, encode, from_codes, reduce, show, storage, to_codes

SMALL = [t for t in ALL if t.nbits <= 8]
SOURCES = [*SMALL, f16]


def all_codes(kind) -> np.ndarray:
    return np.arange(kind.num_codes).astype(kind.code_dtype)


def nearest(kind, values: np.ndarray) -> np.ndarray:
    """The codes of the nearest values, by measuring the distance to every value of the type."""
    table = np.asarray(kind.decode(all_codes(kind)), np.float64)
    usable = np.isfinite(table)
    if kind.is_codebook:
        usable &= all_codes(kind) < len(table) - getattr(kind, "spare", 0)
    usable &= ~((table == 0) & np.signbit(table))
    codes = all_codes(kind)[usable]
    distance = np.abs(table[usable][None, :] - values[:, None])
    best = distance == distance.min(axis=1, keepdims=True)
    # Of two equally near: the even code; without a mantissa the larger magnitude, but for zero (IEEE 754: no other
    # significand is even); in a codebook the smaller value.
    order = (
        table[usable]
        if kind.is_codebook
        else np.where(codes, -1.0 * codes, -np.inf)
        if kind.name.endswith("m0")
        else codes % 2
    )
    return codes[np.where(best, order[None, :], np.inf).argmin(axis=1)]


def expected(source, target, codes: np.ndarray) -> np.ndarray:
    values = np.asarray(source.decode(codes))
    if target.is_boolean:
        return (values != 0).astype(np.uint8)
    if target.is_integer and values.dtype.kind in "biu":
        return np.array([int(v) % target.num_codes for v in values], target.code_dtype)
    if target.is_integer:
        clipped = [0 if math.isnan(v) else max(target.min_value, min(target.max_value, v)) for v in values]
        return np.array([math.trunc(v) % target.num_codes for v in clipped], target.code_dtype)
    values = values.astype(np.float64)
    has_inf = getattr(target, "has_inf", False)
    limit = float(target.max_value)
    out = nearest(target, np.clip(np.where(np.isnan(values), limit, values), float(target.min_value), limit))
    if target.is_float and target.is_signed:
        out = np.where(
            np.signbit(values) & ~np.isnan(values) & (target.decode(out) == 0), out | 1 << target.nbits - 1, out
        )
    if has_inf:
        inf = int(target.encode(np.inf))
        # f8e5m2 saturates numbers (PTX, .satfinite), infinity included.
        assert inf == int(target.max_code)
    return out


@pytest.mark.parametrize("target", SMALL, ids=str)
def test_casts(target) -> None:
    """Every code of every type of up to 8 bits, and of f16, to every type of up to 8 bits."""
    for source in SOURCES:
        codes = all_codes(source)
        if source == f16:
            codes = codes[:: 7 if target.nbits > 4 else 1]
        values = np.asarray(source.decode(codes))
        if target.name == "e8m0":
            codes = codes[~(values < 0)]  # has no sign
            values = np.asarray(source.decode(codes))
        if target.name == "t1.6" and source == target:
            codes = codes[codes < 3]
        got = to_codes(target, cast(from_codes(source, codes), source, target))
        want = expected(source, target, codes)
        values = np.asarray(source.decode(codes), np.float64)
        finite = np.isfinite(values)
        same_type = source == target
        if same_type:
            want = (codes != 0).astype(np.uint8) if source.is_boolean else codes
        np.testing.assert_array_equal(got[finite], want[finite], err_msg=f"{source} to {target}")
        check_specials(source, target, values[~finite], got[~finite])


def check_specials(source, target, values: np.ndarray, codes: np.ndarray) -> None:
    back = np.asarray(target.decode(codes), np.float64)
    for value, result in zip(values, back, strict=True):
        if math.isnan(value):
            has_nan = target.name in ("f8e4m3", "f8e5m2", "e8m0")
            zero, one = target.is_integer, target.is_boolean
            assert math.isnan(result) if has_nan else result == (0 if zero else 1 if one else target.max_value)
        elif target.is_boolean:
            assert result == 1
        elif source != target:
            assert result == (target.max_value if value > 0 else target.min_value)


@pytest.mark.parametrize("target", [f16, bf16, f32, f64], ids=str)
def test_small_types_are_exact_in_floats(target) -> None:
    for source in SMALL:
        codes = all_codes(source)
        values = np.asarray(source.decode(codes), np.float64)
        wide = cast(from_codes(source, codes), source, target)
        with np.errstate(all="ignore"):
            fits = values.astype(np.float16 if target == f16 else np.float32) == values
        if target == bf16:  # the upper half of an f32
            fits &= values.astype(np.float32).view(np.uint32) & 0xFFFF == 0
        assert fits.any()
        assert fits.all() or source.nbits == 8 or source.is_codebook or source.exponent_bits >= 5
        np.testing.assert_array_equal(decode(target, wide)[fits], values[fits], err_msg=f"{source} to {target}")


WIDE = [
    (3.7, f32, i32, 3),
    (-3.7, f32, i32, -3),
    (1e20, f32, i32, 2**31 - 1),
    (-1e20, f64, i64, -(2**63)),
    (1e30, f64, u64, 2**64 - 1),
    (-1.0, f32, u8, 0),
    (math.nan, f32, i32, 0),
    (-1, i32, u32, 2**32 - 1),
    (2**31, i64, i32, -(2**31)),
    (2**24 + 1, i32, f32, 2.0**24),
    (2**53 + 1, i64, f64, 2.0**53),
    (1 + 2**-11, f32, f16, 1.0),
    (1 + 3 * 2**-11, f32, f16, 1 + 2**-9),
    (65520.0, f32, f16, math.inf),
    (1 + 2**-8, f32, bf16, 1.0),
    (0.3, f32, boolean, True),
    (True, boolean, f16, 1.0),
    (True, boolean, i8, 1),
]


@pytest.mark.parametrize(("value", "source", "target", "want"), WIDE)
def test_wide_casts(value, source, target, want) -> None:
    got = decode(target, cast(encode(source, np.asarray(value)), source, target))
    assert got == want


INTEGER_OPS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "min": min,
    "max": max,
    "and": operator.and_,
    "xor": operator.xor,
    "or": operator.or_,
    "lt": operator.lt,
    "le": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
}


@pytest.mark.parametrize("kind", [dtype(n) for n in ("i1", "u3", "i4", "i8", "u8")], ids=str)
@pytest.mark.parametrize("op", INTEGER_OPS)
def test_integers(op: str, kind) -> None:
    """All pairs of codes, against Python's integers."""
    a, b = (x.reshape(-1) for x in np.meshgrid(all_codes(kind), all_codes(kind)))
    if op in ("floordiv", "mod"):
        a, b = a[b != 0], b[b != 0]
    got = apply(op, kind, (from_codes(kind, a), from_codes(kind, b)))
    exact = [INTEGER_OPS[op](int(x), int(y)) for x, y in zip(kind.decode(a), kind.decode(b), strict=True)]
    if op in ("lt", "le", "eq", "ne"):
        assert got.dtype == np.bool_
        assert got.tolist() == exact
    else:
        assert to_codes(kind, got).tolist() == [x % kind.num_codes for x in exact]


@pytest.mark.parametrize("kind", [i8, u8, u3, i32, u64, dtype("i5")], ids=str)
def test_shifts_and_unary(kind) -> None:
    codes = all_codes(kind) if kind.nbits <= 8 else np.array([0, 1, 5, 2**31, 2**32 - 1], kind.code_dtype)
    values = [int(v) for v in kind.decode(codes)]
    for amount in range(min(kind.nbits, 7)):
        by = encode(kind, np.full(codes.shape, amount))
        if int(decode(kind, by[:1])[0]) != amount:
            continue  # the type cannot say the amount
        x = from_codes(kind, codes)
        assert to_codes(kind, apply("shl", kind, (x, by))).tolist() == [
            v << amount & kind.num_codes - 1 for v in values
        ]
        assert decode(kind, apply("shr", kind, (x, by))).tolist() == [v >> amount for v in values]
    for op, meaning in (("neg", operator.neg), ("not", operator.invert), ("abs", abs)):
        got = to_codes(kind, apply(op, kind, (from_codes(kind, codes),)))
        assert got.tolist() == [meaning(v) % kind.num_codes for v in values]


@pytest.mark.parametrize(("op", "right"), [("shl", 8), ("shr", -1), ("floordiv", 0), ("mod", 0)])
def test_undefined_arithmetic_is_a_fault(op: str, right: int) -> None:
    message = f"{op} by zero" if right == 0 else f"{op} of i8 by {right} bits"
    with pytest.raises(Fault, match=message):
        apply(op, i8, (encode(i8, np.array([1, 2])), encode(i8, np.array([1, right]))))


def round_to(kind, value: float) -> float:
    return float(kind.decode(kind.encode(np.float64(value))))


FLOAT_OPS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv}


@pytest.mark.parametrize(
    "kind", [dtype(n) for n in ("f16", "bf16", "f32", "f8e4m3", "f6e3m2", "f4e2m1", "tf32")], ids=str
)
@pytest.mark.parametrize("op", FLOAT_OPS)
def test_floats_round_once(op: str, kind) -> None:
    """One correctly rounded operation: Python computes in f64, which rounds operations on so few bits but once."""
    rng = np.random.default_rng(1)
    a, b = (encode(kind, rng.choice([1, 3, 0.1, 17.3], 500) * rng.standard_normal(500)) for _ in range(2))
    keep = decode(kind, b) != 0
    a, b = a[keep], b[keep]
    got = decode(kind, apply(op, kind, (a, b)))
    pairs = zip(decode(kind, a), decode(kind, b), strict=True)
    assert got.tolist() == [round_to(kind, FLOAT_OPS[op](float(x), float(y))) for x, y in pairs]


@pytest.mark.parametrize("kind", [f16, bf16, f32], ids=str)
@pytest.mark.parametrize("op", ["exp", "exp2", "log", "log2", "sqrt", "rsqrt", "sin", "cos", "tanh", "erf"])
def test_functions_round_once(op: str, kind) -> None:
    """Against Python's `math`, which is right to a unit in the last place of f64."""
    x = encode(kind, np.linspace(0.1, 5, 50))
    meaning = {
        "exp2": lambda v: 2.0**v,
        "rsqrt": lambda v: 1 / math.sqrt(v),
    }.get(op) or getattr(math, op)
    got = decode(kind, apply(op, kind, (x,)))
    want = [meaning(float(v)) for v in decode(kind, x)]
    assert got.tolist() == [round_to(kind, v) for v in want]


def test_special_values() -> None:
    def f(op, *values):
        return float(decode(f16, apply(op, f16, tuple(encode(f16, np.asarray(v)) for v in values))))

    assert f("add", 65504.0, 65504.0) == math.inf
    assert math.isnan(f("sub", math.inf, math.inf))
    assert f("div", 1.0, 0.0) == math.inf
    assert math.isnan(f("min", 1.0, math.nan))
    assert [f("round", v) for v in (0.5, 1.5, -2.5)] == [0, 2, -2]
    assert [f("floor", -0.5), f("ceil", 0.5), f("abs", -3.0), f("neg", 3.0)] == [-1, 1, 3, -3]
    where = apply(
        "where", f16, (np.array([True, False]), encode(f16, np.array([1.0, 2.0])), encode(f16, np.asarray(9.0)))
    )
    assert where.tolist() == [1.0, 9.0]


@pytest.mark.parametrize("kind", ALL, ids=str)
def test_codes_and_back(kind) -> None:
    codes = np.arange(min(kind.num_codes, 1000)).astype(kind.code_dtype).reshape(-1, 1)
    if kind.is_boolean:
        codes = codes[:2]
    x = from_codes(kind, codes)
    assert x.dtype == storage(kind)
    np.testing.assert_array_equal(to_codes(kind, x), codes)


def test_storage_is_native_where_numpy_computes() -> None:
    assert [storage(k) for k in (f16, bf16, i8, u64, boolean, u3, dtype("f8e4m3"))] == [
        np.dtype(np.float16),
        np.dtype(ml_dtypes.bfloat16),
        np.dtype(np.int8),
        np.dtype(np.uint64),
        np.dtype(np.bool_),
        np.dtype(np.uint8),
        np.dtype(np.uint8),
    ]


def test_reduce() -> None:
    x = np.array([[100, 100, -3], [1, 2, 3]], np.int8)
    assert reduce("sum", i8, x, 1, False).tolist() == [-59, 6]  # 197 wraps
    assert reduce("max", i8, x, 0, True).tolist() == [[100, 100, 3]]
    assert reduce("min", i8, x, 1, True).tolist() == [[-3], [1]]
    ones = np.full(4096, 1, np.float16)
    assert reduce("sum", f16, ones, 0, False) == 4096  # rounded once: adding up in f16 would stop at 2048
    assert reduce("sum", u3, np.array([7, 7], np.uint8), 0, False) == 6


def test_dot_is_exact_up_to_one_rounding() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 700)).astype(np.float16), rng.standard_normal((700, 3)).astype(np.float16)
    c = rng.standard_normal((5, 3)).astype(np.float32)
    want = [
        [
            np.float32(math.fsum([float(c[i, j]), *(float(x) * float(y) for x, y in zip(a[i], b[:, j], strict=True))]))
            for j in range(3)
        ]
        for i in range(5)
    ]
    assert dot(a, b, c, f16, f32).tolist() == want


def test_integer_dot_wraps() -> None:
    a, b, c = np.full((1, 4), -128, np.int8), np.full((4, 1), -128, np.int8), np.full((1, 1), 2**31 - 1, np.int32)
    assert int(dot(a, b, c, i8, i32)[0, 0]) == (2**31 - 1 + 4 * 128 * 128) - 2**32
    big = np.full((1, 2), 2**62, np.int64)
    assert int(dot(big, big.T, np.zeros((1, 1), np.int64), i64, i64)[0, 0]) == 0
    with pytest.raises(Fault, match="dot of f16 cannot accumulate in i32"):
        dot(np.ones((1, 1), np.float16), np.ones((1, 1), np.float16), np.ones((1, 1), np.int32), f16, i32)


def test_show() -> None:
    assert show(f32, np.asarray(np.float32(0.1))) == "0.1"
    assert show(f16, np.array([1.5, np.inf, 1e4], np.float16)) == "[1.5, inf, 10000]"
    assert show(boolean, np.array([True, False])) == "[1, 0]"
    assert show(u3, np.array([[7], [0]], np.uint8)) == "[7, 0]"
