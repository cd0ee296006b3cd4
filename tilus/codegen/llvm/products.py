"""Emitters of `dot`: fused multiply-adds over the k's that a lane holds, then the sum over lanes that hold other k's.

A small product is unrolled. A large one is a loop over blocks of the result, few enough for the registers, and within
it a loop over k: that is how matrix products are made fast, and the code is short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from tilus.codegen.llvm import casts
from tilus.codegen.llvm.builder import Builder, Value, constant, vector
from tilus.codegen.llvm.context import Context, Memory, compute_values, register
from tilus.codegen.llvm.lanes import Table, butterfly, steps_of_group
from tilus.codegen.llvm.loops import Affine, affine, counted
from tilus.codegen.llvm.pairs import add_pair_products
from tilus.codegen.llvm.types import compute, is_packed, storage
from tilus.dtypes import DataType, i16, i32
from tilus.errors import CodegenError
from tilus.ir.expr import Tensor
from tilus.ir.instructions import Dot
from tilus.layouts import index_table

Load: TypeAlias = "Callable[[Value, Value], Value]"  # of a row or column, and k
Line: TypeAlias = "tuple[int, ...]"  # the index of a row or column, behind that of the matrix in a batch
UNROLLED = 512  # multiply-adds
# Vector registers by lanes: AVX2 and SSE have 16, AVX-512 has 32. NEON has 32 too, but is not told from SSE here.
REGISTERS = {16: 32}
FEWEST_REGISTERS = 16


@dataclass(frozen=True, slots=True)
class Product:
    """A product, and which registers of lane 0, or any other, hold what.

    Attributes
    ----------
    rows, columns : dict
        Local numbers in `a` by row and k, in `b` by column and k; rows and columns of a batch of matrices are pairs.
    places : list of (row, column)
        Of every local of the result.
    steps : sequence of int
        Lane distances of the butterfly that adds up parts.
    """

    out: Tensor
    inst: Dot
    rows: dict[Line, dict[int, int]]
    columns: dict[Line, dict[int, int]]
    places: list[tuple[Line, Line]]
    steps: Sequence[int]

    @property
    def of_pairs(self) -> bool:
        """Whether neighbours along k are multiplied together (see `pairs`)."""
        return self.inst.a.type.dtype == i16 and self.out.type.dtype == i32

    def pairs(self, m: Line, n: Line) -> list[tuple[int, int]]:
        """Return the registers of `a` and `b` whose products make an element of the result."""
        return [(i, self.columns[n][k]) for k, i in self.rows[m].items() if k in self.columns[n]]


def dot(c: Context, out: Tensor, inst: Dot) -> None:
    """Multiply and add."""
    a, b, at = (index_table(register(t)[1]) for t in (inst.a, inst.b, out))
    b = _swapped(b)
    places = [((*batch, m), (*batch, n)) for *batch, m, n in at[0].tolist()]
    product = Product(out, inst, _registers_by_line(a), _registers_by_line(b), places, ())
    pairs = [product.pairs(m, n) for m, n in places]
    for j, found in enumerate(pairs):
        _check_pairs(a, b, at[:, j], found)
    if out not in c.parts:
        # Lanes differ in the same way in every register.
        ks = [tuple(row) for row in a[:, [i for i, _ in pairs[0]], -1].tolist()]
        product = replace(product, steps=steps_of_group([tuple(row) for row in at[:, 0].tolist()], ks))
    work = sum(map(len, pairs)) // (2 if product.of_pairs else 1)
    block = _block(c, product) if work > UNROLLED or _words_in_memory(c, product) else None
    if block is None:
        _unrolled(c, product, pairs)
    else:
        _looped(c, product, block)


def _swapped(table: Table) -> Table:
    """Return indices of which the last two are exchanged."""
    return table[..., [*range(table.shape[-1] - 2), -1, -2]]


def _registers_by_line(table: Table) -> dict[Line, dict[int, int]]:
    """Return, for lane 0, {row or column: {k: local}}; k is the last index."""
    found: dict[Line, dict[int, int]] = {}
    for i, (*line, k) in enumerate(table[0].tolist()):
        found.setdefault(tuple(line), {}).setdefault(k, i)
    return found


def _check_pairs(a: Table, b: Table, at: Table, pairs: Sequence[tuple[int, int]]) -> None:
    """Check that the registers that fit in lane 0 fit in every lane."""
    left, right = (np.array([p[side] for p in pairs], dtype=int) for side in (0, 1))
    row, column = at[:, None, :-1], _swapped(at)[:, None, :-1]
    good = (a[:, left, -1] == b[:, right, -1]) & (a[:, left, :-1] == row).all(-1) & (b[:, right, :-1] == column).all(-1)
    if not pairs or not good.all():
        raise CodegenError("dot: operand layouts do not fit the result's", hint="this is a compiler bug")


def _unrolled(c: Context, p: Product, pairs: Sequence[Sequence[tuple[int, int]]]) -> None:
    acc = p.out.type.dtype
    a, b = (_Converted(c, t, acc) for t in (p.inst.a, p.inst.b))
    start = compute_values(c, p.inst.c, parts=p.out in c.parts)
    totals = [constant(begin.type, 0) if p.steps else begin for begin in start]
    # One k after the other: operands that are made where they are used live no longer than that.
    width = 2 if p.of_pairs else 1
    for step in range(0, max(map(len, pairs)), width):
        for number, found in enumerate(pairs):
            here = found[step : step + width]
            if len(here) == 2:
                left, right = zip(*here, strict=True)
                words = c.group(p.inst.a, left), c.group(p.inst.b, right)
                totals[number] = add_pair_products(c.b, *words, totals[number])
            elif here:
                totals[number] = _multiply_add(c, a[here[0][0]], b[here[0][1]], totals[number])
    c.write(p.out, [_finished(c, p, total, begin) for total, begin in zip(totals, start, strict=True)])


class _Converted:
    """The elements of an operand in the compute type of the accumulator, each converted when it is first asked for."""

    def __init__(self, c: Context, t: Tensor, acc: DataType) -> None:
        self._c, self._t, self._acc = c, t, acc
        self._elements = c.read(t)
        self._known: dict[int, Value] = {}

    def __getitem__(self, number: int) -> Value:
        if number not in self._known:
            self._known[number] = _as_accumulator(self._c, self._t, self._acc, self._elements[number])
        return self._known[number]


def _finished(c: Context, p: Product, total: Value, begin: Value, *, apart: bool = False) -> Value:
    """Add up the parts of a result, and what it began with if that is not among them; return it as it is stored."""
    for step in p.steps:
        total = c.b.op(_add(total), total, butterfly(c.b, total, step))
    if p.steps or apart:
        total = c.b.op(_add(total), total, begin)
    return casts.encode(c.b, p.out.type.dtype, total)


def _as_accumulator(c: Context, t: Tensor, acc: DataType, stored: Value) -> Value:
    """Return an operand's element in the compute type of the accumulator; exact for the types that `dot` takes."""
    opcode = {"double": "fpext", "i64": "sext" if t.type.dtype.is_signed else "zext"}.get(compute(acc), "bitcast")
    return c.b.convert(opcode, casts.decode(c.b, t.type.dtype, stored), vector(c.b.lanes, compute(acc)))


