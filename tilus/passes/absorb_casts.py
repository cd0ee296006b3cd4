"""Requires a verified program; ensures that casts of codes with a bit layout are unpacked as cheaply as can be.

A GPU's matrix product need not be given the weights themselves. Where a weight is `number * scale + bias`, with scale
and bias known now and the same for whole ranges of K (position classes)::

    sum_k weight x  =  sum_c scale_c * (sum_k in c  (number + bias_c / scale_c) x)

so a class is a product of its own, whose bias is a product with a constant, and scales multiply accumulators. A zero
point that is the same along K is taken off with the sum of x. That costs a few instructions per accumulator, and saves
one per weight: it is done for few accumulators. Other casts become an `unpack` to values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import gcd

import numpy as np

from tilus.casts import Form, Unpacking, best_form, fits, linear, parts, unpack, unpack_values
from tilus.dtypes import DataType, Float, f32
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
from tilus.ir.stmt import InstStmt, Stmt
from tilus.ir.target import Target
from tilus.ir.types import RegisterType
from tilus.layouts import BitLayout, RegisterLayout, index_table
from tilus.passes.dead_code import remove_dead
from tilus.passes.tensors import inst_stmts, register_operands, register_type

_HALVES = ("f16", "bf16")
_FRAGMENT_ROWS = 16  # of a tensor core's left operand
_MULTIPLY_ADD = 0.5  # instructions per weight that make values of numbers: one for each pair


def absorb_casts(program: Program, target: Target) -> Program:
    """Replace casts of codes with a bit layout; the same program where there are none, or the target is no GPU."""
    if target.kind != "cuda" or not any(_has_bits(stmt) for stmt in inst_stmts(program)):
        return program
    return remove_dead(_Absorber(program).run())


def _has_bits(stmt: InstStmt) -> bool:
    return isinstance(stmt.inst, View) and stmt.inst.bits is not None


@dataclass(frozen=True, slots=True)
class _Codes:
    """A part of the codes that a view makes, cast to another type: the view's rows, and k in [start, stop)."""

    view: InstStmt
    dtype: DataType
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class _Weights:
    """Codes with a number added, and tiles of one column subtracted; all values lie in [least, most]."""

    codes: _Codes
    least: float
    most: float
    offset: float = 0.0
    columns: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class _Range:
    """Where along k the codes of some slots lie: [start, stop), all at one position of their lanes."""

    start: int
    stop: int
    position: int


