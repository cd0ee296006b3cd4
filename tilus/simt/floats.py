"""Floating-point instructions (PTX ISA, "Floating-point", "Half precision" and "Mixed precision" instructions).

All but those of `f64` compute in float64: exactly, or rounded to odd, and round once to the type. Approximations
(`ex2.approx`, `rcp.approx`, ...) are rounded from float64 too; the hardware's differ from these within the bounds
that the manual documents.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from tilus.errors import VMError
from tilus.simt import integers
from tilus.simt.formats import BF16, F16, F32, F64, INTEGRAL, Array, Format, add_to_odd, decode, encode
from tilus.simt.opcode import Opcode, Operation, family

_FORMS = {"f16": F16, "f16x2": F16, "bf16": BF16, "bf16x2": BF16, "f32": F32, "f64": F64, "f32x2": F32}
_PACKED = {"f16x2": np.uint16, "bf16x2": np.uint16, "f32x2": np.uint32}
ROUNDINGS = ("rn", "rz", "rm", "rp")


def is_float(opcode: Opcode) -> bool:
    """Return whether an instruction's last type is a float."""
    return bool(opcode.rest) and opcode.rest[-1] in _FORMS


def elements(word: Array, kind: str) -> Array:
    """Return the codes in a word: itself, or its two halves along a new last axis."""
    word = word.view(f"u{word.dtype.itemsize}")
    if kind not in _PACKED:
        return word
    return np.ascontiguousarray(word)[..., None].view(_PACKED[kind])


def whole(codes: Array, kind: str) -> Array:
    """Return codes as words again."""
    if kind not in _PACKED:
        return codes
    codes = np.ascontiguousarray(codes)
    return codes.view(f"u{2 * codes.dtype.itemsize}")[..., 0]


def flush(values: Array, form: Format = F32) -> Array:
    """Return values with subnormal ones replaced by zeros of their sign."""
    return np.where(np.abs(values) < 2.0 ** (1 - form.bias), np.copysign(0.0, values), values)


Compute = Callable[..., Any]


def _rounded(op: Opcode, kind: str, count: int, compute: Compute, rounding: str = "rn") -> Operation:
    """Wrap a function of exact float64 values: decode, flush, compute, saturate, round."""
    form = _FORMS[kind]
    flushes, sat, relu = op.take("ftz"), op.take("sat"), op.take("relu")

    def function(*words: Array) -> Array:
        values = [decode(elements(w, kind), form) for w in words]
        if flushes:
            values = [flush(v, form) for v in values]
        result = compute(*values)
        if sat:
            result = np.where(result > 0, np.minimum(result, 1.0), 0.0)  # NaN becomes +0
        if relu:
            result = np.where(result > 0, result, np.where(np.isnan(result), result, 0.0))
        codes = encode(result, form, rounding)
        if flushes:
            codes = np.where(np.abs(decode(codes, form)) < 2.0 ** (1 - form.bias), codes & _sign(form), codes)
        return whole(codes, kind)

    return Operation((kind,), (kind,) * count, function)


def _sign(form: Format) -> Any:
    return form.word.type(1 << (form.container - 1))


def _sum(rounding: str) -> Compute:
    if rounding != "rm":
        return add_to_odd

    def down(a: Array, b: Array) -> Array:  # a sum that cancels to zero is -0 when rounding down
        total = add_to_odd(a, b)
        return np.where((total == 0) & (np.signbit(a) | np.signbit(b)), -0.0, total)

    return down


@family("add", "sub", "addc", "subc")
def _add(op: Opcode) -> Operation:
    if not is_float(op):
        return integers.add_sub(op)
    kind, rounding = op.type(), op.choose(*ROUNDINGS, default="rn")
    op.take("noftz")
    if kind == "f64":
        return _double(op, rounding, lambda a, b: a + b if op.root == "add" else a - b, 2)
    if kind == "f32" and not {"sat", "ftz"} & set(op.rest) and rounding == "rn":
        return Operation((kind,), (kind, kind), _single(np.add if op.root == "add" else np.subtract))
    total = _sum(rounding)
    return _rounded(op, kind, 2, total if op.root == "add" else lambda a, b: total(a, -b), rounding)


def _single(function: Compute) -> Compute:
    """Wrap what NumPy computes in float32 with one rounding: only its NaNs are not the canonical one."""

    def compute(*values: Array) -> Array:
        result: Array = function(*values)
        nan = np.isnan(result)
        if nan.any():
            result.view(np.uint32)[nan] = F32.nan
        return result

    return compute


@family("mul", "mad", "madc", "mul24", "mad24")
def _multiply(op: Opcode) -> Operation:
    if not is_float(op):
        return integers.multiply(op)
    if op.root == "mad":
        return _fused(op)
    kind, rounding = op.type(), op.choose(*ROUNDINGS, default="rn")
    op.take("noftz")
    if kind == "f64":
        return _double(op, rounding, lambda a, b: a * b, 2)
    if kind == "f32" and not {"sat", "ftz"} & set(op.rest) and rounding == "rn":
        return Operation((kind,), (kind, kind), _single(np.multiply))
    return _rounded(op, kind, 2, np.multiply, rounding)


