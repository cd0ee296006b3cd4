"""Scalars, control flow, names, printing and assertions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.codegen.cuda.build import Bench, codes_of
from tests.codegen.cuda.compare import compare, lowered, run_generated
from tests.codegen.cuda.host import HostFault
from tilus.codegen.cuda import EMITTERS, emit
from tilus.dtypes import bf16, boolean, dtype, f16, f32, i8, i32, i64, u8, u32
from tilus.errors import CodegenError, Loc
from tilus.ir.builder import Builder, op
from tilus.ir.expr import CastExpr, Const, const, dtype_of
from tilus.ir.instructions import INSTRUCTIONS, Assert, Elementwise, Full, GlobalView, LoadGlobal, Print, StoreGlobal
from tilus.ir.operators import OPERATORS
from tilus.ir.stmt import Let
from tilus.ir.target import target
from tilus.layouts import local, spatial


class Scalars(Bench):
    """Stores scalars, one after the other, to buffers of their types."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list = []

    def show(self, expr) -> None:
        kind = dtype_of(expr)
        self.output(self.inst(Full(expr, (32,)), "shown", layout=spatial(32)))
        self.found.append(kind)


def test_every_instruction_has_an_emitter() -> None:
    assert set(EMITTERS) == set(INSTRUCTIONS)


@pytest.mark.parametrize("name", ["i8", "u8", "i16", "i32", "u32", "i64", "u64", "u3", "i5"])
def test_integer_scalars(name: str) -> None:
    kind = dtype(name)
    b = Scalars()
    low, high = int(kind.min_value), int(kind.max_value)
    pairs = [(low, 3), (high, 2), (low + 1, high), (high, 1), (5 % (high + 1), 3)]
    if kind.is_signed:
        pairs += [(-7 % high - high, 3), (7 % high, -3), (-5, -3), (low, -1 if name not in ("i32", "i64") else 5)]
    x, y = b.scalar("x", kind), b.scalar("y", kind)
    for each in (
        "add",
        "sub",
        "mul",
        "floordiv",
        "mod",
        "min",
        "max",
        "and",
        "xor",
        "or",
        "lt",
        "le",
        "eq",
        "ne",
        "neg",
        "not",
        "abs",
    ):
        b.show(op(each, x, y) if OPERATORS[each].arity == 2 else op(each, x))
    for divisor in (1, 2, 4):
        if divisor <= high:
            b.show(op("floordiv", x, divisor))
            b.show(op("mod", x, divisor))
    for amount in (0, 1, 2):
        b.show(op("shl", x, amount))
        b.show(op("shr", x, amount))
    for other in (i8, u8, i32, i64, f16, bf16, f32, boolean):
        b.show(CastExpr(other, x))
    program, outputs = b.done(), b.args
    for pair in pairs:
        compare(program, [*pair, *outputs])


@pytest.mark.parametrize("name", ["f32", "f64"])
def test_float_scalars(name: str) -> None:
    kind = dtype(name)
    b = Scalars()
    x, y = b.scalar("x", kind), b.scalar("y", kind)
    for each in (
        "add",
        "sub",
        "mul",
        "div",
        "min",
        "max",
        "lt",
        "le",
        "eq",
        "ne",
        "neg",
        "abs",
        "floor",
        "ceil",
        "round",
    ):
        b.show(op(each, x, y) if OPERATORS[each].arity == 2 else op(each, x))
    for other in (
        i8,
        u8,
        i32,
        u32,
        i64,
        dtype("u64"),
        f16,
        bf16,
        f32,
        boolean,
        dtype("f8e4m3"),
        dtype("f4e2m1"),
        dtype("nf4"),
        dtype("tf32"),
    ):
        b.show(CastExpr(other, x))
    b.show(CastExpr(f32, op("mul", CastExpr(f16, x), Const(3.0, f16))))
    program, outputs = b.done(), b.args
    for pair in ((1.5, -0.25), (3e9, 7.0), (-1e20, 1e-3), (0.3, 0.3), (float("inf"), 1.0), (float("nan"), 1.0)):
        compare(program, [*pair, *outputs], same_nan=True)


def collatz(n_dtype=i32) -> Bench:
    """Loops, branches, reassigned variables and tiles, jumps."""
    b = Bench()
    n, limit = b.scalar("n", n_dtype), b.scalar("limit", n_dtype)
    total = b.inst(Full(const(0, n_dtype), (64,)), "total")
    value = b.let("value", n)
    steps = b.let("steps", const(0, n_dtype))
    with b.while_(op("ne", value, 1)):
        with b.if_(op("eq", op("mod", value, 2), 0)):
            b.assign(value, op("floordiv", value, 2))
        with b.else_():
            b.assign(value, op("add", op("mul", value, 3), 1))
        b.assign(steps, op("add", steps, 1))
        with b.if_(op("le", limit, steps)):
            b.break_()
    with b.for_("i", const(10, n_dtype), const(-5, n_dtype), -3) as i:
        with b.if_(op("eq", i, 4)):
            b.continue_()
        b.inst(Elementwise("add", (total, op("mul", i, steps))), out=total)
    with b.for_("j", const(0, n_dtype), limit, 2, unroll=True) as j, b.for_("k", j, const(3, n_dtype)) as k:
        extra = b.let("extra", op("sub", k, j))
        b.inst(Elementwise("add", (total, extra)), out=total)
    b.output(total)
    return b