class _Absorber:
    def __init__(self, program: Program) -> None:
        self.program = program
        counts = Counter(stmt.out for stmt in inst_stmts(program))
        self.made = {s.out: s for s in inst_stmts(program) if isinstance(s.out, Tensor) and counts[s.out] == 1}
        self.unpacked: dict[tuple[int, DataType, str], Tensor] = {}
        self.after: dict[int, list[InstStmt]] = {}  # by the identity of a view: what is to stand behind it
        self.scaled: dict[Tensor, float] = {}  # what is left to multiply where a product is scaled anyway

    def run(self) -> Program:
        def replaced(node: Node) -> tuple[Stmt, ...] | None:
            if not isinstance(node, InstStmt) or not isinstance(node.out, Tensor):
                return None
            if isinstance(node.inst, Dot):
                return self.product(node, node.inst)
            if isinstance(node.inst, Elementwise):
                return self.scaling(node, node.inst)
            return self.value(node, node.inst) if isinstance(node.inst, Cast) else None

        def placed(node: Node) -> tuple[Stmt, ...] | None:
            return (node, *self.after[id(node)]) if isinstance(node, InstStmt) and id(node) in self.after else None

        # Statements are told apart by identity, which the first rewriting keeps for views.
        new: Program = rewrite(rewrite(self.program, replaced), placed)
        return new

    # --- what a tile is ---------------------------------------------------------------------------------------------

    def weights(self, x: Tensor) -> _Weights | None:
        """Return what a tile is made of, if that is codes in a bit layout, a number and columns of whole numbers."""
        stmt = self.made.get(x)
        match stmt:
            case InstStmt(inst=Cast(x=codes, dtype=dtype)):
                found = self.codes(codes, dtype)
                return None if found is None else _Weights(found, *_range(_view(found).dtype))
            case InstStmt(inst=Copy(x=y)):
                return self.weights(y)
            case InstStmt(inst=Slice(x=y) as part_of):
                inner = self.weights(y)
                part = None if inner is None else _narrowed(inner.codes, part_of, register_type(y).shape)
                return None if inner is None or part is None else replace(inner, codes=part)
            case InstStmt(inst=Elementwise(op="add" | "sub" as op, args=(Tensor() as y, other))):
                inner = self.weights(y)
                return None if inner is None else self.shifted(inner, -1 if op == "sub" else 1, other)
            case _:
                return None

    def shifted(self, weights: _Weights, sign: int, other: Node) -> _Weights | None:
        """Return weights with something added, if they stay whole numbers that their type holds: nothing is rounded."""
        if linear(_view(weights.codes).dtype) is None:
            return None
        if isinstance(other, Const) and float(other.value).is_integer():
            step = sign * float(other.value)
            moved = replace(weights, offset=weights.offset + step, least=weights.least + step, most=weights.most + step)
            return moved if _is_exact(moved) else None
        if isinstance(other, Tensor) and sign < 0 and register_type(other).shape == (*_rows(weights.codes), 1):
            made = self.made.get(other)
            if made is None or not isinstance(made.inst, Cast) or not _is_byte(made.inst.x):
                return None
            least, most = _range(register_type(made.inst.x).dtype)
            columns = (*weights.columns, other)
            moved = replace(weights, columns=columns, least=weights.least - most, most=weights.most - least)
            return moved if _is_exact(moved) else None
        return None

    def codes(self, x: Tensor, dtype: DataType) -> _Codes | None:
        stmt = self.made.get(x)
        match stmt:
            case InstStmt(inst=View(bits=BitLayout(), layout=layout)) if layout.rank in (2, 3):
                return _Codes(stmt, dtype, 0, layout.shape[-1])
            case InstStmt(inst=Copy(x=y)):
                return self.codes(y, dtype)
            case InstStmt(inst=Slice(x=y) as part_of):
                inner_codes = self.codes(y, dtype)
                return None if inner_codes is None else _narrowed(inner_codes, part_of, register_type(y).shape)
            case _:
                return None

    # --- values -----------------------------------------------------------------------------------------------------

    def value(self, stmt: InstStmt, inst: Cast) -> tuple[Stmt, ...] | None:
        """Return what takes the place of a cast: a part of the values of the whole view."""
        codes = self.codes(inst.x, inst.dtype)
        if codes is None or codes.dtype.name not in _HALVES:
            return None
        view = _view(codes)
        assert view.bits is not None
        if unpack_values(view.bits.repeated(1), view.dtype, codes.dtype) is None:
            return None
        whole = self.unpack(codes, "value", ())
        return (replace(stmt, inst=_part(whole, codes)),)

    def unpack(self, codes: _Codes, form: str, positions: tuple[int, ...]) -> Tensor:
        key = id(codes.view), codes.dtype, form
        if key not in self.unpacked:
            view = _view(codes)
            assert view.bits is not None
            inst = Unpack(view.x, view.dtype, codes.dtype, view.layout, view.bits, form, positions, loc=view.loc)
            tile = _new(inst, "weights")
            self.unpacked[key] = tile
            self.after.setdefault(id(codes.view), []).append(InstStmt(tile, inst, loc=codes.view.loc))
        return self.unpacked[key]

    # --- products ---------------------------------------------------------------------------------------------------

    def product(self, stmt: InstStmt, inst: Dot) -> tuple[Stmt, ...] | None:
        """Return the products of the classes and their sum; None where that is not possible, or does not pay."""
        weights = self.weights(inst.a)
        if weights is None or weights.codes.dtype.name not in _HALVES or register_type(inst.c).dtype != f32:
            return None
        terms = _terms(weights)
        if not terms or not _pays(inst, terms, weights, self.program.num_warps):
            return None
        lines, scale = _Lines(stmt), terms[0].scale
        # The sums come first: they need no weights, so the tensor cores are at work while those are unpacked.
        total = _sums(lines, inst, terms, weights, scale)
        for term in terms:
            numbers = self.unpack(weights.codes, term.form.name, term.positions)
            if term.scale == scale:
                total = _product(lines, inst, term, numbers, weights.codes, total)
            else:
                part = _product(lines, inst, term, numbers, weights.codes, lines.zeros(inst.c))
                total = lines.let(Elementwise("add", (total, lines.times(part, term.scale / scale))))
        if self.is_zero(inst.c) and stmt.out in self.made and stmt.out in self.scalings:
            assert isinstance(stmt.out, Tensor)
            self.scaled[stmt.out] = scale
        else:
            total = lines.times(total, scale)
        lines.define(stmt.out, Copy(total) if self.is_zero(inst.c) else Elementwise("add", (total, inst.c)))
        return tuple(lines.statements)

    def is_zero(self, x: Tensor) -> bool:
        stmt = self.made.get(x)
        return stmt is not None and isinstance(stmt.inst, Full) and stmt.inst.value == Const(0.0, f32)

    @cached_property
    def scalings(self) -> set[Tensor]:
        """Products whose only use is to be multiplied by a smaller tile."""
        uses = Counter(x for stmt in inst_stmts(self.program) for x in register_operands(stmt.inst))
        found = set()
        for stmt in inst_stmts(self.program):
            match stmt.inst:
                case Elementwise(op="mul", args=(Tensor() as x, Tensor() as scale)):
                    if uses[x] == 1 and register_type(scale).numel < register_type(x).numel:
                        found.add(x)
                case _:
                    pass
        return found

    def scaling(self, stmt: InstStmt, inst: Elementwise) -> tuple[Stmt, ...] | None:
        """Multiply the scales of a group by what is left of a product's own scale: they are fewer."""
        if inst.op != "mul" or not isinstance(inst.args[0], Tensor) or inst.args[0] not in self.scaled:
            return None
        x, scale = inst.args
        assert isinstance(x, Tensor)
        assert isinstance(scale, Tensor)
        lines = _Lines(stmt)
        lines.define(stmt.out, Elementwise("mul", (x, lines.times(scale, self.scaled[x]))))
        return tuple(lines.statements)


