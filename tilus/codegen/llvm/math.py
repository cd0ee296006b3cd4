"""Transcendental functions: `exp` and `exp2` on vectors here, the others by the C library, lane by lane."""

from __future__ import annotations

from math import factorial, log

from tilus.codegen.llvm.builder import Builder, Value, constant, lanes_of, vector

# ln 2 in two parts: the first has few enough bits that n * HIGH is exact for every exponent n (Cody and Waite).
_LN2_HIGH = 0.693359375
_LN2_LOW = log(2) - _LN2_HIGH


def exp2(b: Builder, x: Value, *, natural: bool) -> Value:
    """Return e^x (or 2^x) of f32 within 2 ulp: 2^n by exponent bits, e^r by a Taylor polynomial on |r| <= ln(2) / 2.

    Doubles go to the C library. Overflow gives infinity, underflow below the normal range 0, NaN stays.
    """
    lanes, element = lanes_of(x.type)
    if element == "double":
        return library(b, "exp" if natural else "exp2", x)
    low, high = (-87.33654, 88.72283) if natural else (-126.0, 128.0)
    n = b.call(x.type, "rint", b.op("fmul", x, 1 / log(2)) if natural else x)
    if natural:
        r = _fma(b, n, constant(x.type, -_LN2_HIGH), x)
        r = _fma(b, n, constant(x.type, -_LN2_LOW), r)
    else:
        r = b.op("fmul", b.op("fsub", x, n), log(2))
    power = constant(x.type, 1 / factorial(7))
    for degree in range(6, -1, -1):
        power = _fma(b, power, r, constant(x.type, 1 / factorial(degree)))
    # 2^n in two factors, so that n = 128 does not leave the exponent field.
    whole = b.call(vector(lanes, "i32"), f"llvm.fptosi.sat.{_suffix(lanes)}i32.{_suffix(lanes)}f32", n, intrinsic=False)
    half = b.op("ashr", whole, 1)
    result = b.op(
        "fmul", b.op("fmul", power, _power_of_two(b, half, x.type)), _power_of_two(b, b.op("sub", whole, half), x.type)
    )
    result = b.select(b.compare("fcmp olt", x, low), constant(x.type, 0.0), result)
    result = b.select(b.compare("fcmp ogt", x, high), constant(x.type, float("inf")), result)
    return b.select(b.compare("fcmp uno", x, x), x, result)


def _suffix(lanes: int) -> str:
    return f"v{lanes}" if lanes else ""


def _fma(b: Builder, x: Value, y: Value, z: Value) -> Value:
    return b.call(x.type, "fma", x, y, z)


def _power_of_two(b: Builder, n: Value, type_: str) -> Value:
    return b.convert("bitcast", b.op("shl", b.op("add", n, 127), 23), type_)


def library(b: Builder, name: str, x: Value) -> Value:
    """Call a function of the C library on every lane; float variants end in f."""
    lanes, element = lanes_of(x.type)
    name = name if element == "double" else name + "f"
    if not lanes:
        return b.call(element, name, x, intrinsic=False)
    out = Value(x.type, "poison")
    for lane in range(lanes):
        out = b.insert(out, b.call(element, name, b.extract(x, lane), intrinsic=False), lane)
    return out