@family("fma")
def _fused(op: Opcode) -> Operation:
    kind, rounding = op.type(), op.choose(*ROUNDINGS, default="rn")
    if kind == "f64":
        return _double(op, rounding, lambda a, b, c: a * b + c, 3)
    total = _sum(rounding)
    if op.take("oob"):
        raise op.unknown("out-of-bounds products")
    return _rounded(op, kind, 3, lambda a, b, c: total(a * b, c), rounding)


def _double(op: Opcode, rounding: str, compute: Compute, count: int) -> Operation:
    """`f64`: NumPy where it rounds once to nearest, else exact fractions."""
    if rounding == "rn" and count == 2:
        return Operation(("f64",), ("f64",) * count, compute)

    def one(*values: float) -> float:
        plain = float(compute(*map(np.float64, values)))
        if not all(np.isfinite(values)):
            return plain
        exact = compute(*map(Fraction, values))
        if isinstance(exact, float):  # a division by zero
            return plain
        if exact == 0:
            return plain if plain == 0 else 0.0
        return _round_fraction(exact, rounding)

    return Operation(("f64",), ("f64",) * count, np.vectorize(one, otypes=[np.float64]))


def _round_fraction(exact: Fraction, rounding: str) -> float:
    """Round to binary64."""
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    last = max(exponent, -1022) - 52
    scaled = exact / Fraction(2) ** last
    floor = scaled.numerator // scaled.denominator
    up = {"rn": round(scaled) > floor, "rm": False, "rp": scaled != floor, "rz": exact < 0 and scaled != floor}
    number = floor + up[rounding]
    if abs(number) * Fraction(2) ** last >= Fraction(2) ** 1024:
        away = rounding == "rn" or (rounding == "rp" and exact > 0) or (rounding == "rm" and exact < 0)
        return float(np.copysign(np.inf if away else np.finfo(np.float64).max, float(exact > 0) - 0.5))
    return float(np.ldexp(float(number), last)) if number else float(np.copysign(0.0, -1.0 if exact < 0 else 1.0))


# --- division and roots -----------------------------------------------------------------------------------------------


def _directed(rounding: str, nearest: Compute, residual: Compute) -> Compute:
    """Return quotients or roots of float32 values, moved off the value nearest to them so that they round as told.

    `residual(y, ...)` has the sign of (exact value - y).
    """

    def compute(*values: Array) -> Array:
        exact = nearest(*values)
        y = exact.astype(np.float32)
        y64 = y.astype(np.float64)
        r = residual(y64, *values)
        # A quarter of a unit in the last place on the right side of y rounds as the exact value does.
        step = np.abs(np.spacing(y)).astype(np.float64) / 4
        side = np.where(np.isfinite(y64) & np.isfinite(r), np.sign(r), 0.0)
        moved = np.where(side == 0, y64, y64 + side * step)
        return np.where(np.isfinite(y64), moved, exact)

    return np.divide if rounding == "" else compute


@family("div")
def _divide(op: Opcode) -> Operation:
    if not is_float(op):
        return integers.divide(op)
    kind, rounding = op.type("f32", "f64"), op.choose("approx", "full", *ROUNDINGS)
    if kind == "f64":
        return _double(op, rounding, _quotient, 2)
    quotient = _directed(rounding, np.divide, lambda y, a, b: (a - y * b) * np.sign(b))
    return _rounded(op, kind, 2, quotient, rounding if rounding in ROUNDINGS else "rn")


def _quotient(a: Any, b: Any) -> Any:
    return np.inf if isinstance(b, Fraction) and b == 0 else a / b


@family("rcp", "sqrt", "rsqrt")
def _root(op: Opcode) -> Operation:
    kind, rounding = op.type("f32", "f64"), op.choose("approx", *ROUNDINGS)
    functions: dict[str, tuple[Compute, Compute]] = {
        "rcp": (lambda a: 1.0 / a, lambda y, a: (1.0 - y * a) * np.sign(a)),
        "sqrt": (np.sqrt, lambda y, a: a - y * y),
        "rsqrt": (lambda a: 1.0 / np.sqrt(a), lambda y, a: 0 * y),
    }
    nearest, residual = functions[op.root]
    if kind == "f64":
        if rounding not in ("rn", "approx"):
            raise op.unknown("directed rounding of f64 roots")
        op.take("ftz")
        return Operation((kind,), (kind,), nearest)
    directed = nearest if rounding == "approx" else _directed(rounding, nearest, residual)
    return _rounded(op, kind, 1, directed, rounding if rounding in ROUNDINGS else "rn")


@family("ex2", "lg2", "sin", "cos", "tanh")
def _transcendental(op: Opcode) -> Operation:
    kind = op.type("f32", "f16", "f16x2", "bf16", "bf16x2")
    if not op.take("approx"):
        raise op.unknown("only .approx exists")
    functions = {"ex2": np.exp2, "lg2": np.log2, "sin": np.sin, "cos": np.cos, "tanh": np.tanh}
    return _rounded(op, kind, 1, functions[op.root])