@pytest.mark.parametrize("kind", [i32, i64, dtype("i16")], ids=str)
def test_control_flow(kind) -> None:
    b = collatz(kind)
    program, outputs = b.done(), b.args
    for n, limit in ((27, 200), (27, 5), (1, 0), (6, 7)):
        compare(program, [n, limit, *outputs])


def test_branches_define_tiles_and_scalars() -> None:
    b = Bench()
    n = b.scalar("n")
    b.args.append(0)
    layout = spatial(32) * local(2)
    x = b.input(f32, codes_of(f32, (64,)), layout)
    with b.if_(op("lt", n, 0)):
        y = b.inst(Elementwise("neg", (x,)), "y")
        k = b.let("k", op("add", n, 1))
    with b.else_():
        b.inst(Elementwise("mul", (x, x)), out=y)
        b.append(Let(k, op("sub", n, 1)))
    b.output(y)
    b.output(b.inst(Full(k, (32,)), "kt"))
    program = b.done()
    for value in (-3, 3):
        b.args[0] = value
        compare(program, b.args)


def test_names_that_cplusplus_has_taken() -> None:
    b = Bench()
    taken = [
        "int",
        "auto",
        "threadIdx",
        "u32",
        "tid",
        "smem",
        "expf",
        "ptx_mma",
        "__syncthreads",
        "cast_u4",
        "_x",
        "i",
        "min",
        "digit_1_8",
    ]
    b.name = "double"
    variables = [b.scalar(name) for name in taken]
    total = variables[0]
    for v in variables[1:]:
        total = b.let("register", op("add", total, v))
    b.args = [1 << i for i in range(len(taken))]
    b.output(b.inst(Full(total, (32,)), "return"))
    program = b.done()
    assert lowered(program)[1].kernel_name == "v_double"
    compare(program, b.args)


def test_printing() -> None:
    b = Bench()
    n = b.scalar("n")
    tile = b.inst(Elementwise("mul", (b.inst(Full(Const(0.5, f16), (2, 2)), "half"), Const(3.0, f16))), "tile")
    b.inst(Print("n is {}, {{100%}} {} {}", (n, Const(True, boolean), Const(2.5, f32))))
    b.inst(Print("tile {}!", (tile,)))
    printed = run_generated(b.done(), [-7])
    lines = printed.splitlines()
    assert lines[:2] == ["n is -7, {100%} 1 2.5", "tile tile!"]
    assert sorted(lines[2:]) == [f"tile[{i}, {j}] = 1.5" for i in (0, 1) for j in (0, 1)]


def test_assertions() -> None:
    b = Bench()
    n = b.scalar("n")
    b.inst(Assert(op("lt", n, 3), "n is at most 2: 100%", loc=Loc("k.py", 12, 5)))
    program = b.done()
    assert run_generated(program, [2]) == ""
    with pytest.raises(HostFault, match="trap"):
        run_generated(program, [3])
    text = lowered(program)[1].text
    assert "n is at most 2: 100%% (k.py:12:5)" in text


def test_the_map_of_lines() -> None:
    b = Bench()
    x = b.pointer("x", f32, 16)
    view = b.inst(GlobalView(x, (const(64),), (const(1),), loc=Loc("k.py", 3)), "view")
    tile = b.inst(LoadGlobal(view, (const(0),), (64,), (0,), loc=Loc("k.py", 4)), "tile")
    b.inst(StoreGlobal(view, tile, (const(0),), (0,), loc=Loc("k.py", 5)))
    source = lowered(b.done())[1]
    lines = source.text.splitlines()
    found = {loc.line: lines[number - 1].strip() for number, loc in source.line_map}
    assert found[4].startswith("// tile = load_global: ld.global")
    assert found[5].startswith("// store_global: st.global")
    assert [n for n, _ in source.line_map] == sorted(n for n, _ in source.line_map)


def test_programs_that_are_not_lowered() -> None:
    b = Builder("raw")
    x = b.pointer("x", f32)
    view = b.inst(GlobalView(x, (const(64),), (const(1),)), "view")
    b.inst(LoadGlobal(view, (const(0),), (64,), (0,)), "tile")
    program = b.program()
    with pytest.raises(CodegenError, match="'raw' is not lowered for a CUDA target") as caught:
        emit(program, target("sm_80"))
    assert "pipeline.lower" in str(caught.value)
    with pytest.raises(CodegenError, match="the target is cpu"):
        emit(program, target("cpu"))
    half = replace(program, num_threads=32, shared_bytes=0)
    with pytest.raises(CodegenError, match=r"register\[f32, \(64,\)\] has no layout"):
        emit(half, target("sm_80"))
