"""The analysis against the values that scalars really take: random programs are run, and every value is looked up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.programs import cdiv
from tilus.dtypes import boolean, f32, i32, i64, u8
from tilus.ir.builder import Builder, op
from tilus.ir.expr import BlockId, CastExpr, Const, Expr, Op, Var, const
from tilus.ir.instructions import GlobalView, LoadElement
from tilus.ir.operators import OPERATORS
from tilus.ir.program import Program
from tilus.ir.stmt import Assign, For, If, Let, Stmt
from tilus.passes.analyze import analyze

ARITHMETIC = ("add", "sub", "mul", "floordiv", "mod", "min", "max")


@dataclass
class Generator:
    """Draws a program: nested loops and branches over scalars, all small enough not to overflow."""

    draw: st.DrawFn
    builder: Builder = field(default_factory=lambda: Builder("random"))
    readable: list[Var] = field(default_factory=list)
    changeable: list[Var] = field(default_factory=list)

    def expr(self, depth: int = 2) -> Expr:
        if depth == 0 or self.draw(st.integers(0, 3)) == 0:
            leaves: list[Expr] = [const(self.draw(st.integers(-4, 40))), BlockId(0), *self.readable]
            return self.draw(st.sampled_from(leaves))
        name = self.draw(st.sampled_from(ARITHMETIC))
        second = const(self.draw(st.integers(1, 16))) if name in ("mul", "floordiv", "mod") else self.expr(depth - 1)
        return op(name, self.expr(depth - 1), second)

    def body(self, depth: int) -> None:
        known = len(self.readable), len(self.changeable)
        for _ in range(self.draw(st.integers(1, 3))):
            self.statement(depth)
        del self.readable[known[0] :], self.changeable[known[1] :]

    def statement(self, depth: int) -> None:
        kind = self.draw(st.sampled_from(["let", "let", "assign", "for", "if"]))
        b = self.builder
        if kind == "for" and depth:
            step = self.draw(st.sampled_from([1, 2, 8, 16, -1, -4]))
            with b.for_("k", self.expr(1), self.expr(1), step) as k:
                self.readable.append(k)
                self.body(depth - 1)
                self.readable.remove(k)
        elif kind == "if" and depth:
            with b.if_(op("lt", self.expr(1), self.expr(1))):
                self.body(depth - 1)
        elif kind == "assign" and self.changeable:
            b.assign(self.draw(st.sampled_from(self.changeable)), op("mod", self.expr(), 50))
        else:
            var = b.let("v", self.expr())
            self.readable.append(var)
            if self.draw(st.booleans()):
                self.changeable.append(var)


@st.composite
def programs(draw: st.DrawFn) -> tuple[Program, dict[Var, int], int]:
    """A program, values of its parameters that keep their promises, and a block id."""
    g = Generator(draw)
    values = {}
    for name in "nm":
        multiple = draw(st.sampled_from([1, 4, 16]))
        var = g.builder.scalar(name, i32, multiple)
        values[var] = multiple * draw(st.integers(0, 5))
        g.readable.append(var)
        if draw(st.integers(0, 4)) == 0:
            g.changeable.append(var)
    g.body(2)
    tile = draw(st.sampled_from([1, 4, 16]))
    program = g.builder.program(grid=(op("max", cdiv(next(iter(values)), tile), 1),))
    return program, values, draw(st.integers(0, max(-(-next(iter(values.values())) // tile), 1) - 1))


class Machine:
    """Runs scalar statements and yields (expression, value, values of all variables) for all that it evaluates."""

    def __init__(self, env: dict[Var, int], block: int) -> None:
        self.env, self.block, self.fuel = dict(env), block, 300

    def value(self, expr: Expr) -> int:
        match expr:
            case Var():
                return self.env[expr]
            case Const(value=value):
                return int(value)
            case BlockId():
                return self.block
            case Op(op=name, args=args):
                return int(OPERATORS[name].apply(*(self.value(a) for a in args)))
            case _:
                raise AssertionError(expr)

    def run(self, body: tuple[Stmt, ...]) -> Iterator[tuple[Expr, int]]:
        for stmt in body:
            match stmt:
                case Let(var=var, value=value) | Assign(var=var, value=value):
                    self.env[var] = self.value(value)
                    yield value, self.env[var]
                    yield var, self.env[var]
                case If(cond=cond, then=then):
                    yield cond, self.value(cond)
                    if self.value(cond):
                        yield from self.run(then)
                case For(var=var, start=start, stop=stop, step=step, body=inner):
                    for i in range(self.value(start), self.value(stop), step):
                        self.fuel -= 1
                        if self.fuel < 0:
                            return
                        self.env[var] = i
                        yield var, i
                        yield from self.run(inner)


@given(programs())
@settings(max_examples=300)
def test_every_value_lies_in_its_range(drawn: tuple[Program, dict[Var, int], int]) -> None:
    program, values, block = drawn
    analysis = analyze(program)
    for expr, value in Machine(values, block).run(program.body):
        assert value in analysis.of(expr), expr


@given(programs(), st.sampled_from([1, 4, 16]))
@settings(max_examples=300)
def test_no_proof_is_wrong(drawn: tuple[Program, dict[Var, int], int], size: int) -> None:
    """Whenever `lies_inside` says yes, 0 <= offset and offset + size <= extent held at that moment."""
    program, values, block = drawn
    analysis = analyze(program)
    machine = Machine(values, block)
    for expr, value in machine.run(program.body):
        if OPERATORS.get(getattr(expr, "op", ""), OPERATORS["add"]).result == "bool":
            continue
        for extent in values:
            if analysis.lies_inside(expr, size, extent):
                assert 0 <= value <= machine.env[extent] - size


# --- what it must be able to prove ----------------------------------------------------------------------------------


def test_tiles_of_a_divisible_extent_lie_inside() -> None:
    b = Builder("p")
    n, k = b.scalar("n", i32, 64), b.scalar("k", i32, 32)
    start = b.let("start", op("mul", b.block_id(0), 64))
    with b.for_("t", 0, k, 32) as t:
        inner = b.let("inner", op("add", t, 16))
    with b.for_("u", 0, cdiv(k, 32)) as u:
        scaled = b.let("scaled", op("mul", u, 32))
    analysis = analyze(b.program(grid=(cdiv(n, 64),)))
    assert analysis.lies_inside(start, 64, n)
    assert not analysis.lies_inside(start, 65, n)
    assert not analysis.lies_inside(op("add", start, 1), 64, n)
    assert analysis.lies_inside(t, 32, k)
    assert analysis.lies_inside(inner, 16, k)
    assert not analysis.lies_inside(inner, 17, k)
    assert analysis.lies_inside(scaled, 32, k)
    assert not analysis.lies_inside(op("sub", scaled, 32), 32, k)


def test_tiles_of_a_ragged_extent_do_not() -> None:
    b = Builder("p")
    n = b.scalar("n", i32, 16)
    start = b.let("start", op("mul", b.block_id(0), 64))
    analysis = analyze(b.program(grid=(cdiv(n, 64),)))
    assert not analysis.lies_inside(start, 64, n)
    assert analysis.lies_inside(start, 16, n)
    assert analysis.lies_inside(b.block_id(0), 1, cdiv(n, 64))


def test_a_clamped_offset_lies_inside() -> None:
    b = Builder("p")
    n, x = b.scalar("n"), b.scalar("x")
    clamped = op("max", op("min", x, op("sub", n, 8)), 0)
    analysis = analyze(b.program(grid=(1,)))
    assert analysis.lies_inside(op("mod", x, 8), 1, const(8))
    assert not analysis.lies_inside(clamped, 8, n)  # n may be less than 8


def test_a_changing_bound_proves_nothing() -> None:
    """The loop runs to the old n, and the view has the old n; a proof that reads the new one would be wrong."""
    b = Builder("p")
    n = b.let("n", 64)
    with b.for_("i", 0, n) as i:
        b.assign(n, 8)
    analysis = analyze(b.program())
    assert not analysis.lies_inside(i, 1, n)
    assert not analysis.lies_inside(op("add", op("sub", i, n), 64), 1, const(64))  # 119 in the last turn
    assert not analysis.lies_inside(op("sub", n, 8), 8, n)
    assert analysis.lies_inside(i, 1, const(64))


def test_a_loop_that_counts_down_ends_above_its_stop() -> None:
    b = Builder("p")
    n, m = b.scalar("n"), b.scalar("m")
    with b.for_("i", n, m, -1) as i:
        pass
    analysis = analyze(b.program())
    start = op("sub", op("sub", i, m), 1)
    assert analysis.lies_inside(start, 1, op("sub", n, m))
    assert not analysis.lies_inside(op("sub", start, 1), 1, op("sub", n, m))


def test_two_loops_may_count_with_one_variable() -> None:
    var = Builder("x").let("i", 0)
    n = Builder("x").scalar("n")
    first, second = For(var, const(0), const(4), 1, ()), For(var, const(8), const(40), 8, ())
    analysis = analyze(Program("p", (), (const(1),), 1, (first, second)))
    assert (analysis.of(var).lo, analysis.of(var).hi) == (0, 32)
    assert not analysis.lies_inside(var, 1, const(4))
    assert n not in analysis.ranges


def test_sources() -> None:
    b = Builder("p")
    x = b.pointer("x", f32, 16)
    n, wide = b.scalar("n", i32, 8), b.scalar("wide", i64)
    b.inst(GlobalView(x, (n,), (const(1),)))
    loaded = b.inst(LoadElement(b.pointer("s", u8), const(0)), "loaded")
    analysis = analyze(b.program(grid=(n,)))
    assert analysis.alignment[x] == 16
    assert analysis.of(n).lo == 0
    assert analysis.of(n).divisible_by(8)
    assert (analysis.of(loaded).lo, analysis.of(loaded).hi) == (0, 255)
    assert analysis.of(b.block_id(0)).hi == analysis.of(n).hi - 1
    assert analysis.of(CastExpr(i64, n)) == analysis.of(n)
    assert analysis.of(CastExpr(i32, wide)).lo == -(1 << 31)
    assert analysis.of(op("lt", b.block_id(0), 0)).constant == 0
    assert analysis.of(Op("not", (Const(True, boolean),))).constant == 0
