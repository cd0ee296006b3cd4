"""Elements as NumPy holds them, and arithmetic on them.

Integers of whole bytes, the boolean and the common floats are held as themselves, every other type as its codes; either
way the bits are exact, so that `view` can be. A floating-point operation is rounded once to its type.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tilus.dtypes import DataType, Exponent, Float, dtype
from tilus.ir.operators import OPERATORS
from tilus.vm.fault import Fault

Array: TypeAlias = NDArray[Any]

_NATIVE_FLOATS = tuple(dtype(name) for name in ("f16", "bf16", "f32", "f64"))
# NumPy and ml_dtypes compute these in the type itself, or in f32 from f16 and bf16, and then round: f32 has more than
# twice their precision and 2 bits, so that the second rounding changes nothing. All others are computed in f64.
_NATIVE_OPS = ("add", "sub", "mul", "div", "min", "max", "neg", "abs", "lt", "le", "eq", "ne", "floor", "ceil", "round")


@cache
def is_native(kind: DataType) -> bool:
    """Whether NumPy computes with the type itself."""
    return kind.is_boolean or (kind.is_integer and kind.nbits >= 8) or kind in _NATIVE_FLOATS


@cache
def storage(kind: DataType) -> np.dtype[Any]:
    """Return the NumPy type that elements are held in: the type itself, or its codes."""
    native = kind.numpy_dtype
    return native if native is not None and is_native(kind) else kind.code_dtype


def to_codes(kind: DataType, x: Array) -> Array:
    """Return the codes (bits) of elements."""
    codes: Array = np.ascontiguousarray(x).view(kind.code_dtype).reshape(np.shape(x))
    return codes


def from_codes(kind: DataType, codes: Array) -> Array:
    """Return the elements that codes stand for."""
    if kind.is_boolean:
        return np.not_equal(codes, 0)
    exact = np.ascontiguousarray(codes, dtype=kind.code_dtype)
    return np.asarray(exact.view(storage(kind)).reshape(np.shape(codes)))


def decode(kind: DataType, x: Array) -> Array:
    """Return exact values: int64 (uint64 for u64), bool, or float64."""
    if not is_native(kind):
        return np.asarray(kind.decode(x))
    if kind.is_boolean:
        return np.asarray(x)
    if kind.is_integer:
        return np.asarray(x).astype(np.uint64 if kind.nbits == 64 and not kind.is_signed else np.int64)
    return np.asarray(x).astype(np.float64)


def encode(kind: DataType, values: Array | float) -> Array:
    """Return the nearest elements; NaN becomes the greatest value where the type has none, and 0 in an integer."""
    values = np.asarray(values)
    if values.dtype.kind == "f" and not _has_nan(kind) and np.isnan(values).any():
        values = np.where(np.isnan(values), 0 if kind.is_integer else kind.max_value, values)
    return from_codes(kind, np.asarray(kind.encode(values)))


def _has_nan(kind: DataType) -> bool:
    return (kind.has_nan if isinstance(kind, Float) else isinstance(kind, Exponent)) or kind.is_boolean


def wrap(kind: DataType, values: Array) -> Array:
    """Return the integers that the low bits of integers are."""
    low = np.asarray(values).astype(np.uint64) & np.uint64(kind.num_codes - 1)
    return from_codes(kind, low.astype(kind.code_dtype))


def cast(x: Array, source: DataType, target: DataType) -> Array:
    """Convert elements, as the instruction `cast` says.

    To a float: nearest even, saturating where the type has no infinity. Float to integer: towards zero, saturating,
    NaN to 0. Integer to integer: the low bits. To a boolean: whether it is not 0.
    """
    if source == target:
        return x
    with np.errstate(all="ignore"):  # signalling NaNs
        values = decode(source, x)
        if not target.is_integer:
            return encode(target, values)
        if values.dtype.kind in "biu":
            return wrap(target, values)
        return encode(target, np.trunc(values))


def apply(op: str, kind: DataType, args: tuple[Array, ...]) -> Array:
    """Apply an operator to elements of one type (`where`: a boolean and two of one type).

    Raises
    ------
    Fault
        For a division of integers by zero, and a shift by less than 0 or at least the width.
    """
    if op == "where":
        return np.where(*args)
    _check_right(op, kind, args)
    row = OPERATORS[op]
    with np.errstate(all="ignore"):
        if is_native(kind) and (not kind.is_float or op in _NATIVE_OPS):
            return np.asarray(row.apply(*args))
        values = np.asarray(row.apply(*(decode(kind, x) for x in args)))
    if row.result == "bool":
        return values
    return wrap(kind, values) if kind.is_integer else encode(kind, values)


def _check_right(op: str, kind: DataType, args: tuple[Array, ...]) -> None:
    if op in ("floordiv", "mod") and not np.all(args[1]):
        raise Fault(f"{op} by zero")
    if op in ("shl", "shr"):
        amounts = decode(kind, args[1])
        wrong = (amounts < 0) | (amounts >= kind.nbits)
        if np.any(wrong):
            raise Fault(f"{op} of {kind} by {int(amounts[wrong].flat[0])} bits")


def reduce(op: str, kind: DataType, x: Array, dim: int, keepdims: bool) -> Array:
    """Sum, maximum or minimum along a dimension: integers wrap, a sum of floats is taken in f64 and rounded once."""
    values = decode(kind, x)
    with np.errstate(all="ignore"):
        if op == "sum":
            total = np.asarray(values.sum(axis=dim, keepdims=keepdims, dtype=values.dtype))
        else:
            total = np.asarray((np.max if op == "max" else np.min)(values, axis=dim, keepdims=keepdims))
    return wrap(kind, total) if kind.is_integer else encode(kind, total)


def dot(a: Array, b: Array, c: Array, kind: DataType, acc: DataType) -> Array:
    """Return `a @ b + c`: exact for integers (wrapping), for floats the f64 sum rounded once to the accumulator's type.

    Products are exact in f64 for operands of up to 26 bits of mantissa, so the error of a sum of K products is below
    K * 2^-53 of the sum of their magnitudes, plus half a unit of the accumulator.
    """
    left, right, start = decode(kind, a), decode(kind, b), decode(acc, c)
    with np.errstate(all="ignore"):
        if acc.is_integer and left.dtype.kind == "f":
            raise Fault(f"dot of {kind} cannot accumulate in {acc}", hint="use a floating-point accumulator")
        if acc.is_integer:
            product = _integer_product(left, right, kind)
            return wrap(acc, product + start.astype(product.dtype))
        return encode(acc, left.astype(np.float64) @ right.astype(np.float64) + start.astype(np.float64))


def _integer_product(a: Array, b: Array, kind: DataType) -> Array:
    """Return the exact product of integer matrices modulo 2^64; NumPy is fast at it in f64 only."""
    if a.shape[-1] << (2 * kind.nbits) <= 1 << 53:
        return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)
    return a.astype(np.int64) @ b.astype(np.int64)


def show(kind: DataType, x: Array) -> str:
    """Return elements as `print` writes them: integers and booleans in decimal, the rest as C's ``%g``."""
    values = decode(kind, x)
    texts = [str(int(v)) if values.dtype.kind in "biu" else f"{float(v):g}" for v in values.reshape(-1)]
    return texts[0] if values.ndim == 0 else f"[{', '.join(texts)}]"
