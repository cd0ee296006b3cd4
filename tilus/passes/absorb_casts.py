"""Requires a verified program; ensures that casts of codes with a bit layout are unpacked as cheaply as can be.

A GPU's matrix product need not be given the weights themselves. Where a weight is `number * scale + constant`, with
both known now and the same for whole ranges of K::

    sum_k weight x  =  sum_r scale_r * (sum_k in r  number x)  +  sum_r constant_r * (sum_k in r  x)

so a range is a product of its own, a constant is a product with ones, and scales multiply accumulators. A zero point
that is the same along K is taken off with the sums of x too. That costs a few instructions per accumulator, and saves
one per weight: it is done for few accumulators. Other casts become an `unpack` to values.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import gcd, prod

from tilus.casts import unpack_values
from tilus.dtypes import DataType, Float, bf16, f16, f32
from tilus.ir.expr import Const, Tensor, Var
from tilus.ir.instructions import (
    Cast,
    Copy,
    Dot,
    Elementwise,
    Full,
    Instruction,
    Reshape,
    Slice,
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
from tilus.passes.weight_numbers import FRAGMENT_ROWS, Numbers, Range, Term, find_numbers, pays
from tilus.passes.weights import BYTE, Weights, counts_to, find_weights, single_definitions

LEAST_F16 = 2.0**-24
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
        weights = find_weights(inst.a, self.made)
        if weights is None or register_type(inst.c).dtype != f32:
            return None
        numbers = find_numbers(weights)
        if numbers is None or not pays(inst, numbers, weights, self.program.num_warps):
            return None
        lines, scale = _Lines(stmt), numbers.terms[0].scale
        # The sums come first: they need no weights, so the tensor cores are at work while those are unpacked.
        total = _sums(lines, inst, numbers, weights, self.program.num_warps)
        for term in numbers.terms:
            tile = self.unpack(weights, term.form.name, term.positions)
            if term.scale == scale:
                total = _product(lines, inst, term, tile, weights.start, total)
            else:
                part = _product(lines, inst, term, tile, weights.start, lines.zeros(inst.c))
                total = lines.let(Elementwise("add", (total, lines.times(part, term.scale / scale))))
        alone = self.is_zero(inst.c)
        if alone and out in self.scalings:
            self.scaled[out] = scale, weights.dtype
        else:
            total = lines.times(total, scale)
        lines.define(out, Copy(total) if alone else Elementwise("add", (total, inst.c)))
        return tuple(lines.statements)

    def is_zero(self, x: Tensor) -> bool:
        stmt = self.made.get(x)
        return stmt is not None and isinstance(stmt.inst, Full) and stmt.inst.value == Const(0.0, f32)

    @cached_property
    def scalings(self) -> set[Tensor]:
        """Tensors of one definition whose only use is to be multiplied by a smaller tile."""
        uses = Counter(x for stmt in inst_stmts(self.program) for x in register_operands(stmt.inst))
        found = set()
        for stmt in inst_stmts(self.program):
            match stmt.inst:
                case Elementwise(op="mul", args=(Tensor() as x, Tensor() as scale)) if x in self.made and uses[x] == 1:
                    if register_type(scale).numel < register_type(x).numel:
                        found.add(x)
                case _:
                    pass
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

    A sum is a product with a constant. Its rows are equal: as many are made as warps need that share a matrix, and each
    warp uses them for all of its rows. The constant is one that leaves nothing to multiply, if its type has it.
    """
    if not numbers.constants:
        return lines.zeros(inst.c)
    *batch, rows, n = shape = register_type(inst.c).shape
    height, scale = gcd(rows, FRAGMENT_ROWS), numbers.terms[0].scale
    sharing = gcd(rows // height, max(warps // prod(batch), 1))
    blocks = (*batch, sharing, rows // height // sharing, height)
    total = lines.let(Full(Const(-0.0, f32), (*blocks, n)))  # adds nothing
    for constant, ranges in numbers.constants.items():
        wanted = (1.0 if weights.columns else constant) / scale
        factor = wanted if _holds(weights.dtype, wanted) else 1.0
        sums = lines.let(Full(Const(0.0, f32), (*batch, sharing * height, n)))
        for start, stop in ranges:
            factors = lines.let(Full(Const(factor, weights.dtype), (*batch, sharing * height, stop - start)))
            sums = lines.dot(factors, inst, (start, stop), sums)
        sums = lines.let(Reshape(lines.times(sums, wanted / factor), (*batch, sharing, 1, height, n)))
        if weights.columns:
            column = _less_columns(lines, constant, weights)
            sums = lines.let(Elementwise("mul", (sums, lines.let(Reshape(column, (*blocks, 1))))))
        total = lines.let(Elementwise("add", (total, sums)))
    return lines.let(Reshape(total, shape))


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


def _holds(dtype: DataType, value: float) -> bool:
    """Whether a type has a number."""
    return float(dtype.decode(dtype.encode(value))) == value


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