@dataclass(frozen=True, slots=True)
class _Term:
    """One product: numbers at one position of their lanes, or one part of them.

    Attributes
    ----------
    form : Form
    positions : tuple of int
        Of all slots.
    position : int
        Of those that take part.
    ranges : list of (int, int)
        Where along k they lie.
    offset : float
        Added to the value of each.
    """

    form: Form
    positions: tuple[int, ...]
    position: int
    ranges: list[tuple[int, int]]
    offset: float

    @property
    def scale(self) -> float:
        return self.form.scale(self.position)

    @property
    def constant(self) -> float:
        """What is added to every number times its scale."""
        return self.form.bias(self.position) + self.offset


def _terms(weights: _Weights) -> list[_Term]:
    """Return the products whose sum is that with the weights; none if there is no way."""
    view, found = _view(weights.codes), []
    assert view.bits is not None
    unpackings = _numbers(view.bits.repeated(1), view.dtype, weights.codes.dtype)
    # Of a code in parts, the first takes the constants of both: that is one product less.
    others = sum(_only_bias(unpacking) for unpacking in unpackings[1:])
    for number, unpacking in enumerate(unpackings):
        ranges = _ranges(view.layout, view.bits, unpacking.positions)
        if ranges is None:
            return []
        inside = list(_clipped(ranges, weights.codes))
        for position in sorted({r.position for r in inside}):
            places = [(r.start, r.stop) for r in inside if r.position == position]
            offset = -_only_bias(unpacking) if number else weights.offset + others
            found.append(_Term(unpacking.form, unpacking.positions, position, places, offset))
    return found


