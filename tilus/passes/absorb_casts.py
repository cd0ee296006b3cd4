"""Requires a verified program; ensures that casts of codes with a bit layout are unpacked as cheaply as can be.

A GPU's matrix product need not be given the weights themselves. Where a weight is `number * scale + constant`, with
both known now and the same for whole ranges of K::

    sum_k weight x  =  sum_r scale_r * (sum_k in r  number x)  +  sum_r constant_r * (sum_k in r  x)

so the ranges of a scale are a product, whose scale multiplies accumulators, and constants are a product with rows of
them. A zero point that is the same along K is taken off with the sums of x too. That costs a few instructions per
accumulator, and saves one per weight: it is done for few accumulators. Other casts become an `unpack` to values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from math import gcd, isfinite, prod

from tilus.casts import unpack_values
from tilus.dtypes import DataType, Float, bf16, f16, f32, i32
from tilus.ir.expr import Const, Tensor, Var
from tilus.ir.instructions import (
    Arange,
    Cast,
    Copy,
    Dot,
    Elementwise,
    Full,
    Instruction,
    Reshape,
    Slice,
    Transpose,
    Unpack,
    View,
    result_type,
)
from tilus.ir.node import Node, rewrite
from tilus.ir.program import Program
from tilus.ir.stmt import InstStmt, Stmt, inst_stmts
from tilus.ir.target import Target
from tilus.ir.types import RegisterType
from tilus.passes.dead_code import remove_dead
from tilus.passes.loop_factors import take_factors_out
from tilus.passes.tensors import register_operands, register_type
from tilus.passes.weight_numbers import FRAGMENT_ROWS, Numbers, Pair, Range, Term, find_numbers, pays
from tilus.passes.weights import BYTE, Weights, counts_to, find_weights, single_definitions

LEAST_F16 = 2.0**-24
ONES = (1.0, 1.0)
_OTHER_HALF = {f16: bf16, bf16: f16}


def absorb_casts(program: Program, target: Target) -> Program:
    """Replace casts of codes with a bit layout; the same program where there are none, or the target is no GPU."""
    if target.kind != "cuda" or not any(_has_bits(stmt) for stmt in inst_stmts(program)):
        return program
    return remove_dead(_Absorber(program).run())


def _has_bits(stmt: InstStmt) -> bool:
    return isinstance(stmt.inst, View) and stmt.inst.bits is not None


class _Absorber:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.made = single_definitions(program)
        self.unpacked: dict[tuple[int, DataType, str], Tensor] = {}
        self.after: dict[int, list[InstStmt]] = {}  # by the identity of a view: what is to stand behind it
        # What is left to multiply where a product is scaled anyway, and the type of what it is the product of.
        self.scaled: dict[Tensor, tuple[float, DataType]] = {}
        self.factors: dict[Tensor, tuple[Tensor, float]] = {}  # scales that have been multiplied, but need not be

    def run(self) -> Program:
        def replaced(node: Node) -> tuple[Stmt, ...] | None:
            match node:
                case InstStmt(out=Tensor() as out, inst=Dot() as inst):
                    return self.product(node, out, inst)
                case InstStmt(inst=Elementwise(op="mul", args=(Tensor() as x, Tensor() as scale))) if x in self.scaled:
                    return self.scaling(node, x, scale)
                case InstStmt(inst=Cast() as inst):
                    return self.value(node, inst)
                case _:
                    return None

        def placed(node: Node) -> tuple[Stmt, ...] | None:
            return (node, *self.after[id(node)]) if isinstance(node, InstStmt) and id(node) in self.after else None

        # Statements are told apart by identity, which the first rewriting keeps for views.
        new: Program = rewrite(rewrite(self.program, replaced), placed)
        return take_factors_out(new, self.factors)

    def unpack(self, weights: Weights, form: str, positions: tuple[int, ...] = ()) -> Tensor:
        """Return the whole view as a form's numbers, made once, where the view is."""
        key = id(weights.made), weights.dtype, form
        if key not in self.unpacked:
            view, bits = weights.view, weights.bits
            inst = Unpack(view.x, view.dtype, weights.dtype, view.layout, bits, form, positions, loc=view.loc)
            self.unpacked[key] = _new(inst, "weights")
            made = InstStmt(self.unpacked[key], inst, loc=weights.made.loc)
            self.after.setdefault(id(weights.made), []).append(made)
        return self.unpacked[key]

    def value(self, stmt: InstStmt, inst: Cast) -> tuple[Stmt, ...] | None:
        """Return what takes the place of a cast: a part of the whole view's values, maybe by way of the other half.

        f8e5m2's infinities are f16's, f7e6m0's range is bf16's: what one half has no instructions for, the other may.
        """
        for dtype in (inst.dtype, _OTHER_HALF.get(inst.dtype)):
            weights = find_weights(inst.x, self.made, dtype) if dtype is not None else None
            if weights is None or unpack_values(weights.bits.repeated(1), weights.view.dtype, weights.dtype) is None:
                continue
            whole = self.unpack(weights, "value")
            part = _part(whole, -1, weights.start, weights.stop)
            if dtype == inst.dtype:
                return (replace(stmt, inst=Copy(whole) if part is None else part),)
            lines = _Lines(stmt)
            lines.define(stmt.out, Cast(whole if part is None else lines.let(part), inst.dtype))
            return tuple(lines.statements)
        return None

    def product(self, stmt: InstStmt, out: Tensor, inst: Dot) -> tuple[Stmt, ...] | None:
        """Return the products of all terms and their sum; None where that is not possible, or does not pay."""
        weights = find_weights(inst.a, self.made) if register_type(inst.c).dtype == f32 else None
        numbers = None if weights is None else find_numbers(weights, self.greatest(inst.b))
        if weights is None or numbers is None or not pays(inst, numbers, weights, self.program.num_warps):
            return self.plain(stmt, out, inst)
        lines, scale = _Lines(stmt), numbers.terms[0].scale
        if numbers.boost != 1.0:
            factor = Const(numbers.boost, register_type(inst.b).dtype)
            inst = replace(inst, b=lines.let(Elementwise("mul", (inst.b, factor))))
        # The sums come first: they need no weights, so the tensor cores are at work while those are unpacked.
        total = _sums(lines, inst, numbers, weights, self.program.num_warps)
        alone, joined = self.is_zero(inst.c), self.scaled.get(inst.c) == (scale, weights.dtype)
        if joined:
            sums = numbers.constants or weights.columns
            total = lines.let(Elementwise("add", (total, inst.c))) if sums else inst.c
        for term in numbers.terms:
            tile = self.unpack(weights, term.form.name, term.positions)
            if term.scale == scale:
                total = _product(lines, inst, term, tile, weights.start, total)
            else:
                part = _product(lines, inst, term, tile, weights.start, lines.zeros(inst.c))
                total = lines.let(Elementwise("add", (total, lines.times(part, term.scale / scale))))
        if (alone or joined) and out in self.scalings:
            self.scaled[out] = scale, weights.dtype
        else:
            total = lines.times(total, scale)
        lines.define(out, Copy(total) if alone or joined else Elementwise("add", (total, self.whole(lines, inst.c))))
        return tuple(lines.statements)

    def whole(self, lines: _Lines, x: Tensor) -> Tensor:
        """Return a product with its scale."""
        return lines.times(x, self.scaled[x][0]) if x in self.scaled else x

    def plain(self, stmt: InstStmt, out: Tensor, inst: Dot) -> tuple[Stmt, ...] | None:
        """Return a product of values added to another with its scale; None where that has none."""
        if inst.c not in self.scaled:
            return None
        lines = _Lines(stmt)
        lines.define(out, replace(inst, c=self.whole(lines, inst.c)))
        return tuple(lines.statements)

    def greatest(self, x: Tensor) -> float:
        """Return a bound of a tile's numbers, as far as its type and what it is made of say."""
        bound = float(register_type(x).dtype.max_value)
        match self.made.get(x):
            case InstStmt(inst=Transpose(x=y)):
                return self.greatest(y)
            case InstStmt(inst=Cast(x=y, dtype=Float(mantissa_bits=bits))):
                return min(self.greatest(y) * (1 + 2.0 ** (-1 - bits)), bound)  # if it is rounded up
            case InstStmt(inst=Elementwise(op="sub", args=(Tensor() as y, Tensor() as z))):
                source = self.uncast(y)
                rounded = source in self.made and source == self.uncast(z)  # what is rounded off is less than that
                return min(self.greatest(y) + (0.0 if rounded else self.greatest(z)), bound)
            case _:
                return bound

    def uncast(self, x: Tensor) -> Tensor:
        """Return what a tile was before it was cast."""
        while (stmt := self.made.get(x)) is not None and isinstance(stmt.inst, Cast):
            x = stmt.inst.x
        return x

    def is_zero(self, x: Tensor) -> bool:
        stmt = self.made.get(x)
        return stmt is not None and isinstance(stmt.inst, Full) and stmt.inst.value == Const(0.0, f32)

    @cached_property
    def scalings(self) -> set[Tensor]:
        """Tensors of one definition whose only use is to be multiplied by a smaller tile, at once or after a sum."""
        uses = Counter(x for stmt in inst_stmts(self.program) for x in register_operands(stmt.inst))
        found: set[Tensor] = set()
        for stmt in reversed(list(inst_stmts(self.program))):
            match stmt:
                case InstStmt(inst=Elementwise(op="mul", args=(Tensor() as x, Tensor() as scale))):
                    scaled = register_type(scale).numel < register_type(x).numel
                case InstStmt(out=Tensor() as out, inst=Dot(c=x)):
                    scaled = out in found
                case _:
                    continue
            if scaled and x in self.made and uses[x] == 1:
                found.add(x)
        return found

    def scaling(self, stmt: InstStmt, x: Tensor, scale: Tensor) -> tuple[Stmt, ...]:
        """Multiply the scales of a group by what is left of a product's own scale: they are fewer."""
        lines, (factor, dtype) = _Lines(stmt), self.scaled[x]
        whole = lines.times(scale, factor)
        if factor > 1 and dtype == f16 and self.is_from_f16(scale):
            self.factors[whole] = scale, factor
        lines.define(stmt.out, Elementwise("mul", (x, whole)))
        return tuple(lines.statements)

    def is_from_f16(self, scale: Tensor) -> bool:
        """Whether scales were f16's, or of less range: times sums of products of f16's they are normal in f32."""
        match self.made.get(scale):
            case InstStmt(inst=Cast(x=x)):
                dtype = register_type(x).dtype
                return isinstance(dtype, Float) and dtype.smallest_subnormal >= LEAST_F16
            case _:
                return False


