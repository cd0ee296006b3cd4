"""The text form: golden texts, round trips, and the exact words of every parse error."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ir.strategies import programs
from tilus.dtypes import ALL, boolean, codebook, f16, f32, f64, i8, i32, i64, u4, u64
from tilus.errors import ParseError
from tilus.ir.atoms import MMA_ATOMS
from tilus.ir.builder import Builder, op
from tilus.ir.expr import CastExpr, Const, Op, Tensor, Var, const
from tilus.ir.instructions import BY_NAME, AllocShared, Cast, Full, GlobalView, LoadGlobal, StoreGlobal
from tilus.ir.node import walk
from tilus.ir.operators import OPERATORS
from tilus.ir.parser import parse
from tilus.ir.printer import to_text
from tilus.ir.program import Program
from tilus.ir.stmt import InstStmt, Selected
from tilus.ir.types import ScalarType
from tilus.layouts import row_major_swizzle, spatial

EVERY_INSTRUCTION = """\
program everything(x: ptr[f16] % 16, w: ptr[u3], m: i32, n: i64 % 8, eps: f32) {
  grid (m, (m + 511) // 512)
  warps 4 producer
  cluster (2, 1)
  threads 128
  shared 4096
  gx: global[f16, 2] = global_view(ptr=x, shape=(m, 64), strides=(64, 1))
  t: register[f16, (4, 8), spatial(4,8) * replicated(4, rank=2)] = load_global(view=gx, offset=(0, block_id(1)), \
shape=(4, 8), dims=(0, 1), other=-inf) : ld.global "because of \\"this\\""
  store_global(view=gx, tile=t, offset=(0, 0), dims=(0, 1)) : st.global width=8 unmasked=(0, 1) "16 B"
  atomic_add(view=gx, tile=t, offset=(0, 0), dims=(0, 1))
  e: f16 = load_element(ptr=x, index=n)
  s: shared[f16, (8, 64), row_major(8,64).swizzled(3, 3, 3)] = alloc_shared(dtype=f16, shape=(8, 64), byte_offset=1024)
  copy_async(dst=s, src=gx, dst_offset=(0, 0), src_offset=(0, 0), shape=(8, 64), dst_dims=(0, 1), src_dims=(0, 1))
  copy_async(dst=s, src=gx, dst_offset=(0, 0), src_offset=(0, 0), shape=(8, 64), dst_dims=(0, 1), src_dims=(0, 1), \
once=m < 8)
  commit_group()
  wait_group(pending=0)
  sync()
  r: register[f16, (8,)] = load_shared(src=s, offset=(0, 0), shape=(8,), dims=(0,)) : ldmatrix.x4.trans
  store_shared(dst=s, tile=r, offset=(0, 0), dims=(1,))
  a: register[i32, (4, 8)] = arange(start=m, shape=(4, 8), dim=1)
  r = full(value=0.5_f16, shape=(8,))
  r = copy(x=r)
  c: register[f32, (8,)] = cast(x=r, dtype=f32)
  v: register[u3, (8,), local(8)] = full(value=1_u3, shape=(8,))
  v = view(x=v, dtype=u3, layout=local(8))
  h: register[u32, (1,), local(1)] = full(value=1_u32, shape=(1,))
  z: register[u4, (8,), local(8)] = view(x=h, dtype=u4, layout=local(8), bits=bits(4, 16, "ddddccccbbbbaaaa", units=1))
  y: register[f16, (4,), local(4)] = unpack(x=h, source=i8, dtype=f16, layout=local(4), \
bits=bits(8, 16, "bbbbbbbbaaaaaaaa", units=1, flipped=0x80), form="subnormal", positions=(0, 0))
  v = convert_layout(x=v, layout=local(8)) : none
  c = elementwise(op="add", args=(c, eps))
  d: register[f32, (1,)] = reduce(x=c, op="sum", dim=0, keepdims=true)
  u: register[f16, (8, 4)] = transpose(x=t, perm=(1, 0))
  u = reshape(x=t, shape=(8, 4))
  q: register[f16, (2, 8)] = slice(x=t, offset=(2, 0), shape=(2, 8))
  acc: register[f32, (4, 4)] = full(value=0.0, shape=(4, 4))
  acc = dot(a=t, b=u, c=acc) : mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
  acc = cluster_sum(x=acc)
  print(format="{} is {}\\n", args=(acc, eps))
  prefetch(view=gx, offset=(0, 0), shape=(8, 64), dims=(0, 1)) : cp.async.bulk.prefetch width=8 unmasked=(1,)
  grid_dependency_wait()
  launch_dependents()
  assert_(cond=eps < 1.0, message="too \\"large\\"")
}"""

CONTROL = """\
program control(n: i32) {
  grid (n,)
  warps 1
  i: i32 = block_id(0)
  for k in range(0, n, 32) unroll {
    if k == i {
      break
    } else {
      if true {
        continue
      }
    }
  }
  for j: i64 in range(i64(n), -1_i64, -2) {
    i = i + i32(j)
  }
  while i < n {
    i = i + 1
  }
}"""


@pytest.mark.parametrize("text", [EVERY_INSTRUCTION, CONTROL], ids=["instructions", "control"])
def test_texts_are_read_and_printed_back(text: str) -> None:
    assert str(parse(text)) == text


def test_every_instruction_is_in_the_text_above() -> None:
    used = {n.inst.__class__ for n in walk(parse(EVERY_INSTRUCTION)) if isinstance(n, InstStmt)}
    assert used == {row.cls for row in BY_NAME.values()}


def test_words_have_one_meaning() -> None:
    """`f(` means a cast, an operator or an instruction: the three sets of names are apart."""
    names = [*BY_NAME, *OPERATORS, *(t.name for t in ALL), "block_id", "codebook"]
    assert len(set(names)) == len(names)


@given(programs())
def test_round_trip(program: Program) -> None:
    text = str(program)
    again = parse(text)
    assert again == program
    assert hash(again) == hash(program)
    assert str(again) == text


def test_built_program(golden) -> None:
    b = Builder("scale_rows")
    x, y, n = b.pointer("x", f16, 16), b.pointer("x", f16, 16), b.scalar("n", i32, 8)
    gx = b.inst(GlobalView(x, (n, const(8)), (const(8), const(1))), "view")
    gy = b.inst(GlobalView(y, (n, const(8)), (const(8), const(1))), "view")
    i = b.let("if", op("mul", b.block_id(0), 4))
    layout = spatial(4, 8)
    width = Selected("ld.global", 8, "16 B")
    tile = b.inst(LoadGlobal(gx, (i, const(0)), (4, 8), (0, 1)), "tile", layout=layout, selected=width)
    b.inst(AllocShared(f16, (8, 64)), "pool", layout=row_major_swizzle((8, 64), 2))
    b.inst(StoreGlobal(gy, tile, (i, const(0)), (0, 1)))
    with b.for_("k", 0, n, 4, unroll=True) as k:
        with b.if_(op("lt", k, i)):
            b.assign(i, op("sub", i, op("sub", k, 1)))
        with b.else_():
            b.break_()
    program = b.program((op("floordiv", op("add", n, 3), 4),), 1, num_threads=32)
    golden.check(str(program))
    assert parse(str(program)) == program


# Expressions

X, Y = Var("x", ScalarType(i32)), Var("y", ScalarType(i32))
EXPRESSIONS = [
    (op("add", X, op("add", Y, 1)), "x + (y + 1)"),
    (op("add", op("add", X, Y), 1), "x + y + 1"),
    (op("mul", op("add", X, Y), 2), "(x + y) * 2"),
    (op("add", X, op("mul", Y, 2)), "x + y * 2"),
    (op("sub", X, -5), "x - -5"),
    (op("lt", op("lt", X, Y), op("lt", Y, X)), "(x < y) < (y < x)"),
    (op("and", op("lt", X, Y), Const(True, boolean)), "(x < y) & true"),
    (op("shl", op("or", X, Y), 3), "(x | y) << 3"),
    (op("neg", op("min", X, op("not", Y))), "neg(min(x, not(y)))"),
    (op("where", op("le", X, Y), X, 7), "where(x <= y, x, 7)"),
    (CastExpr(i64, op("floordiv", X, 3)), "i64(x // 3)"),
    (Const(5, i64), "5_i64"),
    (Const(2**64 - 1, u64), "18446744073709551615_u64"),
    (Const(0.1, f64), "0.1_f64"),
    (Const(1e-30, f32), "1e-30"),
    (Const(2, f16), "2.0_f16"),
    (Const(-math.inf, f32), "-inf"),
    (Const(math.nan, f16), "nan_f16"),
    (Const(-0.0, f32), "-0.0"),
]


@pytest.mark.parametrize(("expr", "text"), EXPRESSIONS, ids=[text for _, text in EXPRESSIONS])
def test_expressions(expr, text: str) -> None:
    assert to_text(expr) == text
    b = Builder("p")
    b._params = []
    program = parse(f"program p(x: i32, y: i32) {{\n  grid (1,)\n  warps 1\n  v: {'f32'} = {text}\n}}")
    assert to_text(program.body[0].value) == text


@given(st.floats(), st.sampled_from([f16, f32, f64]))
def test_floats_are_exact(value: float, dt) -> None:
    b = Builder("p")
    b.let("v", Const(value, dt))
    again = parse(str(b.program())).body[0].value
    assert again.dtype == dt
    assert repr(again.value) == repr(value)


@given(st.text())
def test_strings_are_exact(text: str) -> None:
    b = Builder("p")
    b.inst(Full(const(0), (1,)), text, selected=Selected(text, 2, text))
    program = b.program()
    assert parse(str(program)) == program


def test_unnamed_codebook() -> None:
    b = Builder("p")
    book = codebook("my table", [-1.5, 0.0, 0.1, 2e300])
    x = b.inst(Full(Const(0.1, book), (4,)), "x")
    b.inst(Cast(x, f32), "y")
    program = b.program()
    assert 'full(value=0.1_codebook("my table", (-1.5, 0.0, 0.1, 2e+300), 0), shape=(4,))' in str(program)
    assert parse(str(program)) == program


@pytest.mark.parametrize("dt", ALL, ids=str)
def test_every_type_has_a_text(dt) -> None:
    b = Builder("p")
    b.pointer("x", dt)
    b.let("v", CastExpr(dt, const(1)))
    b.let("w", Const(1, dt))
    program = b.program()
    assert parse(str(program)) == program


@pytest.mark.parametrize("atom", MMA_ATOMS, ids=lambda a: a.name)
def test_names_of_atoms_need_no_quotes(atom) -> None:
    b = Builder("p")
    b.inst(Full(const(0), (1,)), "x", selected=Selected(atom.name))
    assert str(b.program()).splitlines()[-2].endswith(f" : {atom.name}")


def test_names_are_unique_and_legal() -> None:
    b = Builder("p")
    for name in ("x", "x", "x_1", "while", "inf", "nan_f16", "", "0", "min", "None"):
        b.let(name, 1)
    names = [line.split(":")[0].strip() for line in str(b.program()).splitlines()[3:-1]]
    assert names == ["x", "x_1", "x_1_1", "v_while", "v_inf", "v_nan_f16", "v", "v_1", "min", "v_None"]
    assert parse(str(b.program())) == b.program()


def test_a_tensor_alone() -> None:
    assert to_text(Tensor("acc", parse(EVERY_INSTRUCTION).body[1].out.type)) == "acc"
    assert str(Op("lt", (X, Y)).args[0].type) == "i32"


# Parse errors

HEAD = "program p(x: ptr[f16], n: i32) {\n  grid (n,)\n  warps 1\n"
ERRORS = [
    ("", "<text>:1:1: expected 'program', got the end of the text\n"),
    ("program 5", "<text>:1:9: expected the name of the program, got '5'\n"),
    ("program p(x) {", "<text>:1:12: expected ':', got ')'\n"),
    ("program p(x: i33) {", "<text>:1:14: no data type is named 'i33'\n"),
    ("program p(x: global[f16, 2]) {", "<text>:1:11: a parameter is a pointer or a scalar, not global[f16, 2]\n"),
    ("program p() {\n  warps 1\n", "<text>:2:3: expected 'grid', got 'warps'\n"),
    ("program p() {\n  grid (1,)\n  warps 1.5\n", "<text>:3:9: expected an integer, got '1.5'\n"),
    (HEAD + "  y = 1\n}", "<text>:4:3: 'y' is not defined\n"),
    (HEAD + "  y: i32 = n +\n}", "<text>:4:15: expected an expression, got the end of the line\n"),
    (HEAD + "  y: i32 = (n + 1\n}", "<text>:5:1: expected ')', got '}'\n"),
    (HEAD + "  y: i32 = 1 2\n}", "<text>:4:14: expected the end of the line, got '2'\n"),
    (HEAD + "  y: i32 = 1.5_i32\n}", "<text>:4:12: '1.5' is no literal of type i32\n"),
    (HEAD + "  y: i32 = min(n)\n}", "<text>:4:12: no operator 'min' with 1 operands\n"),
    (HEAD + "  y: i32 = foo(n)\n}", "<text>:4:12: no data type is named 'foo'\n"),
    (HEAD + "  y: i32 = 1 + sync()\n}", "<text>:4:16: sync is an instruction: give its result a name first\n"),
    (HEAD + "  if: i32 = 1\n}", "<text>:4:5: expected an expression, got ':'\n"),
    (HEAD + "  true: i32 = 1\n}", "<text>:4:3: 'true' is no name for a variable\n"),
    (HEAD + "  n: f32 = 1.0\n}", "<text>:4:3: 'n' was declared as i32 before\n"),
    (HEAD + "  foo(x=1)\n}", "<text>:4:3: no instruction is called 'foo'\n"),
    (HEAD + "  sync(x=1)\n}", "<text>:4:8: sync has no field 'x'\n"),
    (HEAD + "  wait_group()\n}", "<text>:4:3: wait_group needs the field 'pending'\n"),
    (HEAD + "  wait_group(pending=n)\n}", "<text>:4:22: expected an integer, got 'n'\n"),
    (HEAD + "  e: f16 = load_element(ptr=x, index=1.5.2)\n}", "<text>:4:41: expected ',' or ')', got '.'\n"),
    (HEAD + "  t: register[f16, (2,)] = copy(x=n)\n}", "<text>:4:35: 'n' is not a tensor\n"),
    (
        HEAD + "  t: register[f16, (4,), spatial(8)] = full(value=1.0_f16, shape=(4,))\n}",
        "<text>:4:6: layout spatial(8)",
    ),
    (HEAD + "  t: register[f16, (4,), spatial(8) / spatial(3)] = sync()\n}", "<text>:4:26: cannot divide"),
    (HEAD + "  t: register[f16, (4,), spatial(8) * foo(3)] = sync()\n}", "<text>:4:39: expected a layout, got 'foo'\n"),
    (HEAD + "  print(format='a', args=())\n}", '<text>:4:16: no token begins with "\'"\n'),
    (HEAD + '  print(format="\\q", args=())\n}', "<text>:4:16: Invalid \\escape"),
    (HEAD + "  while n < 1 { sync() }\n  sync(\n}", "<text>:6:1: expected a field, got '}'\n"),
    (HEAD + "  sync()\n", "<text>:5:1: expected a statement, got the end of the text\n"),
    (HEAD + "}\nx", "<text>:5:1: expected the end of the text, got 'x'\n"),
]


@pytest.mark.parametrize(("text", "message"), ERRORS, ids=[m.strip() for _, m in ERRORS])
def test_errors(text: str, message: str) -> None:
    with pytest.raises(ParseError) as error:
        parse(text)
    shown = str(error.value) + "\n"
    assert shown.startswith(message)
    assert "^" in shown or not error.value.loc.source_line()


def test_the_caret_stands_under_the_culprit() -> None:
    with pytest.raises(ParseError) as error:
        parse(HEAD + "  y: i32 = n + zz\n}", "kernel.tilus")
    assert str(error.value) == "kernel.tilus:4:16: 'zz' is not defined\n      y: i32 = n + zz\n                   ^"


def test_nodes_know_where_they_stand() -> None:
    program = parse(CONTROL, "control.tilus")
    assert str(program.body[2].loc) == "control.tilus:14:3"
    assert str(program.body[2].body[0].value.loc) == "control.tilus:15:11"


def test_literals_keep_their_type() -> None:
    text = HEAD + "  a: u4 = 3_u4\n  b: i8 = -128_i8\n  c: bool = false\n}"
    program = parse(text)
    assert [s.value for s in program.body] == [Const(3, u4), Const(-128, i8), Const(False, boolean)]