def _only_bias(unpacking: Unpacking) -> float:
    """Return the bias of a part: all of its codes lie at one position."""
    [position] = set(unpacking.positions)
    return unpacking.form.bias(position)


def _product(lines: _Lines, inst: Dot, term: _Term, numbers: Tensor, codes: _Codes, total: Tensor) -> Tensor:
    rows = _rows(codes)
    for start, stop in term.ranges:
        w = lines.slice(numbers, (*(0 for _ in rows), start), (*rows, stop - start))
        total = lines.let(Dot(w, lines.inner(inst.b, start - codes.start, stop - codes.start), total))
    return total


def _constants(terms: list[_Term]) -> dict[float, list[tuple[int, int]]]:
    """Return where along k each constant is added: terms of one form share it, parts of a code stand at one place."""
    found: dict[float, list[tuple[int, int]]] = {}
    for term in terms:
        if term.form.name == terms[0].form.name:
            found.setdefault(term.constant, []).extend(term.ranges)
    return {constant: _joined(sorted(ranges)) for constant, ranges in found.items()}


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], stop
        else:
            joined.append((start, stop))
    return joined


def _sums(lines: _Lines, inst: Dot, terms: list[_Term], weights: _Weights, scale: float) -> Tensor:
    """Return what the products begin with: sums over k times what is the same for all weights of a row.

    A sum is a product with a constant. Its rows are equal: as many are made as a fragment has. The constant is chosen
    so that there is nothing left to multiply, if its type has that number.
    """
    kind, (*batch, rows, n), start = weights.codes.dtype, register_type(inst.c).shape, weights.codes.start
    constants = {c: ranges for c, ranges in _constants(terms).items() if c or weights.columns}
    if not constants:
        return lines.zeros(inst.c)
    height = gcd(rows, _FRAGMENT_ROWS)
    total = lines.let(Full(Const(-0.0, f32), (*batch, rows // height, height, n)))  # adds nothing
    for constant, ranges in constants.items():
        wanted = (1.0 if weights.columns else constant) / scale
        factor = wanted if _holds(kind, wanted) else 1.0
        sums = lines.let(Full(Const(0.0, f32), (*batch, height, n)))
        for first, last in ranges:
            factors = lines.let(Full(Const(factor, kind), (*batch, height, last - first)))
            sums = lines.let(Dot(factors, lines.inner(inst.b, first - start, last - start), sums))
        sums = lines.let(Reshape(lines.times(sums, wanted / factor), (*batch, 1, height, n)))
        if weights.columns:
            column = lines.let(Full(Const(constant, f32), (*batch, rows, 1)))
            for zero in weights.columns:
                column = lines.let(Elementwise("sub", (column, lines.let(Cast(zero, f32)))))
            column = lines.let(Reshape(column, (*batch, rows // height, height, 1)))
            sums = lines.let(Elementwise("mul", (sums, column)))
        total = lines.let(Elementwise("add", (total, sums)))
    return lines.let(Reshape(total, register_type(inst.c).shape))


@dataclass(slots=True)
class _Lines:
    """Statements under construction, all at the place of one of the author's."""

    origin: InstStmt
    statements: list[Stmt]

    def __init__(self, origin: InstStmt) -> None:
        self.origin, self.statements = origin, []

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

    def inner(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Return some rows of a product's right operand."""
        *batch, _, n = register_type(x).shape
        return self.slice(x, (*(0 for _ in batch), start, 0), (*batch, stop - start, n))

    def slice(self, x: Tensor, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        return x if register_type(x).shape == shape else self.let(Slice(x, offset, shape))


def _pays(inst: Dot, terms: list[_Term], weights: _Weights, warps: int) -> bool:
    """Whether instructions on accumulators are fewer than those that would make values of all numbers.

    Counted for a thread's share of a fragment's rows: 4 accumulators for 8 columns, and 8 weights for 16 of k.
    """
    k, n = register_type(inst.b).shape[-2:]
    sums = len([constant for constant in _constants(terms) if constant or weights.columns])
    if not sums and all(term.scale == 1.0 for term in terms):
        return True  # numbers are values
    count = len({term.form.name for term in terms})
    scalings = sum(term.scale != terms[0].scale for term in terms) + sums * bool(weights.columns)
    blocks = register_type(inst.c).numel / n / (_FRAGMENT_ROWS * warps)  # of rows in a warp: they share sums
    products = count - 1 + bool(sums) / max(blocks, 1)
    extra = (n / 8) * (4 * scalings + products * k / 16)
    return extra < _MULTIPLY_ADD * k / 2 * (count + bool(weights.columns))


def _numbers(bits: BitLayout, source: DataType, target: DataType) -> list[Unpacking]:
    """Return how the numbers are had that make up the codes; none if they cannot be."""
    form = best_form(bits, source, target)
    wanted = (form,) if form is not None else parts(source, target) or ()
    return [unpack(bits, form) for form in wanted if fits(bits, form)]


def _ranges(layout: RegisterLayout, bits: BitLayout, positions: tuple[int, ...]) -> list[_Range] | None:
    """Return the ranges of k whose codes lie at one position; None if that differs between rows."""
    k, extent = index_table(layout)[..., -1], layout.shape[-1]
    slots = np.arange(layout.local_size) // (bits.units * bits.lanes)
    place = np.broadcast_to(np.array(positions)[slots], k.shape)
    least, most = (np.full(extent, start) for start in (max(positions), min(positions)))
    np.minimum.at(least, k, place)
    np.maximum.at(most, k, place)
    if (least != most).any():
        return None
    borders = [0, *(int(i) + 1 for i in np.flatnonzero(np.diff(least))), extent]
    return [_Range(a, b, int(least[a])) for a, b in pairwise(borders)]


def _clipped(ranges: list[_Range], codes: _Codes) -> Iterator[_Range]:
    for r in ranges:
        start, stop = max(r.start, codes.start), min(r.stop, codes.stop)
        if start < stop:
            yield replace(r, start=start, stop=stop)


def _view(codes: _Codes) -> View:
    assert isinstance(codes.view.inst, View)
    return codes.view.inst


def _rows(codes: _Codes) -> tuple[int, ...]:
    return _view(codes).layout.shape[:-1]


def _holds(dtype: DataType, value: float) -> bool:
    """Whether a type has a number."""
    return float(dtype.decode(dtype.encode(value))) == value


def _range(dtype: DataType) -> tuple[float, float]:
    return float(dtype.min_value), float(dtype.max_value)


def _is_exact(weights: _Weights) -> bool:
    """Whether the type of the weights holds every whole number between the least and the most."""
    dtype = weights.codes.dtype
    assert isinstance(dtype, Float)
    return max(-weights.least, weights.most) <= float(2 << dtype.mantissa_bits)


def _is_byte(x: Tensor) -> bool:
    dtype = register_type(x).dtype
    return dtype.is_integer and dtype.nbits <= 8


def _narrowed(codes: _Codes, inst: Slice, shape: tuple[int, ...]) -> _Codes | None:
    """Return a slice of codes that keeps all rows."""
    if any(inst.offset[:-1]) or inst.shape[:-1] != shape[:-1]:
        return None
    start = codes.start + inst.offset[-1]
    return replace(codes, start=start, stop=start + inst.shape[-1])


def _part(whole: Tensor, codes: _Codes) -> Instruction:
    rows = _rows(codes)
    shape = (*rows, codes.stop - codes.start)
    return (
        Copy(whole) if register_type(whole).shape == shape else Slice(whole, (*(0 for _ in rows), codes.start), shape)
    )


def _new(inst: Instruction, name: str) -> Tensor:
    kind = result_type(inst)
    assert isinstance(kind, RegisterType)
    return Tensor(name, kind)
