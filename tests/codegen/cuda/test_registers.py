"""Instructions on registers: arithmetic, reductions, conversions, renamings, against the reference machine."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tests.codegen.cuda.build import Bench, codes_of, random_layout
from tests.codegen.cuda.compare import compare
from tilus.codegen.cuda.emit_registers import slice_places
from tilus.dtypes import boolean, dtype, f16, f32, f64, i8, i32, u3, u8, u32
from tilus.ir.expr import CastExpr, const
from tilus.ir.instructions import (
    Arange,
    Cast,
    ConvertLayout,
    Copy,
    Dot,
    Elementwise,
    Full,
    Reduce,
    Reshape,
    Slice,
    Transpose,
    View,
)
from tilus.ir.operators import OPERATORS
from tilus.layouts import column_local, local, replicated, spatial

# Rounded once by both; the others differ in the last places of a library function.
EXACT = (
    "add",
    "sub",
    "mul",
    "div",
    "min",
    "max",
    "neg",
    "abs",
    "lt",
    "le",
    "eq",
    "ne",
    "where",
    "floor",
    "ceil",
    "round",
)
ROUGH = ("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "sin", "cos", "tanh", "erf")
TYPES = (
    "f16",
    "bf16",
    "f32",
    "f64",
    "f8e4m3",
    "f4e2m1",
    "i32",
    "u32",
    "i64",
    "u64",
    "i8",
    "u8",
    "i16",
    "u3",
    "i5",
    "bool",
)


def allowed(name: str, kind) -> bool:
    row = OPERATORS[name]
    return {
        "any": True,
        "number": not kind.is_boolean,
        "integer": kind.is_integer,
        "float": kind.is_float,
        "bits": kind.is_integer or kind.is_boolean,
    }[row.domain]


def operand(name: str, position: int, kind, shape: tuple[int, ...]) -> np.ndarray:
    if name == "where" and position == 0:
        return codes_of(boolean, shape)
    if name in ("shl", "shr") and position == 1:
        return codes_of(dtype("u3"), shape) % kind.nbits
    if name in ("floordiv", "mod", "div", "log", "log2", "sqrt", "rsqrt", "exp", "exp2"):
        codes = codes_of(kind, shape, specials=False)
        if name in ("log", "log2", "sqrt", "rsqrt"):
            codes = codes & np.asarray(~(1 << (kind.nbits - 1)) & (kind.num_codes - 1), codes.dtype)
        return codes
    return codes_of(kind, shape)


@pytest.mark.parametrize("name", TYPES)
def test_operators(name: str) -> None:
    kind = dtype(name)
    locals_ = {16: 4, 32: 4, 64: 4, 8: 8}.get(kind.nbits, 12)  # more than one word
    shape, layout = (4, 8 * locals_), spatial(4, 8) * local(1, locals_)
    for names, tolerance in ((EXACT, 0.0), (ROUGH, 2e-6 if kind.nbits >= 32 else 2e-3)):
        b = Bench()
        for each in names if kind.is_float else [n for n in OPERATORS if n not in ROUGH]:
            if allowed(each, kind):
                tiles = [
                    b.input(boolean if each == "where" and i == 0 else kind, operand(each, i, kind, shape), layout)
                    for i in range(OPERATORS[each].arity)
                ]
                b.output(b.inst(Elementwise(each, tuple(tiles)), each))
        if b.args:
            compare(b.done(), b.args, tolerance=tolerance, same_nan=True, local_memory=names is ROUGH)
        if not kind.is_float:
            return


@pytest.mark.parametrize("name", ["f16", "bf16", "f32", "i32", "u3"])
def test_broadcasting_and_scalars(name: str) -> None:
    kind = dtype(name)
    b = Bench(warps=2)
    layout = local(2, 1, 1) * spatial(2, 4, 8) * local(1, 2, 2)
    x = b.input(kind, codes_of(kind, (4, 8, 16), specials=False), layout)
    for shape in ((1, 8, 1), (16,), (8, 1), (4, 1, 16), (1, 1, 1)):
        y = b.input(kind, codes_of(kind, shape, specials=False))
        b.output(b.inst(Elementwise("sub", (x, y)), "left"))
        b.output(b.inst(Elementwise("mul", (y, x)), "right"))
    three = const(3.0 if kind.is_float else 3, kind)
    b.output(b.inst(Elementwise("sub", (x, three)), "x_minus_3"))
    b.output(b.inst(Elementwise("sub", (three, x)), "three_minus_x"))
    small = b.inst(Elementwise("lt", (x, three)), "small")
    b.output(small)
    b.output(b.inst(Elementwise("where", (small, x, three)), "chosen"))
    b.inst(Elementwise("add", (x, x)), out=x)  # in place
    b.output(x)
    compare(b.done(), b.args)


@pytest.mark.parametrize(
    ("name", "seed"), [*product(("f16", "i64", "u3"), range(3)), ("f32", 0), ("i8", 1), ("f64", 2), ("bool", 0)]
)
def test_reductions(name: str, seed: int) -> None:
    kind, rng = dtype(name), np.random.default_rng(seed)
    b = Bench(warps=4)
    shape = [(8, 16, 4), (3, 32, 8), (1, 64, 12)][seed]
    for dim in range(3):
        x = b.input(kind, codes_of(kind, shape, specials=False), random_layout(shape, 128, rng))
        for which in ("sum", "max", "min") if not kind.is_boolean else ("max", "min"):
            b.output(b.inst(Reduce(x, which, dim, bool(rng.integers(2))), f"{which}{dim}"))
    compare(b.done(), b.args, tolerance={"f32": 1e-6, "f16": 1e-3, "f64": 1e-14}.get(name, 0.0))


def test_reductions_where_warps_end_inside_of_a_digit() -> None:
    b = Bench(warps=3)
    x = b.input(i32, codes_of(i32, (96, 2)), spatial(96, 1) * local(1, 2))
    b.output(b.inst(Reduce(x, "sum", 0), "s"))
    y = b.input(i32, codes_of(i32, (3, 32)), spatial(3, 32))
    b.output(b.inst(Reduce(y, "max", 0), "s"))
    z = b.input(i32, codes_of(i32, (24, 4)), spatial(24, 4))
    b.output(b.inst(Reduce(z, "sum", 0), "s"))
    compare(b.done(), b.args)


@pytest.mark.parametrize(
    ("name", "warps"), [*product(("u3", "f16"), (1, 3, 4)), ("i8", 1), ("f32", 3), ("f64", 4), ("f64", 1)]
)
def test_conversions(name: str, warps: int) -> None:
    kind, rng = dtype(name), np.random.default_rng(warps)
    threads = 32 * warps
    b = Bench(warps)
    for shape in ((16, 24), (2, 4, 16)):
        for _ in range(3):
            first, second = (random_layout(shape, threads, rng) for _ in range(2))
            x = b.input(kind, codes_of(kind, shape), first)
            y = b.inst(ConvertLayout(x, second), "y")
            b.output(b.inst(ConvertLayout(y, random_layout(shape, threads, rng)), "z"))
    compare(b.done(), b.args)


def test_conversions_within_a_warp() -> None:
    """Words, pairs of halves, single elements, replicas: through shuffles."""
    b = Bench(warps=2)
    a = spatial(2, 1) * spatial(8, 4) * local(1, 4)
    for kind in (f16, f32, i8, f64, u3):
        x = b.input(kind, codes_of(kind, (16, 16)), a)
        for other in (
            spatial(2, 1) * spatial(4, 8) * local(2, 2),
            spatial(2, 1) * column_local(2, 1) * spatial(4, 4) * replicated(2, 2) * local(1, 4),
            spatial(2, 1) * local(1, 4) * spatial(8, 4),
            spatial(2, 1) * local(8, 1) * spatial(1, 16) * replicated(2, 2),
        ):
            b.output(b.inst(ConvertLayout(x, other), "y"))
    compare(b.done(), b.args)


@pytest.mark.parametrize("name", ["u3", "u4", "f16", "f32", "i64"])
def test_renaming(name: str) -> None:
    kind = dtype(name)
    b = Bench(warps=1)
    x = b.input(kind, codes_of(kind, (8, 64)), spatial(4, 8) * local(2, 8))
    b.output(b.inst(Slice(x, (0, 0), (8, 64)), "whole"))
    b.output(b.inst(Transpose(x, (1, 0)), "transposed"))
    b.output(b.inst(Reshape(x, (4, 2, 8, 8)), "reshaped"))
    b.output(b.inst(Copy(x), "copied"))
    y = b.input(kind, codes_of(kind, (8, 64)), local(8, 2) * spatial(1, 32))
    for offset, shape in (((2, 0), (4, 64)), ((3, 0), (1, 64)), ((0, 32), (8, 32)), ((5, 32), (3, 32))):
        b.output(b.inst(Slice(y, offset, shape), "part"))
    z = b.input(kind, codes_of(kind, (64,)), spatial(32) * local(2))
    b.output(b.inst(Slice(z, (0,), (32,)), "first"))
    compare(b.done(), b.args)


def test_a_slice_at_another_local_in_every_thread() -> None:
    whole, part = spatial(16) * replicated(2) * local(4), spatial(2) * replicated(16)
    places = slice_places(whole, part, (3,))
    assert places.tolist()[0] == [3]
    assert places.tolist()[16] == [0]


@pytest.mark.parametrize("name", TYPES)
def test_full_and_arange(name: str) -> None:
    kind = dtype(name)
    b = Bench(warps=1)
    n = b.scalar("n", i32)
    b.args.append(41)
    layout = local(2, 1) * spatial(4, 8) * local(1, 3)
    value = const(
        True if kind.is_boolean else 1.5 if kind.is_float else 5 if kind.is_signed or kind.nbits > 2 else 1, kind
    )
    b.output(b.inst(Full(value, (8, 24)), "constant", layout=layout))
    b.output(b.inst(Full(CastExpr(kind, n), (8, 24)), "given", layout=layout))
    if kind.is_integer:
        for dim in (0, 1):
            b.output(b.inst(Arange(CastExpr(kind, n), (8, 24), dim), "count", layout=layout))
    compare(b.done(), b.args)


def test_views() -> None:
    b = Bench()
    x = b.input(u8, codes_of(u8, (96,)), spatial(32) * local(3))
    codes = b.inst(View(x, u3, spatial(32) * local(8)), "codes")
    b.output(codes)
    b.output(b.inst(Cast(codes, f16), "values"))
    y = b.input(f32, codes_of(f32, (32,)), spatial(32))
    b.output(b.inst(View(y, f16, spatial(32) * local(2)), "halves"))
    z = b.input(f64, codes_of(f64, (32,)), spatial(32))
    b.output(b.inst(View(z, u32, spatial(32) * local(2)), "words"))
    compare(b.done(), b.args)


@pytest.mark.parametrize(
    "kinds", [("f32", "f32"), ("f16", "f32"), ("f64", "f64"), ("i8", "i32"), ("u3", "f32"), ("bf16", "bf16")]
)
@pytest.mark.parametrize("shape", [(8, 4, 16), (4, 16, 64), (1, 8, 128), (3, 5, 7)])
def test_products_in_threads(kinds: tuple[str, str], shape: tuple[int, int, int]) -> None:
    kind, acc = map(dtype, kinds)
    m, n, k = shape
    b = Bench(warps=2)
    a, c = (b.input(kind, codes_of(kind, s, specials=False)) for s in ((m, k), (k, n)))
    start = b.input(acc, codes_of(acc, (m, n), specials=False))
    b.output(b.inst(Dot(a, c, start), "out"))
    tolerance = {"f32": 2e-6, "f64": 1e-13, "bf16": 1e-2}.get(acc.name, 0.0)
    compare(b.done(), b.args, tolerance=tolerance)


@pytest.mark.parametrize("kinds", [("f16", "f32"), ("f16", "f16"), ("bf16", "f32"), ("i8", "i32")])
@pytest.mark.parametrize(("shape", "warps"), [((16, 8, 32), 1), ((32, 24, 64), 4), ((64, 16, 32), 2)])
def test_products_in_tensor_cores(kinds: tuple[str, str], shape: tuple[int, int, int], warps: int) -> None:
    kind, acc = map(dtype, kinds)
    m, n, k = shape
    b = Bench(warps)
    a, c = (b.input(kind, codes_of(kind, s, specials=False)) for s in ((m, k), (k, n)))
    start = b.input(acc, codes_of(acc, (m, n), specials=False))
    b.output(b.inst(Dot(a, c, start), "out"))
    b.output(b.inst(Copy(b.inst(Dot(a, c, start), out=start)), "again"))
    compare(b.done(), b.args, tolerance={"f32": 1e-6, "f16": 2e-3}.get(acc.name, 0.0))
