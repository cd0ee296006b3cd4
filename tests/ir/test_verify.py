"""The verifier: every rule rejects a program made to break it, with these words, and no legal program."""

from __future__ import annotations

import pytest
from hypothesis import given

from tests.ir.strategies import programs
from tilus.dtypes import f16, f32, i32, u8
from tilus.errors import VerifyError
from tilus.ir.builder import Builder
from tilus.ir.expr import Const, Tensor, Var, const
from tilus.ir.instructions import BY_NAME, Copy, Full, StoreGlobal, Sync
from tilus.ir.parser import parse
from tilus.ir.program import Param, Program
from tilus.ir.stmt import InstStmt, Let
from tilus.ir.types import GlobalType, RegisterType, ScalarType
from tilus.ir.verify import verify


@given(programs())
def test_legal_programs_pass(program: Program) -> None:
    verify(program)
    verify(parse(str(program)))


HEAD = "program p(x: ptr[f16], n: i32, r: f32) {\n  grid (n,)\n  warps 1\n"
GX = "  gx: global[f16, 1] = global_view(ptr=x, shape=(n,), strides=(1,))\n"
T = "  t: register[f16, (4,)] = full(value=0.0_f16, shape=(4,))\n"
BROKEN = {
    # 1. defined before use, on every path
    "branch": (
        "if n < 1 {\n a: i32 = 1\n}\nb: i32 = a\n",
        "'a' is used before it is defined on every path",
        "b: i32 = a",
    ),
    "other branch": (
        "if n < 1 {\n a: i32 = 1\n} else {\n a: i32 = a\n}\n",
        "'a' is used before it is defined on every path",
        "a: i32 = a",
    ),
    "loop body may not run": (
        f"for k in range(0, n, 1) {{\n{T}}}\nc: register[f16, (4,)] = copy(x=t)\n",
        "'t' is used before it is defined on every path",
        "c: register[f16, (4,)] = copy(x=t)",
    ),
    "loop variable after its loop": (
        "for k in range(0, n, 1) {\n}\nb: i32 = k\n",
        "'k' is used before it is defined on every path",
        "b: i32 = k",
    ),
    "break before the definition": (
        "while true {\n if n < 1 {\n  break\n }\n a: i32 = 1\n}\nb: i32 = a\n",
        "'a' is used before it is defined on every path",
        "b: i32 = a",
    ),
    # 2. declarations
    "declared twice": ("a: i32 = 1\na: i32 = 2\n", "'a' is declared already", "a: i32 = 2"),
    "assigned first": (
        "if n < 1 {\n a: i32 = 1\n}\na = 2\n",
        "'a' is assigned before it is declared on every path",
        "a = 2",
    ),
    "loop variable assigned": (
        "for k in range(0, n, 1) {\n k = 1\n}\n",
        "the loop variable 'k' is changed in its loop",
        "k = 1",
    ),
    "loop variable reused": (
        "for k in range(0, n, 1) {\n for k in range(0, n, 1) {\n }\n}\n",
        "the loop variable 'k' is changed in its loop",
        "for k in range(0, n, 1) {",
    ),
    # 3. operands and results
    "operand": (
        "t: register[f16, (4,)] = full(value=0.0_f16, shape=(4,))\nu: register[f16, (4,)] = reshape(x=t, shape=(5,))\n",
        "cannot reshape (4,) to (5,): sizes differ",
        "u: register[f16, (4,)] = reshape(x=t, shape=(5,))",
    ),
    "result dtype": (
        "t: register[f32, (4,)] = full(value=0.0_f16, shape=(4,))\n",
        "'t' has type register[f32, (4,)], the instruction gives register[f16, (4,)]",
        "t: register[f32, (4,)] = full(value=0.0_f16, shape=(4,))",
    ),
    "result shape": (
        "t: register[f16, (5,)] = full(value=0.0_f16, shape=(4,))\n",
        "'t' has type register[f16, (5,)], the instruction gives register[f16, (4,)]",
        "t: register[f16, (5,)] = full(value=0.0_f16, shape=(4,))",
    ),
    "result layout": (
        f"{T}v: register[f16, (4,), spatial(4)] = view(x=t, dtype=f16, layout=local(4))\n",
        "'v' has type register[f16, (4,), spatial(4)], the instruction gives register[f16, (4,), local(4)]",
        "v: register[f16, (4,), spatial(4)] = view(x=t, dtype=f16, layout=local(4))",
    ),
    "scalar result": (
        "e: f32 = load_element(ptr=x, index=n)\n",
        "'e' has type f32, the instruction gives f16",
        "e: f32 = load_element(ptr=x, index=n)",
    ),
    "no result": (f"{T}t = sync()\n", "the instruction has no result", "t: register[f16, (4,)] = sync()"),
    "result not named": (
        "full(value=0.0_f16, shape=(4,))\n",
        "the result of the instruction is not named",
        "full(value=0.0_f16, shape=(4,))",
    ),
    # 4. one definition
    "view twice": (
        f"{GX}gx = global_view(ptr=x, shape=(n,), strides=(2,))\n",
        "'gx' is defined twice: only register tensors may be redefined",
        "gx: global[f16, 1] = global_view(ptr=x, shape=(n,), strides=(2,))",
    ),
    # 5. expressions
    "type of a value": ("a: f32 = 1\n", "'a' has type f32, its value i32", "a: f32 = 1"),
    "type of operands": ("a: i32 = n + r\n", "operands of + have different types: i32, f32", "a: i32 = n + r"),
    "domain": ("a: i32 = n / n\n", "div takes float operands, not i32", "a: i32 = n / n"),
    "where": (
        "a: i32 = where(n, n, n)\n",
        "the condition of where is boolean, this one is i32",
        "a: i32 = where(n, n, n)",
    ),
    "literal": ("a: u8 = 256_u8\n", "256 is no value of type u8", "a: u8 = 256_u8"),
    "pointer": ("a: f16 = neg(x)\n", "the pointer 'x' stands where a scalar is needed", "a: f16 = neg(x)"),
    "pointer variable": ("a: ptr[f16] = 1\n", "'a' has type ptr[f16], which no expression has", "a: ptr[f16] = 1"),
    "condition type": ("if n {\n}\n", "a condition is boolean, this one is i32", "if n {"),
    "while type": ("while r {\n}\n", "a condition is boolean, this one is f32", "while r {"),
    "bound type": (
        "for k in range(0, r, 1) {\n}\n",
        "a bound has type f32, the loop variable i32",
        "for k in range(0, r, 1) {",
    ),
    "loop variable type": (
        "for k: f32 in range(r, r, 1) {\n}\n",
        "a loop variable is an integer, 'k' has type f32",
        "for k: f32 in range(r, r, 1) {",
    ),
    "step": ("for k in range(0, n, 0) {\n}\n", "the step of a loop must not be 0", "for k in range(0, n, 0) {"),
    "block_id": ("a: i32 = block_id(1)\n", "block_id(1) in a grid of 1 axes", "a: i32 = block_id(1)"),
    # 7. loops
    "break": ("break\n", "break stands in no loop", "break"),
    "continue": ("if n < 1 {\n continue\n}\n", "continue stands in no loop", "continue"),
    # 8. threads
    "threads": (
        "a: register[i32, (4,), spatial(4)] = full(value=n, shape=(4,))\n"
        "b: register[i32, (4,), local(4)] = full(value=n, shape=(4,))\n",
        "'b' is spread over 1 threads, the block has 4",
        "b: register[i32, (4,), local(4)] = full(value=n, shape=(4,))",
    ),
}


