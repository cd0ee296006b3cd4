"""A power of two in all that a loop adds to an accumulator multiplies the accumulator instead, once, behind the loop.

    for ...: acc = acc + x * (scale * factor)      becomes      for ...: acc = acc + x * scale;  acc = acc * factor

No bit of the result changes where nothing is subnormal without the factor; the caller answers for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TypeAlias

from tilus.ir.expr import Const, Tensor, Var
from tilus.ir.instructions import Elementwise, Full
from tilus.ir.node import Node, rewrite
from tilus.ir.program import Program
from tilus.ir.stmt import For, InstStmt, Stmt, inst_stmts
from tilus.passes.tensors import register_operands, register_type
from tilus.passes.weights import Definitions, single_definitions

Factors: TypeAlias = Mapping[Tensor, tuple[Tensor, float]]


def take_factors_out(program: Program, scaled: Factors) -> Program:
    """Take factors out of the loops of a program's first level.

    Parameters
    ----------
    program : Program
    scaled : mapping of Tensor to (Tensor, float)
        Tensors that are another one times a power of two, without which their products are no less exact.
    """
    return replace(program, body=tuple(_statements(program, scaled))) if scaled else program


def _statements(program: Program, scaled: Factors) -> Iterator[Stmt]:
    uses = Counter(x for stmt in inst_stmts(program) for x in register_operands(stmt.inst))
    made, counts = _read_once(program, uses), Counter(stmt.out for stmt in inst_stmts(program))
    zeros: list[Tensor] = []
    for stmt in program.body:
        match stmt:
            case InstStmt(out=Tensor() as out, inst=Full(value=Const(value=0.0))):
                zeros.append(out)
                yield stmt
            case For():
                sums = {acc: found for acc in zeros if (found := _sum_in(stmt, acc, counts, uses, made, scaled))}
                yield _without(stmt, {p for products in sums.values() for p in products}, scaled)
                for acc, products in sums.items():
                    factor = Const(next(iter(products.values())), register_type(acc).dtype)
                    yield InstStmt(acc, Elementwise("mul", (acc, factor), loc=stmt.loc), loc=stmt.loc)
            case _:
                yield stmt


def _read_once(program: Program, uses: Counter[Tensor]) -> Definitions:
    """Return the tensors of one definition and one use: who changes such a product changes nothing but a sum."""
    return {x: stmt for x, stmt in single_definitions(program).items() if uses[x] == 1}


def _sum_in(
    loop: For,
    acc: Tensor,
    counts: Counter[Tensor | Var | None],
    uses: Counter[Tensor],
    made: Definitions,
    scaled: Factors,
) -> dict[Tensor, float]:
    """Return the products that a loop adds to an accumulator, with the factor of all; none where it does other things.

    The accumulator is 0 before the loop, which has all other definitions of it. Products may be added by way of sums
    of one definition, which nothing but such additions reads.
    """
    products: dict[Tensor, float] = {}
    sums, definitions, read = {acc}, 0, Counter[Tensor]()
    inside = {s.out for s in inst_stmts(loop)}
    for line in inst_stmts(loop):
        operands = register_operands(line.inst)
        if line.out is not acc and not sums.intersection(operands):
            continue
        match line:
            case InstStmt(
                out=Tensor() as out, inst=Elementwise(op="add", args=(Tensor() as old, Tensor() as product))
            ) if old in sums and product in inside and (out is acc or counts[out] == 1):
                factor = _factor(made.get(product), scaled)
            case _:
                factor = None
        if factor is None:
            return {}
        sums.add(out)
        products[product] = factor
        definitions += out is acc
        read.update(operands)
    alike = len(set(products.values())) == 1 and counts[acc] == 1 + definitions
    return products if alike and all(uses[x] == read[x] for x in sums - {acc}) else {}


def _factor(product: InstStmt | None, scaled: Factors) -> float | None:
    match product:
        case InstStmt(inst=Elementwise(op="mul", args=(_, Tensor() as scale))) if scale in scaled:
            return scaled[scale][1]
        case _:
            return None


def _without(loop: For, products: set[Tensor], scaled: Factors) -> For:
    """Return the loop with products of the scales themselves."""

    def plain(node: Node) -> Stmt | None:
        match node:
            case InstStmt(inst=Elementwise(args=(x, Tensor() as scale)) as inst) if node.out in products:
                return replace(node, inst=replace(inst, args=(x, scaled[scale][0])))
            case _:
                return None

    new: For = rewrite(loop, plain) if products else loop
    return new
