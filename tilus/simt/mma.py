"""Products of small matrices that a warp holds in its registers (PTX ISA, "mma").

All fragments follow one rule. A 32-bit register holds `e` elements that are neighbours in k. With lane l, register r,
element j: the row of A (column of B) is l/4, plus 8 for every second register of an A with 16 rows; k is
(l%4)·e + j + 4·e·s, where s counts the registers of one row. Accumulators are pairs of columns: row l/4 + 8·(i/2),
column (l%4)·2 + i%2. With 64-bit elements it is the same, with e = 1.

Products are exact, and summed with the accumulator in float64; the sum is rounded once. Hardware rounds differently
(and each generation in its own way), so results can be compared bit by bit where all partial sums are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tilus.simt.decode import Context, Read, decoder
from tilus.simt.formats import FORMATS, Array, decode, encode
from tilus.simt.loads import items
from tilus.simt.machine import LANES, Group, Step, as_group
from tilus.simt.opcode import Opcode, word_type

_NBITS = {
    "f16": 16, "bf16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "e3m2": 8, "e2m3": 8, "e2m1": 8, "s8": 8, "u8": 8, "s4": 4,
    "u4": 4, "b1": 1, "f64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """A product's shape and types."""

    m: int
    n: int
    k: int
    d: str
    a: str
    b: str
    c: str
    logic: str = ""
    satfinite: bool = False

    @property
    def sources(self) -> tuple[str, str, str]:
        """Types of A, B and C."""
        return self.a, self.b, self.c


