"""Emitters of `dot`: fused multiply-adds over the k's that a lane holds, then the sum over lanes that hold other k's.

A small product is unrolled. A large one is a loop over blocks of the result, few enough for the registers, and within
it a loop over k: that is how matrix products are made fast, and the code is short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tilus.codegen.llvm import casts
from tilus.codegen.llvm.builder import Builder, Value, constant, vector
from tilus.codegen.llvm.context import Context, compute_values, register
from tilus.codegen.llvm.lanes import Table, butterfly, steps_of_group
from tilus.codegen.llvm.loops import Affine, affine, counted
from tilus.codegen.llvm.types import compute, is_packed, storage
from tilus.dtypes import DataType
from tilus.errors import CodegenError
from tilus.ir.expr import Tensor
from tilus.ir.instructions import Dot
from tilus.layouts import index_table

UNROLLED = 512  # multiply-adds
# Vectors of a result that a loop over k keeps: of the 32 registers of AVX-512 and NEON, of the 16 of AVX2.
REGISTERS = {8: 12}
MOST_REGISTERS = 24


@dataclass(frozen=True, slots=True)
class Product:
    """A product, and which registers of lane 0, or any other, hold what.

    Attributes
    ----------
    rows, columns : dict
        Local numbers in `a` by row and k, in `b` by column and k.
    places : list of (int, int)
        Row and column of every local of the result.
    steps : sequence of int
        Lane distances of the butterfly that adds up parts.
    """

    out: Tensor
    inst: Dot
    rows: dict[int, dict[int, int]]
    columns: dict[int, dict[int, int]]
    places: list[tuple[int, int]]
    steps: Sequence[int]

    def pairs(self, m: int, n: int) -> list[tuple[int, int]]:
        """Return the registers of `a` and `b` whose products make an element of the result."""
        return [(i, self.columns[n][k]) for k, i in self.rows[m].items() if k in self.columns[n]]


def dot(c: Context, out: Tensor, inst: Dot) -> None:
    """Multiply and add."""
    a, b, at = (index_table(register(t)[1]) for t in (inst.a, inst.b, out))
    places = [(m, n) for m, n in at[0].tolist()]
    product = Product(out, inst, _registers_by_index(a, 0), _registers_by_index(b, 1), places, ())
    pairs = [product.pairs(m, n) for m, n in places]
    for j, found in enumerate(pairs):
        _check_pairs(a, b, at[:, j], found)
    if out not in c.parts:
        # Lanes differ in the same way in every register.
        ks = [tuple(row) for row in a[:, [i for i, _ in pairs[0]], 1].tolist()]
        product = replace(product, steps=steps_of_group([tuple(row) for row in at[:, 0].tolist()], ks))
    block = _block(c, product) if sum(map(len, pairs)) > UNROLLED else None
    if block is None:
        _unrolled(c, product, pairs)
    else:
        _looped(c, product, block)


def _registers_by_index(table: Table, kept: int) -> dict[int, dict[int, int]]:
    """Return, for lane 0, {row or column: {k: local}}."""
    found: dict[int, dict[int, int]] = {}
    for i, at in enumerate(table[0].tolist()):
        found.setdefault(at[kept], {}).setdefault(at[1 - kept], i)
    return found


def _check_pairs(a: Table, b: Table, at: Table, pairs: Sequence[tuple[int, int]]) -> None:
    """Check that the registers that fit in lane 0 fit in every lane."""
    left, right = (np.array([p[side] for p in pairs], dtype=int) for side in (0, 1))
    good = (a[:, left, 1] == b[:, right, 0]) & (a[:, left, 0] == at[:, :1]) & (b[:, right, 1] == at[:, 1:])
    if not pairs or not good.all():
        raise CodegenError("dot: operand layouts do not fit the result's", hint="this is a compiler bug")


def _unrolled(c: Context, p: Product, pairs: Sequence[Sequence[tuple[int, int]]]) -> None:
    acc = p.out.type.dtype
    a, b = ([_as_accumulator(c, t, acc, e) for e in c.read(t)] for t in (p.inst.a, p.inst.b))
    start = compute_values(c, p.inst.c, parts=p.out in c.parts)
    results = []
    for begin, found in zip(start, pairs, strict=True):
        total = constant(begin.type, 0) if p.steps else begin
        for i, j in found:
            total = _multiply_add(c, a[i], b[j], total)
        results.append(_finished(c, p, total, begin))
    c.write(p.out, results)


def _finished(c: Context, p: Product, total: Value, begin: Value) -> Value:
    """Add up the parts of a result, and what it began with if that is not among them; return it as it is stored."""
    for step in p.steps:
        total = c.b.op(_add(total), total, butterfly(c.b, total, step))
    if p.steps:
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
    """

    extents: tuple[int, int, int]
    rows: int
    columns: int
    a: Affine
    b: Affine
    out: Affine


