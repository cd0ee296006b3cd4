"""`@tilus.inline`: what a call of such a function leaves in the program, and how its errors read."""

from __future__ import annotations

import pytest

from tilus.errors import LangError
from tilus.ir.printer import to_text
from tilus.ir.verify import verify

GELU = """\
@tilus.inline
def gelu(x, *, exact=True):
    if exact:
        return x * 0.5 * (1.0 + erf(x * 0.7071067811865476))
    return x * sigmoid(x * 1.702)

@tilus.inline
def total(view, n, *, BN):
    acc = zeros(BN, f32)
    for j in range(0, n, BN):
        acc += gelu(load_global(view, offset=j, shape=BN), exact=False)
    n = n + 1
    return acc, n

def k(x: ptr[f32], n: i32):
    launch(blocks=1)
    view = global_view(x, shape=n)
    acc, more = total(view, n, BN=32)
    store_global(view, gelu(acc), offset=n - more)
"""


def test_inlined(kernel, golden) -> None:
    program = kernel(GELU).specialize({})
    verify(program)
    golden.check(to_text(program))


def test_places_are_inside_the_function(kernel) -> None:
    program = kernel(GELU).specialize({})
    loop = next(stmt for stmt in program.body if type(stmt).__name__ == "For")
    assert loop.loc.line == 10


def test_the_callers_names_stay(kernel) -> None:
    text = """\
@tilus.inline
def twice(t, n):
    for j in range(n):
        t = t + t
    return t

def k(x: ptr[f32], n: i32):
    launch(blocks=1)
    view = global_view(x, shape=n)
    t = full(8, 1.0, f32)
    for j in range(n):
        store_global(view, twice(t, j), offset=j)
        t = t * 3.0
    store_global(view, t, offset=0)
"""
    program = kernel(text).specialize({})
    verify(program)
    body = to_text(program)
    # The callee's t is a copy: the caller's is multiplied by 3 only.
    assert "t_1: register[f32, (8,)] = copy(x=t)" in body
    assert 't = elementwise(op="mul", args=(t, 3.0))' in body


def error(kernel, text: str) -> str:
    with pytest.raises(LangError) as caught:
        kernel(text).specialize({})
    return str(caught.value)


def test_errors_show_the_function_and_the_call(kernel) -> None:
    text = "@tilus.inline\ndef half(a):\n    return a / 2\n\ndef k(n: i32):\n    launch(blocks=n)\n    h = half(n)\n"
    assert error(kernel, text) == (
        "k.py:3:12: / of i32 has no integer result (inlined from k.py:7:9)\n"
        "        return a / 2\n"
        "               ^\n"
        "hint: use // to round down, or convert the operands with .to(f32)"
    )


def test_wrong_arguments(kernel) -> None:
    text = "@tilus.inline\ndef half(a):\n    return a\n\ndef k(n: i32):\n    launch(blocks=n)\n    h = half(n, 2)\n"
    assert error(kernel, text) == (
        "k.py:7:9: half: too many positional arguments\n"
        "        h = half(n, 2)\n"
        "            ^\n"
        "hint: its parameters are (a)"
    )


def test_recursion_ends_at_compile_time(kernel) -> None:
    good = """\
@tilus.inline
def power(x, n):
    if n == 0:
        return 1
    return x * power(x, n - 1)

def k(n: i32):
    launch(blocks=n)
    print(power(n, 3))
"""
    assert "args=(n * (n * n),)" in to_text(kernel(good).specialize({}))
    endless = good.replace("power(x, n - 1)", "power(x, n + 1)").replace("n == 0", "n == 100")
    assert "power is inlined more than 64 calls deep" in error(kernel, endless)


def test_plain_functions_take_constants_only(kernel) -> None:
    text = "def pick(n):\n    return 2 * n\n\ndef k(n: i32, *, B: int = 4):\n    launch(blocks=n)\n    z = pick(B)\n    z = pick(n)\n"
    assert error(kernel, text).splitlines()[0] == (
        "k.py:7:9: pick is a Python function: it runs while the kernel is compiled and cannot take a run-time i32"
    )


def test_a_result_inside_a_branch_is_refused(kernel) -> None:
    text = "@tilus.inline\ndef f(a):\n    if a > 0:\n        return a\n    return 0\n\ndef k(n: i32):\n    launch(blocks=n)\n    z = f(n)\n"
    assert "return stands inside a loop or branch that is decided at run time (inlined from k.py:9:9)" in error(
        kernel, text
    )