# --- lines ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Lines:
    """Statements under construction, all at the place of one of the author's."""

    origin: InstStmt
    statements: list[Stmt] = field(default_factory=list)

    def define(self, out: Tensor | Var | None, inst: Instruction) -> None:
        self.statements.append(replace(self.origin, out=out, inst=replace(inst, loc=self.origin.inst.loc)))

    def let(self, inst: Instruction) -> Tensor:
        out = _new(inst, "part")
        self.define(out, inst)
        return out

    def zeros(self, like: Tensor) -> Tensor:
        return self.let(Full(Const(0.0, f32), register_type(like).shape))

    def times(self, x: Tensor, factor: float) -> Tensor:
        return x if factor == 1.0 else self.let(Elementwise("mul", (x, Const(factor, f32))))

    def cast(self, x: Tensor, dtype: DataType) -> Tensor:
        return x if register_type(x).dtype == dtype else self.let(Cast(x, dtype))

    def dot(self, a: Tensor, inst: Dot, part: Range, c: Tensor) -> Tensor:
        """Multiply by a part of the rows of a product's right operand."""
        rows = _part(inst.b, -2, *part)
        return self.let(Dot(a, inst.b if rows is None else self.let(rows), c))


def _product(lines: _Lines, inst: Dot, term: Term, tile: Tensor, origin: int, total: Tensor) -> Tensor:
    """Add the product of a term's numbers, of the whole view's, of which the weights begin at `origin`."""
    for start, stop in term.ranges:
        part = _part(tile, -1, origin + start, origin + stop)
        total = lines.dot(tile if part is None else lines.let(part), inst, (start, stop), total)
    return total


