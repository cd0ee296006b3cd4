"""Divisibility and bounds of the scalar expressions of a program.

`analyze(program).of(expr)` says between which bounds an expression lies and which residue it has, whenever it is
evaluated. Sources: what the caller promises of parameters, constants, block ids (below the grid's extents), loop
counters, and that the extents of views are not negative.

`Analysis.at_least_zero` also proves inequalities between variables, as `k + 32 <= n` in `for k in range(0, n, 32)`
with n a multiple of 32: the expression is written as a sum of terms, terms are replaced by their symbolic bounds
(k <= n - 1), and what is left, a constant, is rounded up to the residue that the whole sum is known to have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import reduce

from tilus.dtypes import boolean
from tilus.errors import InternalError, assert_never
from tilus.ir.expr import BlockId, CastExpr, Const, Expr, Op, Var, dtype_of
from tilus.ir.instructions import GlobalView
from tilus.ir.node import Node, walk
from tilus.ir.program import Param, Program
from tilus.ir.stmt import Assign, For, InstStmt, Let
from tilus.ir.types import PointerType
from tilus.passes import ranges
from tilus.passes.ranges import ANY, Bound, Range

_PROOF_DEPTH = 5  # symbolic bounds replaced one after the other
_WIDEN_AFTER, _MAX_ROUNDS = 3, 1000


@dataclass(frozen=True, slots=True)
class Sum:
    """sum(coefficient * term) + constant: the linear part of an expression; its terms are other expressions."""

    terms: tuple[tuple[Expr, int], ...] = ()
    constant: int = 0

    def plus(self, other: Sum, factor: int = 1) -> Sum:
        """Return self + factor * other."""
        table = dict(self.terms)
        for term, coefficient in other.terms:
            table[term] = table.get(term, 0) + factor * coefficient
        kept = tuple((term, c) for term, c in table.items() if c)
        return Sum(kept, self.constant + factor * other.constant)

    def without(self, term: Expr) -> Sum:
        """Return the sum with one term left out."""
        return Sum(tuple(item for item in self.terms if item[0] != term), self.constant)


@dataclass(slots=True)
class Analysis:
    """What is known of the scalars of one program; made by `analyze`.

    Attributes
    ----------
    ranges : dict
        Range of every variable.
    lets : dict
        Definition of the variables that have exactly one.
    loops : dict
        The loops that count with each variable.
    grid : tuple of Expr
    alignment : dict
        Bytes that divide the address in a pointer parameter.
    changing : frozenset
        Variables that are given more than one value by assignments.
    """

    grid: tuple[Expr, ...]
    ranges: dict[Var, Range] = field(default_factory=dict)
    lets: dict[Var, Expr] = field(default_factory=dict)
    loops: dict[Var, list[For]] = field(default_factory=dict)
    alignment: dict[Var, int] = field(default_factory=dict)
    changing: frozenset[Node] = frozenset()
    _proofs: dict[tuple[Expr, int, Expr], bool] = field(default_factory=dict, repr=False)

    def of(self, expr: Expr) -> Range:
        """Return what is known of an integer or boolean expression; `ANY` of others."""
        match expr:
            case Var():
                return self.ranges.get(expr, ranges.of_type(expr.type.dtype))
            case Const(value=value, dtype=dtype):
                return ranges.exactly(int(value)) if dtype.is_integer or dtype.is_boolean else ANY
            case BlockId(axis=axis):
                return ranges.make(0, self.of(self.grid[axis]).hi - 1) if axis < len(self.grid) else ranges.exactly(0)
            case CastExpr(dtype=dtype, value=value):
                source = dtype_of(value)
                known = self.of(value) if source.is_integer or source.is_boolean else ANY
                return ranges.wrapped(known, dtype) if dtype.is_integer else ANY
            case Op(op=op, args=args):
                return self._of_op(expr, op, args)
            case _:
                assert_never(expr)

    def _of_op(self, expr: Op, op: str, args: tuple[Expr, ...]) -> Range:
        result = dtype_of(expr)
        if not (result.is_integer or result.is_boolean):
            return ANY
        operands = [self.of(a) for a in args]
        if op == "not":
            return ranges.logical_not(operands[0]) if result == boolean else ranges.sub(ranges.exactly(-1), operands[0])
        if op not in ranges.RULES:
            return ranges.of_type(result)
        return ranges.wrapped(ranges.RULES[op](*operands), result)

    def product(self, a: Expr, b: Expr) -> Range:
        """Return what is known of a * b."""
        return ranges.mul(self.of(a), self.of(b))

    def is_steady(self, expr: Expr) -> bool:
        """Whether an expression reads no variable that is given new values."""
        return not self.changing or not any(node in self.changing for node in walk(expr))

    # --- inequalities -----------------------------------------------------------------------------------------------

    def lies_inside(self, offset: Expr, size: int, extent: Expr) -> bool:
        """Whether 0 <= offset and offset + size <= extent is proved."""
        asked = (offset, size, extent)
        if asked not in self._proofs:  # accesses of one program ask the same again and again
            self._proofs[asked] = self._lies_inside(*asked)
        return self._proofs[asked]

    def _lies_inside(self, offset: Expr, size: int, extent: Expr) -> bool:
        start = self.sum_of(offset)
        if self.of(offset).lo < 0 and not self.at_least_zero(start):
            return False
        # The extent was read earlier than the offset: a variable that changes must not cancel between them.
        if self.is_steady(extent):
            return self.at_least_zero(self.sum_of(extent).plus(start, -1).plus(Sum((), -size)))
        return bool(self.of(offset).hi + size <= self.of(extent).lo)

    def sum_of(self, expr: Expr) -> Sum:
        """Write an integer expression as a sum; definitions of variables are put in their place."""
        match expr:
            case Const(value=value):
                return Sum((), int(value))
            case Var() if expr in self.lets and dtype_of(self.lets[expr]).is_integer:
                return self.sum_of(self.lets[expr])
            case Op(op="add" | "sub" as op, args=(a, b)):
                return self.sum_of(a).plus(self.sum_of(b), 1 if op == "add" else -1)
            case Op(op="neg", args=(a,)):
                return Sum().plus(self.sum_of(a), -1)
            case Op(op="mul", args=(a, b)):
                left, right = self.sum_of(a), self.sum_of(b)
                if not left.terms:
                    return Sum().plus(right, left.constant)
                return Sum().plus(left, right.constant) if not right.terms else Sum(((expr, 1),))
            case CastExpr(dtype=dtype, value=value) if dtype.is_integer and dtype_of(value).is_integer:
                known = self.of(value)
                fits = ranges.wrapped(known, dtype) == known
                return self.sum_of(value) if fits else Sum(((expr, 1),))
            case _:
                return Sum(((expr, 1),))

    def at_least_zero(self, total: Sum) -> bool:
        """Whether a sum is proved not to be negative, whenever it is evaluated."""
        return self._least(total, _PROOF_DEPTH) >= 0

    def _least(self, total: Sum, depth: int) -> Bound:
        """Return a lower bound of a sum."""
        whole = ranges.exactly(total.constant)
        for term, coefficient in total.terms:
            whole = ranges.add(whole, ranges.mul(self.of(term), ranges.exactly(coefficient)))
        best = whole.lo
        if depth > 0 and best < 0:
            for term, coefficient in total.terms:
                for scale, bound in self._bounds(term, upper=coefficient < 0):
                    if coefficient % scale == 0:
                        swapped = total.without(term).plus(bound, coefficient // scale)
                        best = max(best, self._least(swapped, depth - 1))
        if math.isinf(best) or whole.multiple == 0:
            return best
        return best + (whole.offset - int(best)) % whole.multiple

    def _bounds(self, term: Expr, upper: bool) -> list[tuple[int, Sum]]:
        """Return pairs (c, s) with c * term <= s, or >= s for a lower bound."""
        if not self.is_steady(term):
            return []
        match term:
            case Var() if len(self.loops.get(term, ())) == 1:
                return self._loop_bounds(self.loops[term][0], upper)
            case BlockId(axis=axis) if upper and axis < len(self.grid) and self.is_steady(self.grid[axis]):
                extent = self.sum_of(self.grid[axis])
                below = [(1, extent.plus(Sum((), -1)))]
                if extent.terms and extent.constant == 0 and len(extent.terms) == 1 and extent.terms[0][1] == 1:
                    # c * grid <= x gives c * block_id <= x - c.
                    below += [(c, s.plus(Sum((), -c))) for c, s in self._bounds(extent.terms[0][0], upper=True)]
                return below
            case Op(op="floordiv", args=(a, Const(value=value))) if int(value) > 0:
                n, dividend = int(value), self.sum_of(a)
                return [(n, dividend if upper else dividend.plus(Sum((), 1 - n)))]
            case Op(op="min" | "max" as op, args=args) if (op == "min") == upper:
                return [(1, self.sum_of(a)) for a in args]
            case _:
                return []

    def _loop_bounds(self, loop: For, upper: bool) -> list[tuple[int, Sum]]:
        # A bound is read once, when the loop begins; what changes later must not cancel against it.
        bound, shift = (loop.stop, -1) if upper else (loop.start, 0)
        if loop.step < 0:
            bound, shift = (loop.start, 0) if upper else (loop.stop, 1)
        return [(1, self.sum_of(bound).plus(Sum((), shift)))] if self.is_steady(bound) else []


def analyze(program: Program) -> Analysis:
    """Return what is known of the scalars of a program."""
    analysis = Analysis(program.grid)
    definitions: dict[Var, list[Expr]] = {}
    for param in program.params:
        _enter_param(analysis, param)
    for node in walk(program):
        match node:
            case Let(var=var, value=value) | Assign(var=var, value=value):
                definitions.setdefault(var, []).append(value)
            case For(var=var):
                analysis.loops.setdefault(var, []).append(node)
            case InstStmt(out=Var() as var):
                analysis.ranges[var] = ranges.of_type(var.type.dtype)
            case InstStmt(inst=GlobalView(shape=extents)):
                _enter_extents(analysis, extents)
            case _:
                pass
    twice = {v for v, values in definitions.items() if len(values) > 1}
    analysis.changing = frozenset(twice | {v for v in definitions if v in analysis.ranges or v in analysis.loops})
    for var in [v for v in analysis.loops if v in analysis.changing]:
        del analysis.loops[var]
        analysis.ranges[var] = ranges.of_type(var.type.dtype)
    analysis.lets = {v: d[0] for v, d in definitions.items() if v not in analysis.changing and analysis.is_steady(d[0])}
    _fixpoint(analysis, definitions)
    return analysis


def _enter_param(analysis: Analysis, param: Param) -> None:
    if isinstance(param.var.type, PointerType):
        analysis.alignment[param.var] = param.multiple
    elif param.var.type.dtype.is_integer:
        known = ranges.of_type(param.var.type.dtype)
        analysis.ranges[param.var] = ranges.make(known.lo, known.hi, param.multiple)


def _enter_extents(analysis: Analysis, extents: tuple[Expr, ...]) -> None:
    """Parameters that are the extent of a view are not negative."""
    for extent in extents:
        if isinstance(extent, Var) and extent in analysis.ranges:
            known = analysis.ranges[extent]
            analysis.ranges[extent] = ranges.make(max(known.lo, 0), known.hi, known.multiple, known.offset)


def _fixpoint(analysis: Analysis, definitions: dict[Var, list[Expr]]) -> None:
    """Compute the ranges of variables and loop counters: rise from nothing until nothing changes.

    A definition that reads a variable without a range yet counts as never reached so far. Residues have only finite
    chains; bounds that still move after a few rounds are given up.
    """
    waiting = {v for v in (*definitions, *analysis.loops) if v not in analysis.ranges}
    for turn in range(_MAX_ROUNDS):
        changed = False
        for var in (*definitions, *analysis.loops):
            new = _defined_range(analysis, var, definitions.get(var), waiting)
            old = analysis.ranges.get(var)
            if new is None or new == old:
                continue
            if old is not None and turn > _WIDEN_AFTER:
                new = _widened(old, new, var)
            waiting.discard(var)
            changed |= new != old
            analysis.ranges[var] = new
        if not changed:
            return
    raise InternalError("the ranges of a program's variables do not settle")


def _widened(old: Range, new: Range, var: Var) -> Range:
    whole = ranges.of_type(var.type.dtype)
    lo, hi = (whole.lo if new.lo < old.lo else new.lo), (whole.hi if new.hi > old.hi else new.hi)
    return ranges.make(lo, hi, new.multiple, new.offset)


def _defined_range(analysis: Analysis, var: Var, definitions: list[Expr] | None, waiting: set[Var]) -> Range | None:
    """Return the range of all that a variable is given so far, None if nothing yet."""

    def waits(*exprs: Expr) -> bool:
        return bool(waiting) and any(node in waiting for expr in exprs for node in walk(expr))

    if definitions is None:
        found = [_loop_range(analysis, loop) for loop in analysis.loops[var] if not waits(loop.start, loop.stop)]
    else:
        found = [analysis.of(d) for d in definitions if not waits(d)]
    if var in analysis.ranges:
        found.append(analysis.ranges[var])
    return reduce(ranges.join, found) if found else None


def _loop_range(analysis: Analysis, loop: For) -> Range:
    start, stop, step = analysis.of(loop.start), analysis.of(loop.stop), loop.step
    multiple = math.gcd(start.multiple, step)
    if step > 0:
        return ranges.make(start.lo, max(stop.hi - 1, start.lo), multiple, start.offset)
    return ranges.make(min(stop.lo + 1, start.hi), start.hi, multiple, start.offset)
