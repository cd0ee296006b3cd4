"""Weights, recognised: codes that a view with a bit layout makes, cast to a half type, with whole numbers added.

Every tensor on the way has one definition, which the verifier knows to come before every use: so what a chain of
definitions says of a tile is true wherever the tile is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from tilus.casts import linear
from tilus.dtypes import DataType, Float
from tilus.ir.expr import Const, Tensor
from tilus.ir.instructions import Cast, Copy, Elementwise, Slice, View
from tilus.ir.node import Node
from tilus.ir.program import Program
from tilus.ir.stmt import InstStmt, inst_stmts
from tilus.layouts import BitLayout
from tilus.passes.tensors import register_type

_HALVES = ("f16", "bf16")
BYTE = 255  # no zero point is farther from 0

Definitions: TypeAlias = Mapping[Tensor, InstStmt]


@dataclass(frozen=True, slots=True)
class Weights:
    """Codes [*rows, start:stop] of a view as numbers of a type, plus `offset`, minus `columns`.

    Attributes
    ----------
    made : InstStmt
        The view.
    dtype : DataType
        f16 or bf16.
    start, stop : int
        Part of the view's last dimension.
    least, most : float
        All values lie between these.
    offset : float
    columns : tuple of Tensor [*rows, 1]
        Whole numbers of the same type, cast from bytes.
    """

    made: InstStmt
    dtype: DataType
    start: int
    stop: int
    least: float
    most: float
    offset: float = 0.0
    columns: tuple[Tensor, ...] = ()

    @property
    def view(self) -> View:
        """The instruction that makes the codes."""
        assert isinstance(self.made.inst, View)
        return self.made.inst

    @property
    def bits(self) -> BitLayout:
        """Where the codes' bits lie."""
        assert self.view.bits is not None
        return self.view.bits


def single_definitions(program: Program) -> Definitions:
    """Return the tensors that one statement defines, with that."""
    counts = Counter(stmt.out for stmt in inst_stmts(program))
    return {s.out: s for s in inst_stmts(program) if isinstance(s.out, Tensor) and counts[s.out] == 1}


def find_weights(x: Tensor, made: Definitions, dtype: DataType | None = None) -> Weights | None:
    """Return what a tile is made of, None if these are no weights; with `dtype`, what its cast to that is."""
    stmt = made.get(x)
    match stmt:
        case InstStmt(inst=View(bits=BitLayout()) as view) if dtype is not None and dtype.name in _HALVES:
            return Weights(stmt, dtype, 0, view.layout.shape[-1], *_bounds(view.dtype))
        case InstStmt(inst=Cast(x=y, dtype=to)) if dtype is None:
            return find_weights(y, made, to)
        case InstStmt(inst=Copy(x=y)):
            return find_weights(y, made, dtype)
        case InstStmt(inst=Slice(x=y) as part):
            inner = find_weights(y, made, dtype)
            return None if inner is None else _narrowed(inner, part)
        case InstStmt(inst=Elementwise(op="add" | "sub" as op, args=(Tensor() as y, other))) if dtype is None:
            inner = find_weights(y, made)
            return None if inner is None else _moved(inner, op, other, made)
        case _:
            return None


def _narrowed(weights: Weights, part: Slice) -> Weights | None:
    """Return a part of weights that has all rows."""
    if part.shape[:-1] != weights.view.layout.shape[:-1]:
        return None
    start = weights.start + part.offset[-1]
    return replace(weights, start=start, stop=start + part.shape[-1])


def _moved(weights: Weights, op: str, other: Node, made: Definitions) -> Weights | None:
    """Return weights with something added or subtracted, if that is exact: whole numbers that the type counts to."""
    if linear(weights.view.dtype) is None:
        return None
    match other:
        case Const(value=value) if float(value).is_integer() and counts_to(weights.dtype, value):
            step = float(value) if op == "add" else -float(value)
            low, high = step, step
            moved = replace(weights, offset=weights.offset + step)
        case Tensor() if op == "sub" and (zeros := _bytes_of(other, weights, made)) is not None:
            least, most = _bounds(zeros)
            low, high = -most, -least
            moved = replace(weights, columns=(*weights.columns, other))
        case _:
            return None
    moved = replace(moved, least=weights.least + low, most=weights.most + high)
    return moved if counts_to(moved.dtype, moved.least) and counts_to(moved.dtype, moved.most) else None


def _bytes_of(column: Tensor, weights: Weights, made: Definitions) -> DataType | None:
    """Return the type that a column is cast from, None if it is no column of the rows or no integer of a byte."""
    stmt = made.get(column)
    if stmt is None or not isinstance(stmt.inst, Cast):
        return None
    if register_type(column).shape != (*weights.view.layout.shape[:-1], 1):
        return None
    dtype = register_type(stmt.inst.x).dtype
    return dtype if dtype.is_integer and dtype.nbits <= 8 else None


def _bounds(dtype: DataType) -> tuple[float, float]:
    return float(dtype.min_value), float(dtype.max_value)


def counts_to(dtype: DataType, value: float) -> bool:
    """Whether a type has every whole number up to a value."""
    assert isinstance(dtype, Float)
    return abs(value) <= float(2 << dtype.mantissa_bits)