def complaint(program: Program, after: str = "") -> str:
    with pytest.raises(VerifyError) as error:
        verify(program, after)
    return error.value.message


@pytest.mark.parametrize("rule", BROKEN)
def test_rules(rule: str) -> None:
    body, message, line = BROKEN[rule]
    assert complaint(parse(HEAD + body + "}")) == f"{message}\n    in: {line}"


HEADERS = {
    "grid of a variable": (
        "program p(n: i32) {\n grid (n, block_id(0))\n warps 1\n}",
        "the grid may depend on parameters only, not on block_id(0)\n    in: grid (n, block_id(0))",
    ),
    "grid type": (
        "program p(n: f32) {\n grid (n,)\n warps 1\n}",
        "an extent of the grid is an integer, got f32\n    in: grid (n,)",
    ),
    "grid rank": ("program p() {\n grid ()\n warps 1\n}", "a grid has 1 to 3 axes, got 0"),
    "promise": ("program p(n: i32 % 0) {\n grid (1,)\n warps 1\n}", "parameter 'n' promises a multiple of 0"),
    "warps": ("program p() {\n grid (1,)\n warps 0\n}", "num_warps must be positive, got 0"),
    "threads": (
        "program p() {\n grid (1,)\n warps 1\n threads 32\n"
        " a: register[i32, (4,), spatial(4)] = full(value=1, shape=(4,))\n}",
        "'a' is spread over 4 threads, the block has 32\n"
        "    in: a: register[i32, (4,), spatial(4)] = full(value=1, shape=(4,))",
    ),
}