@lru_cache(maxsize=64)
def places(rows: int, k: int, per_register: int, outer: int) -> Array:
    """Return where in a (rows, k) operand each (lane, register, element) lies, as flat indices.

    Parameters
    ----------
    rows, k : int
    per_register : int
        Elements of a register.
    outer : int
        Groups of 8 rows that alternate from register to register: 2 for an A of 16 rows, else 1.
    """
    registers = rows * k // (LANES * per_register)
    lane, r, j = np.ogrid[:LANES, :registers, :per_register]
    row = lane // 4 + 8 * (r % outer)
    column = lane % 4 * per_register + j + 4 * per_register * (r // outer)
    return np.broadcast_to(row * k + column, (LANES, registers, per_register)).reshape(-1)


@lru_cache(maxsize=16)
def accumulator_places(m: int, n: int) -> Array:
    """Return where in an (m, n) accumulator each (lane, element) lies, as flat indices."""
    lane, i = np.ogrid[:LANES, : m * n // LANES]
    return ((lane // 4 + 8 * (i // 2 % (m // 8))) * n + lane % 4 * 2 + i % 2).reshape(-1)


def element_codes(words: Array, kind: str) -> Array:
    """Return the codes of the elements of registers, along a new last axis."""
    nbits = _NBITS[kind]
    if nbits in (8, 16, 32, 64):
        return np.ascontiguousarray(words)[..., None].view(f"u{nbits // 8}")
    at = np.arange(0, 32, nbits, dtype=np.uint32)
    return words[..., None] >> at & np.uint32((1 << nbits) - 1)


def element_values(codes: Array, kind: str) -> Array:
    """Return the values of codes: float64, or int64 for integers."""
    if kind in FORMATS:
        return decode(codes, FORMATS[kind])
    values = codes.astype(np.int64)
    nbits = _NBITS[kind]
    return values - ((values >> (nbits - 1) & 1) << nbits) if kind[0] == "s" else values


def _matrix(words: Array, kind: str, rows: int, k: int, outer: int) -> Array:
    """Return the values of an operand from registers of shape (warps, 32, registers)."""
    codes = element_codes(words, kind)
    found = np.empty((len(words), rows * k), codes.dtype)
    found[:, places(rows, k, codes.shape[-1], outer)] = codes.reshape(len(words), -1)
    return element_values(found, kind).reshape(-1, rows, k)


def multiply(a: Array, b: Array, c: Array, kind: Kind) -> Array:
    """Return a @ b.T + c of values; integers wrap or saturate, bits are counted."""
    if kind.logic:
        both = a[:, :, None, :] & b[:, None] if kind.logic == "and" else a[:, :, None, :] ^ b[:, None]
        return c + both.sum(-1)
    total = a @ np.swapaxes(b, -1, -2) + c
    if kind.satfinite and kind.d == "s32":
        return np.clip(total, -(2**31), 2**31 - 1)
    return total


def _accumulators(words: Array, kind: Kind, name: str) -> Array:
    """Return the values of accumulators from registers of shape (warps, 32, registers)."""
    flat = (words if name != "f16" else np.ascontiguousarray(words).view(np.uint16)).reshape(len(words), -1)
    found = np.empty((len(words), kind.m * kind.n), flat.dtype)
    found[:, accumulator_places(kind.m, kind.n)] = flat
    values = decode(found, FORMATS[name]) if name in FORMATS else found.view(np.int32).astype(np.int64)
    return values.reshape(-1, kind.m, kind.n)


def _registers(values: Array, kind: Kind) -> Array:
    """Return the words of a result, shape (warps, 32, registers)."""
    flat = values.reshape(len(values), -1)[:, accumulator_places(kind.m, kind.n)]
    if kind.d in FORMATS:
        codes = encode(flat, FORMATS[kind.d])
        codes = codes.view(np.uint32) if kind.d == "f16" else codes
    else:
        codes = flat.astype(np.uint64).astype(np.uint32)
    return codes.reshape(len(values), LANES, -1)


def parse_shape(op: Opcode) -> tuple[int, int, int]:
    """Take the modifier that names a shape, such as `m16n8k16`."""
    name = next((x for x in op.rest if x[0] == "m" and x[1:2].isdigit()), "")
    if not name:
        raise op.unknown("no shape")
    op.take(name)
    m, rest = name[1:].split("n")
    n, k = rest.split("k")
    return int(m), int(n), int(k)


def _kind(context: Context) -> Kind:
    op = context.opcode
    for name in ("sync", "aligned", "row", "col"):
        if not op.take(name):
            raise context.error(f"a form without .{name} is not known")
    m, n, k = parse_shape(op)
    satfinite = op.take("satfinite")
    logic = op.choose("xor", "and")
    op.drop("popc")
    op.drop("kind::f8f6f4")
    d, a, b, c = op.rest
    op.rest.clear()
    if logic and a != "b1":
        raise context.error("only bits are combined by logic")
    if any(x not in _NBITS for x in (a, b)) or (m, n) not in ((16, 8), (8, 8)) or (m == 8 and a in ("f16", "bf16")):
        raise context.error("this product is not known")
    return Kind(m, n, k, d, a, b, c, logic, satfinite)


@decoder("mma")
def _mma(context: Context) -> Step:
    kind, machine, code = _kind(context), context.machine, context.code
    out, *sources = (items(x) for x in context.operands)
    word = {x: "b64" if x == "f64" else "b32" for x in (kind.a, kind.b, kind.c, kind.d)}
    a, b, c = ([context.read(x, word[t]) for x in items] for items, t in zip(sources, kind.sources, strict=True))
    writes = [context.write(x, word[kind.d]) for x in out]
    wanted = (kind.m * kind.k, kind.n * kind.k, kind.m * kind.n, kind.m * kind.n)
    sizes = [n * _NBITS.get(t, 32) // (LANES * max(32, _NBITS.get(t, 32)))
             for n, t in zip(wanted, (*kind.sources, kind.d), strict=True)]  # fmt: skip
    if sizes != [len(a), len(b), len(c), len(writes)]:
        raise context.error(f"expected {sizes[3]}, {sizes[0]}, {sizes[1]} and {sizes[2]} registers")

    def step(group: Group) -> None:
        warps = machine.units["warps"].whole(group, code)
        whole = as_group(warps.reshape(-1), machine.threads)
        left = _matrix(_gather(a, whole, len(warps), word[kind.a]), kind.a, kind.m, kind.k, kind.m // 8)
        right = _matrix(_gather(b, whole, len(warps), word[kind.b]), kind.b, kind.n, kind.k, 1)
        start = _accumulators(_gather(c, whole, len(warps), word[kind.c]), kind, kind.c)
        result = _registers(multiply(left, right, start, kind), kind)
        for i, write in enumerate(writes):
            write(whole, result[:, :, i].reshape(-1))

    return step


def _gather(reads: list[Read], group: Group, warps: int, word: str) -> Array:
    """Return registers as an array of shape (warps, 32, registers)."""
    found = np.empty((warps * LANES, len(reads)), word_type(word))
    for i, read in enumerate(reads):
        found[:, i] = read(group)
    return found.reshape(warps, LANES, -1)
