"""Simplification: text before, text after; folding against the operators themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.passes.programs import matmul, softmax
from tilus.dtypes import boolean, f32, i8, i32, u8
from tilus.ir.builder import op
from tilus.ir.expr import CastExpr, Const, Expr, Op, Var, const
from tilus.ir.operators import OPERATORS
from tilus.ir.parser import parse
from tilus.ir.printer import to_text
from tilus.ir.target import TARGETS
from tilus.ir.types import ScalarType
from tilus.ir.verify import verify
from tilus.passes.analyze import Analysis
from tilus.passes.fold import fold
from tilus.passes.simplify import simplify

SM80 = TARGETS["sm_80"]
NOTHING_KNOWN = Analysis(grid=())
X = Var("x", ScalarType(i32))
P = Var("p", ScalarType(boolean))

HEAD = """
program p(x: ptr[f32] % 16, n: i32) {
  grid (n,)
  warps 4
  view: global[f32, 1] = global_view(ptr=x, shape=(n,), strides=(1,))
"""
LOAD = "load_global(view=view, offset=(%s,), shape=(64,), dims=(0,), other=0.0)"
STORE = "store_global(view=view, tile=%s, offset=(%s,), dims=(0,))"


def check(before: str, after: str) -> None:
    program = parse(HEAD + before + "}")
    verify(program)
    simple = simplify(program, SM80)
    verify(simple)
    assert simple == parse(HEAD + after + "}"), to_text(simple)
    assert simplify(simple, SM80) is simple


def test_nothing_to_do_is_the_same_object() -> None:
    for program in (matmul(), softmax(rows=4)):
        simple = simplify(program, SM80)
        assert simplify(simple, SM80) is simple


def test_constants_reach_where_they_are_read() -> None:
    check(
        f"""
        a: i32 = 3 * 4
        b: i32 = (a + n) + 4
        t: register[f32, (64,)] = {LOAD % "b * 1"}
        {STORE % ("t", "a")}
        """,
        f"""
        b: i32 = n + 16
        t: register[f32, (64,)] = {LOAD % "b"}
        {STORE % ("t", "12")}
        """,
    )


def test_what_nothing_needs_goes_even_if_it_feeds_itself() -> None:
    check(
        f"""
        unused: register[f32, (64,)] = {LOAD % "0"}
        i: i32 = 0
        acc: register[f32, (64,)] = full(value=0.0, shape=(64,))
        for k in range(0, n, 1) {{
          acc = elementwise(op="add", args=(acc, unused))
          i = i + 1
        }}
        t: register[f32, (64,)] = {LOAD % "0"}
        {STORE % ("t", "0")}
        """,
        f"""
        t: register[f32, (64,)] = {LOAD % "0"}
        {STORE % ("t", "0")}
        """,
    )


def test_branches_and_loops_that_are_decided() -> None:
    check(
        f"""
        t: register[f32, (64,)] = {LOAD % "0"}
        if 1 < 2 {{
          {STORE % ("t", "0")}
        }} else {{
          {STORE % ("t", "1")}
        }}
        if block_id(0) < 0 {{
          {STORE % ("t", "2")}
        }}
        for k in range(5, 5, 1) {{
          {STORE % ("t", "3")}
        }}
        for k in range(4, 6, 2) {{
          {STORE % ("t", "k + 1")}
        }}
        for k in range(7, 6, -1) {{
          {STORE % ("t", "k")}
        }}
        while false {{
          {STORE % ("t", "6")}
        }}
        """,
        f"""
        t: register[f32, (64,)] = {LOAD % "0"}
        {STORE % ("t", "0")}
        {STORE % ("t", "5")}
        {STORE % ("t", "7")}
        """,
    )


def test_a_loop_that_may_be_left_stays() -> None:
    text = f"""
        t: register[f32, (64,)] = {LOAD % "0"}
        for k in range(0, 1, 1) {{
          if n < 3 {{
            break
          }}
          {STORE % ("t", "k")}
        }}
        """
    check(text, text)


def test_copies_of_temporaries() -> None:
    check(
        f"""
        a: register[f32, (64,)] = full(value=0.0, shape=(64,))
        acc: register[f32, (64,)] = copy(x=a)
        for k in range(0, n, 64) {{
          b: register[f32, (64,)] = {LOAD % "k"}
          c: register[f32, (64,)] = elementwise(op="add", args=(acc, b))
          d: i32 = k + n
          acc = copy(x=c)
          {STORE % ("acc", "d")}
        }}
        """,
        f"""
        acc: register[f32, (64,)] = full(value=0.0, shape=(64,))
        for k in range(0, n, 64) {{
          b: register[f32, (64,)] = {LOAD % "k"}
          acc = elementwise(op="add", args=(acc, b))
          d: i32 = k + n
          {STORE % ("acc", "d")}
        }}
        """,
    )


def test_copies_that_keep_an_old_value_stay() -> None:
    swap = f"""
        a: register[f32, (64,)] = {LOAD % "0"}
        b: register[f32, (64,)] = {LOAD % "64"}
        for k in range(0, n, 1) {{
          old: register[f32, (64,)] = copy(x=a)
          a = copy(x=b)
          b = elementwise(op="add", args=(old, b))
        }}
        {STORE % ("a", "0")}
        {STORE % ("b", "64")}
        """
    check(swap, swap)


def test_a_temporary_read_twice_stays() -> None:
    text = f"""
        t: register[f32, (64,)] = {LOAD % "0"}
        v: register[f32, (64,)] = copy(x=t)
        for k in range(0, n, 1) {{
          v = elementwise(op="add", args=(v, t))
        }}
        {STORE % ("v", "0")}
        """
    check(text, text)


def test_copies_of_copies_are_read_directly() -> None:
    check(
        f"""
        t: register[f32, (64,)] = {LOAD % "0"}
        u: register[f32, (64,)] = copy(x=t)
        v: register[f32, (64,)] = copy(x=u)
        w: register[f32, (64,)] = elementwise(op="add", args=(v, u))
        {STORE % ("w", "0")}
        {STORE % ("v", "0")}
        """,
        f"""
        t: register[f32, (64,)] = {LOAD % "0"}
        w: register[f32, (64,)] = elementwise(op="add", args=(t, t))
        {STORE % ("w", "0")}
        {STORE % ("t", "0")}
        """,
    )


def test_layouts_of_the_author_are_not_lost() -> None:
    text = f"""
        t: register[f32, (64,), spatial(64) * local(1)] = {LOAD % "0"}
        v: register[f32, (64,)] = copy(x=t)
        w: register[f32, (64,), local(2) * spatial(32)] = copy(x=v)
        {STORE % ("w", "0")}
        """
    program = parse(HEAD.replace("warps 4", "warps 2") + text.replace("spatial(64) * local(1)", "spatial(64)") + "}")
    simple = simplify(program, SM80)
    assert "spatial(64)" in to_text(simple)


def test_changes_of_shape_that_change_nothing() -> None:
    check(
        f"""
        t: register[f32, (64,)] = {LOAD % "0"}
        a: register[f32, (64,)] = reshape(x=t, shape=(64,))
        b: register[f32, (64,)] = transpose(x=a, perm=(0,))
        c: register[f32, (64,)] = cast(x=b, dtype=f32)
        d: register[f32, (64,)] = slice(x=c, offset=(0,), shape=(64,))
        {STORE % ("d", "0")}
        """,
        f"""
        t: register[f32, (64,)] = {LOAD % "0"}
        {STORE % ("t", "0")}
        """,
    )


# --- folding --------------------------------------------------------------------------------------------------------

IDENTITIES: list[tuple[Expr, Expr]] = [
    (op("add", X, 0), X),
    (op("add", 0, X), X),
    (op("add", 3, X), op("add", X, 3)),
    (op("add", op("add", X, 3), 4), op("add", X, 7)),
    (op("add", op("sub", X, 3), 5), op("add", X, 2)),
    (op("sub", op("add", X, 3), 5), op("add", X, -2)),
    (op("sub", X, 0), X),
    (op("sub", X, X), const(0)),
    (op("mul", X, 0), const(0)),
    (op("mul", 1, X), X),
    (op("mul", op("mul", X, 3), 4), op("mul", X, 12)),
    (op("floordiv", X, 1), X),
    (op("mod", X, 1), const(0)),
    (op("min", X, X), X),
    (op("and", P, Const(True, boolean)), P),
    (op("and", P, Const(False, boolean)), Const(False, boolean)),
    (op("or", P, Const(False, boolean)), P),
    (op("or", Const(True, boolean), P), Const(True, boolean)),
    (op("and", X, X), X),
    (op("not", op("not", P)), P),
    (Op("where", (Const(True, boolean), X, const(1))), X),
    (CastExpr(i32, X), X),
    (CastExpr(u8, const(-1)), Const(255, u8)),
    (CastExpr(f32, const(3)), Const(3.0, f32)),
]


@pytest.mark.parametrize(("before", "after"), IDENTITIES, ids=lambda e: to_text(e))
def test_identities(before: Expr, after: Expr) -> None:
    assert fold(before, NOTHING_KNOWN) == after


def test_floats_keep_their_signs_and_their_nans() -> None:
    y = Var("y", ScalarType(f32))
    zero = Const(0.0, f32)
    for kept in (op("add", y, zero), op("sub", y, y), op("mul", y, zero), op("min", y, y)):
        assert fold(kept, NOTHING_KNOWN) is None
    assert fold(op("add", Const(0.1, f32), Const(0.2, f32)), NOTHING_KNOWN) == Const(
        float(np.float32(0.1) + np.float32(0.2)), f32
    )
    assert fold(op("exp", Const(1.0, f32)), NOTHING_KNOWN) is None


INTEGER_OPERATORS = [name for name, row in OPERATORS.items() if row.domain in ("any", "number", "integer", "bits")]


@pytest.mark.parametrize("name", INTEGER_OPERATORS)
@given(a=st.integers(-128, 127), b=st.integers(-128, 127), c=st.booleans())
def test_integer_constants_fold_to_what_the_operator_says(name: str, a: int, b: int, c: bool) -> None:
    assume(not (name in ("floordiv", "mod") and b == 0))
    b = b % 8 if name in ("shl", "shr") else b
    arity = OPERATORS[name].arity
    values = (
        [Const(c, boolean), Const(a, i8), Const(b, i8)] if name == "where" else [Const(a, i8), Const(b, i8)][:arity]
    )
    folded = fold(Op(name, tuple(values)), NOTHING_KNOWN)
    assert isinstance(folded, Const)
    with np.errstate(all="ignore"):
        numbers = [np.bool_(v.value) if v.dtype == boolean else np.int8(v.value) for v in values]
        expected = OPERATORS[name].apply(*numbers)
    assert folded.value == expected
    assert folded.dtype == (boolean if OPERATORS[name].result == "bool" else i8)


def test_division_by_zero_is_left_for_run_time() -> None:
    assert fold(op("floordiv", const(1), const(0)), NOTHING_KNOWN) is None
    assert fold(op("mod", const(1), const(0)), NOTHING_KNOWN) is None
