"""Integer, logic, shift, comparison and data movement instructions (PTX ISA, sections of the same names)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tilus.simt.formats import Array
from tilus.simt.opcode import Opcode, Operation, family, view_type
from tilus.simt.syntax import BYTES

_WIDE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}


def _limits(kind: str) -> tuple[int, int]:
    info = np.iinfo(view_type(kind))
    return int(info.min), int(info.max)


def saturate(value: Array, kind: str) -> Array:
    """Return integers of a wider type clamped to a narrower one."""
    low, high = _limits(kind)
    return np.clip(value, low, high).astype(view_type(kind))


# --- arithmetic -------------------------------------------------------------------------------------------------------


def add_sub(op: Opcode) -> Operation:
    """`add`, `sub` and their forms with carry; the carry is an operand and a result of its own."""
    carry_out, saturated, kind = op.take("cc"), op.take("sat"), op.type()
    extended = op.root in ("addc", "subc")
    function: Callable[..., Any] = np.add if op.root.startswith("add") else np.subtract
    if not (carry_out or extended):
        if saturated:
            return Operation(("s32",), ("s32", "s32"), lambda a, b: saturate(function(a.astype(np.int64), b), "s32"))
        return Operation((kind,), (kind, kind), function)
    word, nbits = "u" + kind[1:], 8 * BYTES[kind]

    def with_carry(a: Array, b: Array, c: Array | None = None) -> tuple[Array, ...]:
        exact = function(a.astype(object), b.astype(object))
        if c is not None:
            exact = function(exact, c.astype(object))
        carry = (exact < 0) | (exact >= 1 << nbits)
        return (exact % (1 << nbits)).astype(view_type(word)), carry.astype(bool)

    return Operation((word, "pred"), (word, word, *(["pred"] if extended else [])), with_carry)


def _product(op: Opcode, kind: str) -> tuple[str, Callable[[Array, Array], Array]]:
    """Return the type of a product and how to compute it: low half, high half, or both."""
    half = op.choose("lo", "hi", "wide")
    dtype, nbits = view_type(kind), 8 * BYTES[kind]
    if half == "wide":
        wide = view_type(_WIDE[kind])
        return _WIDE[kind], lambda a, b: a.astype(wide) * b.astype(wide)
    if half == "hi":
        wider = object if nbits == 64 else np.dtype(f"{kind[0].replace('s', 'i')}{nbits // 4}")
        return kind, lambda a, b: (a.astype(wider) * b.astype(wider) >> nbits).astype(dtype)
    return kind, lambda a, b: a * b


def multiply(op: Opcode) -> Operation:
    """`mul`, `mad`, `mul24`, `mad24` of integers."""
    saturated, carry = op.take("sat"), op.take("cc")
    kind = op.type()
    if saturated or carry or op.root == "madc":
        raise op.unknown("saturation and carries of products")
    if op.root.endswith("24"):
        product = _product_24(op, kind)
        result = kind
    else:
        result, product = _product(op, kind)
    if op.root.startswith("mul"):
        return Operation((result,), (kind, kind), product)
    return Operation((result,), (kind, kind, result), lambda a, b, c: product(a, b) + c)


def _product_24(op: Opcode, kind: str) -> Callable[[Array, Array], Array]:
    shift = 16 if op.choose("lo", "hi") == "hi" else 0

    def cut(x: Array) -> Array:  # the low 24 bits, with their sign
        return (x.astype(np.int64) << 40 >> 40) if kind == "s32" else x.astype(np.int64) & 0xFFFFFF

    return lambda a, b: (cut(a) * cut(b) >> shift).astype(view_type(kind))


def _quotient(a: Array, b: Array) -> Array:
    safe = np.where(b == 0, b.dtype.type(1), b)
    whole = a // safe
    toward_zero = whole + ((a % safe != 0) & ((a < 0) != (safe < 0))).astype(a.dtype)
    return np.where(b == 0, np.invert(np.zeros_like(b)), toward_zero)  # the hardware gives all ones


@family("rem")
def _remainder(op: Opcode) -> Operation:
    kind = op.type()
    return Operation((kind,), (kind, kind), lambda a, b: np.where(b == 0, a, a - _quotient(a, b) * b))


def divide(op: Opcode) -> Operation:
    """`div` of integers: toward zero."""
    kind = op.type()
    return Operation((kind,), (kind, kind), _quotient)


def min_max(op: Opcode) -> Operation:
    """`min` and `max` of integers, also packed."""
    relu, kind = op.take("relu"), op.type()
    function: Callable[..., Any] = np.minimum if op.root == "min" else np.maximum
    if relu:
        return Operation((kind,), (kind, kind), lambda a, b: np.maximum(function(a, b), 0))
    return Operation((kind,), (kind, kind), function)


def absolute(op: Opcode) -> Operation:
    """`abs` and `neg` of integers."""
    kind = op.type()
    return Operation((kind,), (kind,), np.abs if op.root == "abs" else np.negative)


@family("sad")
def _sad(op: Opcode) -> Operation:
    kind = op.type()
    return Operation((kind,), (kind,) * 3, lambda a, b, c: c + (np.maximum(a, b) - np.minimum(a, b)))


def _dot(width: int) -> Callable[[Opcode], Operation]:
    """`dp4a` (four bytes by four bytes) and `dp2a` (two halves by the two low or high bytes)."""

    def build(op: Opcode) -> Operation:
        first = 2 if width == 2 and op.choose("lo", "hi") == "hi" else 0
        b_kind, a_kind = op.type("u32", "s32"), op.type("u32", "s32")
        result = "u32" if (a_kind, b_kind) == ("u32", "u32") else "s32"
        a_bits = 32 // width

        def parts(x: Array, nbits: int, signed: bool, at: int) -> Array:
            up = x.view(np.uint32).astype(np.int64) >> (at * nbits) & ((1 << nbits) - 1)
            return np.where(up >> (nbits - 1) & 1 & signed, up - (1 << nbits), up)

        def function(a: Array, b: Array, c: Array) -> Array:
            total = c.astype(np.int64)
            for i in range(width):
                total = total + parts(a, a_bits, a_kind == "s32", i) * parts(b, 8, b_kind == "s32", first + i)
            return total.astype(view_type(result))

        return Operation((result,), (a_kind, b_kind, result), function)

    return build


family("dp4a")(_dot(4))
family("dp2a")(_dot(2))

# --- bits -------------------------------------------------------------------------------------------------------------

LOGIC: dict[str, Callable[..., Any]] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@family("and", "or", "xor", "not", "cnot")
def _logic(op: Opcode) -> Operation:
    kind = op.type()
    if op.root == "not":
        return Operation((kind,), (kind,), np.logical_not if kind == "pred" else np.invert)
    if op.root == "cnot":
        return Operation((kind,), (kind,), lambda a: a == 0)
    return Operation((kind,), (kind, kind), LOGIC[op.root])


def _by_table(table: int, *inputs: Array) -> Array:
    """Return a logical function of words, given by its truth table.

    f(x, ...) = f(0, ...) ^ (x & g(...)), where the table of g is the two halves of f's, xor-ed.
    """
    if not inputs:
        return np.full(1, 0xFFFFFFFF if table else 0, np.uint32)
    half = 1 << (len(inputs) - 1)
    low, high = table & ((1 << half) - 1), table >> half
    without = _by_table(low, *inputs[1:])
    if low == high:
        return without
    with_x = inputs[0] & _by_table(low ^ high, *inputs[1:])
    return without ^ with_x if low else with_x


@family("lop3")
def _lop3(op: Opcode) -> Operation:
    combine = op.choose("and", "or")
    op.type("b32")

    def function(a: Array, b: Array, c: Array, table: Array) -> Array:
        return _by_table(int(table.flat[0]) & 0xFF, a, b, c)

    if not combine:
        return Operation(("b32",), ("b32", "b32", "b32", "b32"), function)

    def with_predicate(a: Array, b: Array, c: Array, table: Array, q: Array) -> tuple[Array, Array]:
        word = function(a, b, c, table)
        return word, LOGIC[combine](word != 0, q)

    return Operation(("b32", "pred"), ("b32", "b32", "b32", "b32", "pred"), with_predicate)


@family("shl", "shr")
def _shift(op: Opcode) -> Operation:
    kind = op.type()
    nbits, dtype = 8 * BYTES[kind], view_type(kind)
    last = dtype.type(nbits - 1)

    def left(a: Array, n: Array) -> Array:
        return np.where(n < nbits, a << np.minimum(n.astype(dtype), last), dtype.type(0))

    def right(a: Array, n: Array) -> Array:
        moved = a >> np.minimum(n, np.uint32(nbits - 1)).astype(dtype)
        return moved if kind[0] == "s" else np.where(n < nbits, moved, dtype.type(0))

    return Operation((kind,), (kind, "u32"), left if op.root == "shl" else right)


@family("shf")
def _funnel(op: Opcode) -> Operation:
    left, wrap = op.choose("l", "r") == "l", op.choose("clamp", "wrap") == "wrap"
    op.type("b32")

    def function(low: Array, high: Array, n: Array) -> Array:
        n64 = (n & np.uint32(31) if wrap else np.minimum(n, np.uint32(32))).astype(np.uint64)
        both = high.astype(np.uint64) << np.uint64(32) | low
        return (both << n64 >> np.uint64(32) if left else both >> n64).astype(np.uint32)

    return Operation(("b32",), ("b32", "b32", "u32"), function)


@family("prmt")
def _permute(op: Opcode) -> Operation:
    mode = op.choose("f4e", "b4e", "rc8", "ecl", "ecr", "rc16")
    kind = op.type("b32")

    def function(a: Array, b: Array, c: Array) -> Array:
        both = b.astype(np.uint64) << np.uint64(32) | a
        result = np.zeros(np.broadcast_shapes(a.shape, b.shape, c.shape), np.uint32)
        for i in range(4):
            pick, sign = _selector(mode, c, i)
            byte = (both >> (pick * 8).astype(np.uint64)).astype(np.uint32) & np.uint32(0xFF)
            byte = np.where(sign, (byte >> np.uint32(7)) * np.uint32(0xFF), byte)
            result = result | byte << np.uint32(8 * i)
        return result

    return Operation((kind,), ("b32", "b32", "b32"), function)


def _selector(mode: str, c: Array, i: int) -> tuple[Array, Array]:
    """Return which byte of eight goes to byte `i`, and whether its sign is copied over all bits."""
    n = c & np.uint32(3)
    picks = {
        "f4e": n + np.uint32(i),
        "b4e": n - np.uint32(i) & np.uint32(7),
        "rc8": n,
        "ecl": np.maximum(n, np.uint32(i)),
        "ecr": np.minimum(n, np.uint32(i)),
        "rc16": (n & np.uint32(1)) * np.uint32(2) + np.uint32(i & 1),
    }
    if mode:
        return picks[mode], np.zeros(1, bool)
    field = c >> np.uint32(4 * i)
    return field & np.uint32(7), (field & np.uint32(8)) != 0


@family("bfe")
def _extract(op: Opcode) -> Operation:
    kind = op.type("u32", "s32", "u64", "s64")
    nbits, dtype = 8 * BYTES[kind], view_type(kind)

    def function(a: Array, start: Array, length: Array) -> Array:
        pos, size = (np.minimum(x & np.uint32(0xFF), np.uint32(nbits)).astype(int) for x in (start, length))
        top = np.minimum(pos + size, nbits)  # what lies above is filled with the sign, or zeros
        moved = a << np.clip(nbits - top, 0, nbits - 1).astype(dtype)
        empty = (size == 0) | (kind[0] == "u") & (pos >= nbits)
        beyond = (pos >= nbits) & (size > 0)
        moved = np.where(beyond, a, moved)
        width = np.where(beyond, 1, np.maximum(top - pos, 1))
        return np.where(empty, dtype.type(0), moved >> (nbits - width).astype(dtype))

    return Operation((kind,), (kind, "u32", "u32"), function)


@family("bfi")
def _insert(op: Opcode) -> Operation:
    kind = op.type("b32", "b64")
    nbits = 8 * BYTES[kind]
    wide = np.dtype(np.uint64 if nbits == 32 else object)

    def function(a: Array, b: Array, start: Array, length: Array) -> Array:
        pos, size = (np.minimum(x & np.uint32(0xFF), np.uint32(nbits)).astype(wide) for x in (start, length))
        mask = ((1 << size) - 1) << pos & ((1 << nbits) - 1)
        return ((b.astype(wide) & ~mask) | (a.astype(wide) << pos & mask)).astype(view_type(kind))

    return Operation((kind,), (kind, kind, "u32", "u32"), function)


@family("bmsk")
def _mask(op: Opcode) -> Operation:
    wrap = op.choose("clamp", "wrap") == "wrap"
    op.type("b32")

    def function(start: Array, length: Array) -> Array:
        if wrap:
            start, length = start & np.uint32(31), length & np.uint32(31)
        pos, size = (np.minimum(x, np.uint32(32)).astype(np.uint64) for x in (start, length))
        one = np.uint64(1)
        return (((one << size) - one) << pos).astype(np.uint32)

    return Operation(("b32",), ("u32", "u32"), function)


@family("popc", "clz", "brev", "bfind")
def _count(op: Opcode) -> Operation:
    amount, kind = op.take("shiftamt"), op.type()
    nbits = 8 * BYTES[kind]

    def table(a: Array) -> Array:
        """Return the bits, the highest first, along a new last axis."""
        words = np.atleast_1d(a).view(f"u{nbits // 8}")
        return words[..., None] >> np.arange(nbits - 1, -1, -1, dtype=words.dtype) & words.dtype.type(1)

    def leading(a: Array) -> Array:
        bits = table(a)
        return np.where(bits.any(-1), bits.argmax(-1), nbits).astype(np.uint32)

    def find(a: Array) -> Array:
        zeros = leading(np.where(a < 0, ~a, a) if kind[0] == "s" else a)
        found = np.where(zeros == nbits, np.uint32(0xFFFFFFFF), np.uint32(nbits - 1) - zeros)
        return np.where(zeros == nbits, found, zeros) if amount else found

    def reverse(a: Array) -> Array:
        weights = np.ones(1, a.dtype) << np.arange(nbits, dtype=a.dtype)
        return (table(a) * weights).sum(-1, dtype=a.dtype)

    functions: dict[str, Callable[..., Any]] = {
        "popc": lambda a: table(a).sum(-1).astype(np.uint32), "clz": leading, "bfind": find, "brev": reverse,
    }  # fmt: skip
    return Operation((kind if op.root == "brev" else "u32",), (kind,), functions[op.root])


@family("fns")
def _find_set(op: Opcode) -> Operation:
    op.type("b32")

    def one(mask: int, base: int, offset: int) -> int:
        step = 1 if offset >= 0 else -1
        wanted = max(abs(offset), 1)
        places = range(base, 32) if step > 0 else range(base, -1, -1)
        found = [i for i in places if mask >> i & 1]
        return found[wanted - 1] if len(found) >= wanted else 0xFFFFFFFF

    return Operation(("b32",), ("b32", "b32", "s32"), np.vectorize(one, otypes=[np.uint32]))


@family("szext")
def _sign_extend(op: Opcode) -> Operation:
    wrap = op.choose("clamp", "wrap") == "wrap"
    kind = op.type("u32", "s32")

    def function(a: Array, width: Array) -> Array:
        n = (width & np.uint32(31) if wrap else np.minimum(width, np.uint32(32))).astype(np.int64)
        low = a.astype(np.int64) & ((1 << n) - 1)
        negative = (n > 0) & (low >> np.maximum(n - 1, 0) & 1 == 1) & (kind == "s32")
        return np.where(negative, low - (1 << n), low).astype(view_type(kind))

    return Operation((kind,), (kind, "u32"), function)


# --- movement ---------------------------------------------------------------------------------------------------------


@family("mov", "cvta")
def _move(op: Opcode) -> Operation:
    kind = op.type()
    if op.root == "cvta":
        raise op.unknown("addresses are converted by the machine")
    return Operation((kind,), (kind,), lambda a: a)


@family("selp")
def _select(op: Opcode) -> Operation:
    kind = op.type()
    return Operation((kind,), (kind, kind, "pred"), lambda a, b, p: np.where(p, a, b))


@family("slct")
def _select_sign(op: Opcode) -> Operation:
    op.drop("ftz")
    by, kind = op.type("s32", "f32"), op.type()
    return Operation((kind,), (kind, kind, by), lambda a, b, c: np.where(c >= 0, a, b))