def _sums(lines: _Lines, inst: Dot, numbers: Numbers, weights: Weights, warps: int) -> Tensor:
    """Return what the products begin with: sums over k times what is the same for all weights of a row.

    A sum is a product with rows of constants. The rows of half a fragment are equal, and two kinds are all that is
    needed: what numbers are off by, which is the same for all rows of weights, and ones, for zero points that are not.
    As many fragments are made as warps need that share a matrix, and each warp uses its own for all of its rows.
    """
    constants, columns = numbers.constants, weights.columns
    if not constants and not columns:
        return lines.zeros(inst.c)
    *batch, rows, n = shape = register_type(inst.c).shape
    height = gcd(rows, FRAGMENT_ROWS)
    half, sharing = max(height // 2, 1), gcd(rows // height, max(warps // prod(batch), 1))
    blocks = (*batch, sharing, rows // sharing // half, half)
    common = {value for pair in constants for value in pair}
    alone = bool(columns) and len(common) < 2  # one constant can be taken off zero points
    taken = [(ONES, ONES, [(0, weights.stop - weights.start)])]
    if not alone:
        taken = [(pair, ONES if columns else pair, ranges) for pair, ranges in constants.items()]
    same, ones = _two_sums(lines, inst, numbers.terms[0].scale, weights, (*batch, sharing, half), taken)
    total = lines.let(Full(Const(-0.0, f32), (*blocks, n)))  # adds nothing
    if columns:
        less = _less_columns(lines, sum(common, 0.0) if alone else 0.0, weights)
        ones = lines.let(Elementwise("mul", (ones, lines.let(Reshape(less, (*blocks, 1))))))
        total = lines.let(Elementwise("add", (total, ones)))
    if not alone:
        total = lines.let(Elementwise("add", (total, same)))
    return lines.let(Reshape(total, shape))


def _two_sums(
    lines: _Lines,
    inst: Dot,
    scale: float,
    weights: Weights,
    rows: tuple[int, ...],
    taken: list[tuple[Pair, Pair, list[Range]]],
) -> tuple[Tensor, Tensor]:
    """Return two sums over k, [*rows[:-1], 1, rows[-1], n]: times two factors where it says, divided by `scale`."""
    n, kinds = register_type(inst.b).shape[-1], (*rows[:-1], 2, rows[-1])
    sums = lines.let(Full(Const(0.0, f32), (*rows[:-2], rows[-2] * 2 * rows[-1], n)))
    for first, second, ranges in taken:
        parts = (_addends(weights.dtype, x / scale) for x in (*first, *second))
        for even, odd, *ones in zip_longest(*parts, fillvalue=0.0):
            for start, stop in ranges:
                tile = _rows_of(lines, (*kinds, stop - start), weights.dtype, (even, odd), (ones[0], ones[1]))
                sums = lines.dot(tile, inst, (start, stop), sums)
    sums = lines.let(Reshape(sums, (*kinds, n)))
    begin, part = (0,) * len(rows[:-1]), (*rows[:-1], 1, rows[-1], n)
    return lines.let(Slice(sums, (*begin, 0, 0, 0), part)), lines.let(Slice(sums, (*begin, 1, 0, 0), part))


def _rows_of(lines: _Lines, shape: tuple[int, ...], dtype: DataType, first: Pair, second: Pair) -> Tensor:
    """Return rows [*batch, rows, k] of constants, by kind of a shape [*batch, sharing, kind, rows, k]."""
    tile = _alternating(lines, shape, dtype, second)
    if first != second:
        kind = lines.let(Arange(Const(0, i32), (*shape[:-1], 1), len(shape) - 3))
        here = lines.let(Elementwise("lt", (kind, Const(1, i32))))
        tile = lines.let(Elementwise("where", (here, _alternating(lines, shape, dtype, first), tile)))
    return lines.let(Reshape(tile, (*shape[:-4], prod(shape[-4:-1]), shape[-1])))


def _alternating(lines: _Lines, shape: tuple[int, ...], dtype: DataType, pair: Pair) -> Tensor:
    """Return a tile of one constant for even k and one for odd k."""
    tile = lines.let(Full(Const(pair[1], dtype), shape))
    if pair[0] == pair[1]:
        return tile
    k = lines.let(Arange(Const(0, i32), (*(1,) * (len(shape) - 1), shape[-1]), len(shape) - 1))
    even = lines.let(Elementwise("lt", (lines.let(Elementwise("and", (k, Const(1, i32)))), Const(1, i32))))
    return lines.let(Elementwise("where", (even, Const(pair[0], dtype), tile)))


def _addends(dtype: DataType, value: float) -> Iterator[float]:
    """Yield numbers of a type that add up to a value: one, if it is a number of the type."""
    while True:
        head = float(dtype.decode(dtype.encode(value)))
        assert isfinite(head)
        yield head
        value -= head
        if value == 0:
            return


def _less_columns(lines: _Lines, constant: float, weights: Weights) -> Tensor:
    """Return a constant minus zero points, [*rows, 1] in f32; added up two at a time where no number is too long.

    What is made is the opposite: casts bring a constant along, and a multiplication takes the other sign for nothing.
    """
    farthest = abs(constant) + BYTE * len(weights.columns)
    kind = weights.dtype if constant.is_integer() and counts_to(weights.dtype, farthest) else f32
    first, *others = (lines.cast(zero, kind) for zero in weights.columns)
    column = first if constant == 0.0 else lines.let(Elementwise("sub", (first, Const(constant, kind))))
    for zero in others:
        column = lines.let(Elementwise("add", (column, zero)))
    return lines.let(Elementwise("neg", (lines.cast(column, f32),)))


def _part(x: Tensor, dim: int, start: int, stop: int) -> Slice | None:
    """Return a slice of one dimension, None if that is all of it."""
    shape = list(register_type(x).shape)
    if shape[dim] == stop - start:
        return None
    offset = [0] * len(shape)
    offset[dim], shape[dim] = start, stop - start
    return Slice(x, tuple(offset), tuple(shape))


def _new(inst: Instruction, name: str) -> Tensor:
    kind = result_type(inst)
    assert isinstance(kind, RegisterType)
    return Tensor(name, kind)
