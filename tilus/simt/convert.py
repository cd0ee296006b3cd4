"""The `cvt` instruction in full (PTX ISA, "Data movement and conversion instructions: cvt", "cvt.pack")."""

from __future__ import annotations

import numpy as np

from tilus.simt.floats import flush, integral
from tilus.simt.formats import FORMATS, TF32, Array, Format, decode, encode
from tilus.simt.integers import saturate
from tilus.simt.opcode import Opcode, Operation, family, view_type
from tilus.simt.syntax import BYTES

_SMALL = ("e4m3x2", "e5m2x2", "e2m3x2", "e3m2x2", "e2m1x2", "ue8m0x2")
_PAIRS = ("f16x2", "bf16x2", *_SMALL)
_FLOATS = ("f16", "bf16", "tf32", "f32", "f64", *_PAIRS)
_ROUNDINGS = ("rni", "rzi", "rmi", "rpi", "rna", "rn", "rz", "rm", "rp")


def _container(kind: str) -> str:
    """Return the type of the register that holds a type, which for pairs of narrow floats is an integer's."""
    return {"tf32": "b32", "f16x2": "b32", "bf16x2": "b32", "e2m1x2": "b8"}.get(kind, "b16" if kind in _SMALL else kind)


def _kind(op: Opcode) -> str:
    name = op.rest.pop() if op.rest else ""
    if name not in _FLOATS and name not in BYTES:
        raise op.unknown(f"no type .{name}")
    return name


@family("cvt")
def _convert(op: Opcode) -> Operation:
    source, target = _kind(op), _kind(op)
    if op.take("pack"):
        return _pack(op, target)
    rounding = op.choose(*_ROUNDINGS)
    if target in _PAIRS:
        return _to_pair(op, source, target, rounding or "rn")
    if target in _FLOATS:
        return _to_float(op, source, target, rounding)
    return _to_integer(op, source, target, rounding)


def _read(words: Array, kind: str, flushes: bool) -> Array:
    values = decode(words.view(f"u{words.dtype.itemsize}"), FORMATS[kind])
    return flush(values, FORMATS[kind]) if flushes else values


def _to_integer(op: Opcode, source: str, target: str, rounding: str) -> Operation:
    sat, flushes = op.take("sat"), op.take("ftz")
    dtype = view_type(target)
    if source not in _FLOATS:
        if not sat:
            return Operation((target,), (source,), lambda a: a.astype(dtype))
        return Operation((target,), (source,), lambda a: saturate(a.astype(object), target))
    if not rounding.endswith("i"):
        raise op.unknown("a float is rounded to an integer by .rni, .rzi, .rmi or .rpi")
    info = np.iinfo(dtype)

    def function(a: Array) -> Array:
        values = integral(_read(a, source, flushes), rounding)
        beyond, below = values >= 2.0 ** (info.bits - (info.min < 0)), values < float(info.min)
        found = np.where(beyond | below | np.isnan(values), 0.0, values).astype(dtype)
        found = np.where(beyond, dtype.type(info.max), np.where(below, dtype.type(info.min), found))
        # NaN is 0, but the largest bit alone where 64 bits come from a float of 32 or 64.
        return np.where(np.isnan(values), _integer_of_nan(source, target), found)

    return Operation((target,), (source,), function)


def _integer_of_nan(source: str, target: str) -> Array:
    wide = BYTES[source] == 8 or BYTES[target] == 8
    return np.array(1 << (8 * BYTES[target] - 1) if wide else 0, f"u{BYTES[target]}").view(view_type(target))