def _multiply_add(c: Context, x: Value, y: Value, z: Value) -> Value:
    if _add(z) == "fadd":
        return c.b.call(z.type, "fma", x, y, z)
    return c.b.op("add", z, c.b.op("mul", x, y))


def _add(x: Value) -> str:
    return "fadd" if "float" in x.type or "double" in x.type else "add"


# --- loops ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Block:
    """A large product as blocks of rows and columns.

    Attributes
    ----------
    extents : (int, int, int)
        Rows, columns and k's that a lane holds.
    rows, columns : int
        Of a block.
    a, b, out : Affine
        Local numbers: by row and k, column and k, row and column.
    index : (Affine, Affine, Affine)
        Row, column and k that lane 0 holds.
    """

    extents: tuple[int, int, int]
    rows: int
    columns: int
    a: Affine
    b: Affine
    out: Affine
    index: tuple[Affine, Affine, Affine]


def _block(c: Context, p: Product) -> Block | None:
    """Return the blocks of a product; None if local numbers are no sums, or if an operand is the result itself."""
    if len(p.places[0][0]) > 1:
        return None  # a batch
    rows, columns, ks = list(p.rows), list(p.columns), list(p.rows[p.places[0][0]])
    numbers = {at: j for j, at in enumerate(p.places)}
    complete = all(set(held) == set(ks) for held in (*p.rows.values(), *p.columns.values()))
    if not complete or len(numbers) != len(rows) * len(columns) or p.out in (p.inst.a, p.inst.b):
        return None
    a = affine(np.array([[p.rows[m][k] for k in ks] for m in rows]), (len(rows), len(ks)))
    b = affine(np.array([[p.columns[n][k] for k in ks] for n in columns]), (len(columns), len(ks)))
    out = affine(np.array([[numbers[m, n] for n in columns] for m in rows]), (len(rows), len(columns)))
    m, n, k = (affine(np.array(held).ravel(), (len(held),)) for held in (rows, columns, ks))
    if a is None or b is None or out is None or m is None or n is None or k is None:
        return None
    # In registers are the sums, the operands of one side, and two of the other: one in use, one on its way.
    most = REGISTERS.get(c.b.lanes, FEWEST_REGISTERS) - 2
    sizes = [(r, n) for r in _divisors(len(rows)) for n in _divisors(len(columns)) if r * n + min(r, n) <= most]
    high, wide = max(sizes, key=lambda size: size[0] * size[1] / (size[0] + size[1]))
    return Block((len(rows), len(columns), len(ks)), high, wide, a, b, out, (m, n, k))


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _looped(c: Context, p: Product, block: Block) -> None:
    b, (rows, columns, ks) = c.b, block.extents
    parts, acc = p.out in c.parts, p.out.type.dtype
    m, n, depth = block.index
    words = _pairs_in_memory(c, p, block)
    if words is not None:
        x, y = words
        ks //= 2
    else:
        x = _operand(c, p.inst.a, acc, block.a, lambda i, k: [m.at(b, [i]), depth.at(b, [k])])
        y = _operand(c, p.inst.b, acc, block.b, lambda j, k: [depth.at(b, [k]), n.at(b, [j])])
    add = _multiply_add if words is None else lambda c, *args: add_pair_products(c.b, *args)
    corners = [(i, j) for i in range(block.rows) for j in range(block.columns)]
    type_ = vector(b.lanes, compute(acc))
    sums = [b.alloca(type_, "sum") for _ in corners]
    c.make(p.inst.c)
    with counted(b, [rows // block.rows, columns // block.columns]) as (across, along):
        row, column = b.op("mul", across, block.rows), b.op("mul", along, block.columns)
        mine, others = _counts(b, row, block.rows), _counts(b, column, block.columns)
        numbers = [block.out.at(b, [mine[i], others[j]]) for i, j in corners]
        for slot in sums:
            b.store(constant(type_, 0), slot)
        with counted(b, [ks]) as (k,):
            left, right = [x(i, k) for i in mine], [y(j, k) for j in others]
            for slot, (i, j) in zip(sums, corners, strict=True):
                b.store(add(c, left[i], right[j], b.load(type_, slot)), slot)
        for number, slot in zip(numbers, sums, strict=True):
            begin = casts.decode(b, acc, c.get(p.inst.c, number, parts=parts))
            c.put(p.out, number, _finished(c, p, b.load(type_, slot), begin, apart=True))


def _counts(b: Builder, first: Value, many: int) -> list[Value]:
    """Return numbers from `first` on."""
    return [b.op("add", first, i) if i else first for i in range(many)]


def _words_in_memory(c: Context, p: Product) -> tuple[Memory, Memory] | None:
    """Return where pairs along k lie, if both operands lie in memory as words of them."""
    left, right = c.deferred.get(p.inst.a), c.deferred.get(p.inst.b)
    if not p.of_pairs or left is None or right is None or left.words is None or right.words is None:
        return None
    return (left.words, right.words) if (left.words.run, right.words.run) == (1, 0) else None


def _pairs_in_memory(c: Context, p: Product, block: Block) -> tuple[Load, Load] | None:
    """Return what loads pairs along k of a row of `a` and of a column of `b`, if both lie in memory as words."""
    b, (m, n, depth), found = c.b, block.index, _words_in_memory(c, p)
    if found is None:
        return None
    x, y = found
    if (depth.base, depth.strides) != (0, (1,)) or block.extents[2] % 2:
        return None
    return lambda i, k: x.load(b, "i32", [m.at(b, [i]), k]), lambda j, k: y.load(b, "i32", [k, n.at(b, [j])])


def _operand(
    c: Context, t: Tensor, acc: DataType, numbers: Affine, index: Callable[[Value, Value], list[Value]]
) -> Load:
    """Return what loads an operand's element of a row of `a`, or column of `b`, and a k: in the accumulator's type.

    For these counters `numbers` has the local number, and `index` returns the index of lane 0. An operand is read once
    for every row or column of blocks, so conversions are made beforehand.
    """
    b, wide, count = c.b, compute(acc), register(t)[1].local_size
    kept = storage(t.type.dtype) == wide and not is_packed(t.type.dtype)
    found = c.deferred.get(t)
    if kept and found is not None and found.elements is not None:
        memory = found.elements
        return lambda i, k: memory.load(b, wide, index(i, k))
    c.make(t)
    if kept:
        return lambda i, k: c.get(t, numbers.at(b, [i, k]))
    scalars = not c.held(t).startswith("<")
    element = wide if scalars else vector(b.lanes, wide)
    copy = b.alloca(f"[{count} x {element}]", t.name, 64)

    def convert(number: Value | int, stored: Value) -> None:
        value = _as_accumulator(c, t, acc, stored)
        b.store(b.extract(value, 0) if scalars else value, b.gep(element, copy, number))

    if c.in_memory(t):
        with counted(b, [count]) as (number,):
            convert(number, c.get(t, number))
    else:
        for i, stored in enumerate(c.read(t)):
            convert(i, stored)

    def load(i: Value, k: Value) -> Value:
        value = b.load(element, b.gep(element, copy, numbers.at(b, [i, k])))
        return b.splat(value) if scalars else value

    return load