@pytest.mark.parametrize("rule", HEADERS)
def test_header_rules(rule: str) -> None:
    text, message = HEADERS[rule]
    assert complaint(parse(text)) == message


def test_variable_in_the_grid() -> None:
    stranger = Var("s", ScalarType(i32))
    program = Program("p", (), (stranger,), 1, ())
    assert complaint(program) == "the grid may depend on parameters only, not on s\n    in: grid (s,)"


def test_parameter_twice() -> None:
    n = Var("n", ScalarType(i32))
    program = Program("p", (Param(n), Param(n)), (n,), 1, ())
    assert complaint(program) == "a variable stands twice among the parameters"


def test_kind_of_tensor() -> None:
    tile, view = Tensor("t", RegisterType(f16, (4,))), Tensor("v", GlobalType(f16, 1))
    body = (
        InstStmt(tile, Full(Const(0.0, f16), (4,))),
        InstStmt(None, StoreGlobal(tile, tile, (const(0),), (0,))),
        InstStmt(None, Copy(view)),
    )
    message = complaint(Program("p", (), (const(1),), 1, body))
    assert message == (
        "'t' must be a global view, it is register[f16, (4,)]\n"
        "    in: store_global(view=t, tile=t, offset=(0,), dims=(0,))\n"
        "also: 'v' is used before it is defined on every path\n"
        "    in: copy(x=v)"
    )


def test_all_breaches_are_reported_with_the_pass_and_their_places() -> None:
    text = HEAD + "  a: i32 = n + r\n  b: i32 = c\n}"
    text = text.replace("  b: i32 = c", "  if n < 1 {\n    c: i32 = 1\n  }\n  b: i32 = c")
    with pytest.raises(VerifyError) as error:
        verify(parse(text, "p.tilus"), after="simplify")
    assert str(error.value) == (
        "p.tilus:4:14: after pass simplify: operands of + have different types: i32, f32\n"
        "    in: a: i32 = n + r\n"
        "also: p.tilus:8:3: 'c' is used before it is defined on every path\n"
        "    in: b: i32 = c\n"
        "      a: i32 = n + r\n"
        "                 ^"
    )


ALLOWED = {
    "declared in both branches": "if n < 1 {\n a: i32 = 1\n} else {\n a: i32 = 2\n}\nb: i32 = a\n",
    "declared before an endless loop is left": "while true {\n a: i32 = 1\n if n < a {\n  break\n }\n}\nb: i32 = a\n",
    "the other branch leaves": (
        "for k in range(0, n, 1) {\n if k < 1 {\n  a: i32 = 1\n } else {\n  continue\n }\n b: i32 = a\n}\n"
    ),
    "register tensors are redefined": f"{T}t = copy(x=t)\n",
    "layouts may be given": "t: register[f16, (4,), local(4)] = full(value=0.0_f16, shape=(4,))\n",
}


@pytest.mark.parametrize("case", ALLOWED)
def test_allowed(case: str) -> None:
    verify(parse(HEAD + ALLOWED[case] + "}"))


def test_endless_loop_without_break() -> None:
    """What follows is never reached, so anything is defined there; but types are still checked."""
    verify(parse(HEAD + "while true {\n}\nif n < 1 {\n a: i32 = 1\n}\nb: i32 = a\n}"))
    assert complaint(parse(HEAD + "while true {\n}\na: f32 = n\n}")).startswith("'a' has type f32, its value i32")


def test_every_instruction_checks_its_operands() -> None:
    """Each row of the table has the function that gives a result type or checks."""
    assert all((row.result is None) != (row.check is None) for row in BY_NAME.values())
    assert all(row.cls.__doc__ for row in BY_NAME.values())


def test_builder_programs_are_legal() -> None:
    b = Builder("p")
    x = b.pointer("x", u8)
    assert isinstance(x, Var)
    y = b.let("y", 1)
    b.assign(y, 2)
    b.append(Let(Var("z", ScalarType(f32)), const(1.0)))
    b.inst(Sync())
    verify(b.program())