# --- signs, minima, comparisons ---------------------------------------------------------------------------------------


@family("neg", "abs")
def _sign_only(op: Opcode) -> Operation:
    if not is_float(op):
        return integers.absolute(op)
    kind = op.type()
    form, flushes = _FORMS[kind], op.take("ftz")
    sign = _sign(form)

    def function(a: Array) -> Array:
        codes = elements(a, kind)
        if flushes:
            codes = encode(flush(decode(codes, form), form), form)
        return whole(codes ^ sign if op.root == "neg" else codes & ~sign, kind)

    return Operation((kind,), (kind,), function)


@family("copysign")
def _copysign(op: Opcode) -> Operation:
    kind = op.type("f32", "f64")
    return Operation((kind,), (kind, kind), lambda a, b: np.copysign(b, a))


@family("min", "max")
def _min_max(op: Opcode) -> Operation:
    if not is_float(op):
        return integers.min_max(op)
    kind, propagate = op.type(), op.take("NaN")
    if op.take("xorsign"):
        raise op.unknown("minima that take their sign from both")
    op.take("abs")
    largest = op.root == "max"

    def compute(a: Array, b: Array, *more: Array) -> Array:
        first = (a > b) if largest else (a < b)
        tie = (a == b) & (np.signbit(b) if largest else np.signbit(a))  # -0 is less than +0
        result: Array = np.where(first | tie, a, b)
        result = np.where(np.isnan(b), b if propagate else a, result)
        result = np.where(np.isnan(a), a if propagate else b, result)
        return compute(result, *more) if more else result

    two = _rounded(op, kind, 2, compute)
    return Operation(two.results, (kind,) * 3, two.function, 1) if kind == "f32" else two


_ORDER: dict[str, Compute] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
_UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_UNORDERED = {"equ": "eq", "neu": "ne", "ltu": "lt", "leu": "le", "gtu": "gt", "geu": "ge"}


def _comparison(name: str, floating: bool) -> Compute:
    """Return the comparison with a name; a float's `ne` is false for NaN, and `neu` true."""
    if not floating:
        return _ORDER[_UNSIGNED_NAMES.get(name, name)]

    def compare(a: Array, b: Array) -> Array:
        nan = np.isnan(a) | np.isnan(b)
        if name in ("num", "nan"):
            return nan if name == "nan" else ~nan
        result: Array = _ORDER[_UNORDERED.get(name, name)](a, b)
        return result | nan if name in _UNORDERED else result & ~nan

    return compare


@family("setp", "set")
def _set_predicate(op: Opcode) -> Operation:
    flushes, kind = op.take("ftz"), op.type()
    result = op.type("u32", "s32", "f32", "f16", "bf16", "f16x2", "bf16x2", "u16", "s16") if op.root == "set" else ""
    if result.endswith("x2"):
        raise op.unknown("comparisons into packed numbers")
    combine, name = op.choose("and", "or", "xor"), op.rest.pop(0) if op.rest else ""
    floating = kind in _FORMS
    names = {*_UNORDERED, "num", "nan"} if floating else _UNSIGNED_NAMES.keys()
    if name not in _ORDER.keys() | names:
        raise op.unknown(f"no comparison .{name}")
    compare, form = _comparison(name, floating), _FORMS.get(kind)

    def read(word: Array) -> Array:
        if form is None:
            return word
        values = decode(elements(word, kind), form)
        return flush(values, form) if flushes else values

    def function(a: Array, b: Array, c: Array | None = None) -> tuple[Array, ...]:
        holds = compare(read(a), read(b))
        ordered: list[Array] = [holds, ~holds]
        if c is not None:
            joined = c[..., None] if kind in _PACKED else c
            ordered = [integers.LOGIC[combine](x, joined) for x in ordered]
        if kind in _PACKED:
            return ordered[0][..., 0], ordered[0][..., 1]
        return ordered[0], ordered[1]

    operands = (kind, kind, *(["pred"] if combine else []))
    if op.root == "setp":
        return Operation(("pred", "pred"), operands, function)
    true = {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80}.get(result, -1)
    container = {"f32": "b32", "f16": "b16", "bf16": "b16"}.get(result, result)
    return Operation((container,), operands, lambda *x: np.where(function(*x)[0], true, 0))


@family("testp")
def _test(op: Opcode) -> Operation:
    kind = op.type("f32", "f64")
    least = 2.0 ** (1 - _FORMS[kind].bias)
    tests: dict[str, Compute] = {
        "finite": np.isfinite, "infinite": np.isinf, "number": lambda a: ~np.isnan(a), "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & (np.abs(a) >= least),
        "subnormal": lambda a: (np.abs(a) < least) & (a != 0),
    }  # fmt: skip
    return Operation(("pred",), (kind,), tests[op.choose(*tests)])


def integral(values: Array, rounding: str) -> Array:
    """Return float64 values rounded to integers: `rni`, `rzi`, `rmi` or `rpi`."""
    if rounding[:2] not in INTEGRAL:
        raise VMError(f"no rounding .{rounding}")
    return INTEGRAL[rounding[:2]](values)