def _to_float(op: Opcode, source: str, target: str, rounding: str) -> Operation:
    sat, relu, satfinite = op.take("sat"), op.take("relu"), op.take("satfinite")
    flushes = op.take("ftz")
    whole = rounding.endswith("i")
    form = FORMATS[target]
    from_integer = source not in _FLOATS

    def function(a: Array) -> Array:
        if from_integer:
            return encode(_integer_to_odd(a, target), form, rounding or "rn")
        values = _read(a, source, flushes)
        values = integral(values, rounding) if whole else values
        if sat:
            values = np.where(values > 0, np.minimum(values, 1.0), 0.0)
        if relu:
            values = np.where(values > 0, values, np.where(np.isnan(values), values, 0.0))
        codes = encode(values, form, "rn" if whole or not rounding else rounding, satfinite=satfinite)
        if target == "f32" and flushes:
            codes = encode(flush(decode(codes, form)), form)
        return codes

    container = _container(target)
    return Operation((container,), (source,), function)


def _integer_to_odd(a: Array, target: str) -> Array:
    """Return integers as float64, rounded to odd; for `f64` itself, to nearest."""
    if a.dtype.itemsize < 8 or target == "f64":
        return a.astype(np.float64)
    size = np.abs(a).view(np.uint64) if a.dtype.kind == "i" else a
    low = size & np.uint64((1 << 11) - 1)
    odd = (size - low) | np.where(low != 0, np.uint64(1 << 11), np.uint64(0))
    return np.where(a < 0, -1.0, 1.0) * np.where(size < np.uint64(1 << 53), size, odd).astype(np.float64)


def _to_pair(op: Opcode, source: str, target: str, rounding: str) -> Operation:
    """Two floats into a pair, the first operand above the second; or a pair of narrow floats into a wider pair."""
    satfinite, relu = op.take("satfinite"), op.take("relu")
    form = FORMATS[target[:-2]]

    def join(high: Array, low: Array) -> Array:
        codes = []
        for values in (high, low):
            if relu:
                values = np.where(values > 0, values, np.where(np.isnan(values), values, 0.0))
            codes.append(encode(values, form, rounding, satfinite=satfinite).astype(np.uint32))
        return codes[0] << np.uint32(_width(form)) | codes[1]

    if source in _PAIRS:
        narrow = FORMATS[source[:-2]]
        return Operation((_container(target),), (_container(source),), lambda a: join(*_halves(a, narrow)))
    return Operation(
        (_container(target),), (source, source), lambda a, b: join(_read(a, source, False), _read(b, source, False))
    )


def _width(form: Format) -> int:
    return 4 if form.name == "e2m1" else form.container


def _halves(word: Array, form: Format) -> tuple[Array, Array]:
    nbits = _width(form)
    mask = (1 << nbits) - 1
    bits = word.astype(np.uint32)
    parts = [(bits >> np.uint32(at) & np.uint32(mask)).astype(form.word) for at in (nbits, 0)]
    return decode(parts[0], form), decode(parts[1], form)


def _pack(op: Opcode, target: str) -> Operation:
    """`cvt.pack.sat.convertType.abType[.cType]`: saturate two integers and put them below what `c` holds."""
    with_rest = op.rest[-1:] != ["sat"]
    if with_rest:  # three types: the last is that of `c`
        target = op.rest.pop()
    if not op.take("sat"):
        raise op.unknown("cvt.pack saturates")
    nbits = int(target[1:]) if target[1:].isdigit() else 0
    if target[0] not in "us" or nbits not in (2, 4, 8, 16) or (nbits == 16) == with_rest:
        raise op.unknown(f"cvt.pack does not make .{target}")
    low, high = (0, (1 << nbits) - 1) if target[0] == "u" else (-1 << nbits - 1, (1 << nbits - 1) - 1)
    mask = np.uint32((1 << nbits) - 1)

    def function(a: Array, b: Array, c: Array | None = None) -> Array:
        first, second = (np.clip(x.astype(np.int64), low, high).astype(np.uint32) & mask for x in (a, b))
        both = first << np.uint32(nbits) | second
        return both if c is None else both | c << np.uint32(2 * nbits)

    return Operation(("b32",), ("s32", "s32", *(["b32"] if with_rest else [])), function)


assert TF32.shift == 13, "a tf32 lies in the upper bits of its register"