def _block(c: Context, p: Product) -> Block | None:
    """Return the blocks of a product; None if local numbers are no sums, or if an operand is the result itself."""
    rows, columns, ks = list(p.rows), list(p.columns), list(p.rows[p.places[0][0]])
    numbers = {at: j for j, at in enumerate(p.places)}
    complete = all(set(held) == set(ks) for held in (*p.rows.values(), *p.columns.values()))
    if not complete or len(numbers) != len(rows) * len(columns) or p.out in (p.inst.a, p.inst.b):
        return None
    a = affine(np.array([[p.rows[m][k] for k in ks] for m in rows]), (len(rows), len(ks)))
    b = affine(np.array([[p.columns[n][k] for k in ks] for n in columns]), (len(columns), len(ks)))
    out = affine(np.array([[numbers[m, n] for n in columns] for m in rows]), (len(rows), len(columns)))
    if a is None or b is None or out is None:
        return None
    most = REGISTERS.get(c.b.lanes, MOST_REGISTERS)
    sizes = [(r, n) for r in _divisors(len(rows)) for n in _divisors(len(columns)) if r * n <= most]
    r, n = max(sizes, key=lambda size: size[0] * size[1] / (size[0] + size[1]))
    return Block((len(rows), len(columns), len(ks)), r, n, a, b, out)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _looped(c: Context, p: Product, block: Block) -> None:
    b, (rows, columns, ks) = c.b, block.extents
    parts, acc = p.out in c.parts, p.out.type.dtype
    x, y = (_operand(c, t, acc) for t in (p.inst.a, p.inst.b))
    corners = [(i, j) for i in range(block.rows) for j in range(block.columns)]
    sums = [b.alloca(vector(b.lanes, compute(acc)), "sum") for _ in corners]
    with counted(b, [rows // block.rows, columns // block.columns]) as (across, along):
        row, column = b.op("mul", across, block.rows), b.op("mul", along, block.columns)
        numbers = _grid(b, block.out, row, column, block.rows, block.columns)
        starts = [casts.decode(b, acc, c.get(p.inst.c, n, parts=parts)) for n in numbers]
        for slot, start in zip(sums, starts, strict=True):
            b.store(constant(start.type, 0) if p.steps else start, slot)
        with counted(b, [ks]) as (k,):
            left = [x(n) for n in _grid(b, block.a, row, k, block.rows, 1)]
            right = [y(n) for n in _grid(b, block.b, column, k, block.columns, 1)]
            for slot, (i, j) in zip(sums, corners, strict=True):
                b.store(_multiply_add(c, left[i], right[j], b.load(starts[0].type, slot)), slot)
        for number, slot, start in zip(numbers, sums, starts, strict=True):
            c.put(p.out, number, _finished(c, p, b.load(start.type, slot), start))


def _grid(b: Builder, numbers: Affine, first: Value, second: Value, many: int, more: int) -> list[Value]:
    """Return local numbers for counters from `first` and `second` on."""
    base = numbers.at(b, [first, second])
    s, t = numbers.strides
    return [b.op("add", base, i * s + j * t) if i * s + j * t else base for i in range(many) for j in range(more)]


def _operand(c: Context, t: Tensor, acc: DataType) -> Callable[[Value], Value]:
    """Return what loads an operand's element by its local number, in the compute type of the accumulator.

    An operand is read once for every row or column of blocks, so conversions are made beforehand.
    """
    b, wide, count = c.b, compute(acc), register(t)[1].local_size
    if storage(t.type.dtype) == wide and not is_packed(t.type.dtype):
        return lambda number: c.get(t, number)
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

    def load(number: Value) -> Value:
        value = b.load(element, b.gep(element, copy, number))
        return b.splat(value) if scalars else value

    return load
