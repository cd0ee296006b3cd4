"""Random programs of branches, loops, swaps and jumps: their IR does what Python does with the same text."""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tilus.ir.printer import to_text
from tilus.ir.verify import verify
from tilus.lang import define


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Machine = _load("machine").Machine
run_text = _load("conftest").run_text

# What the functions of the language mean in Python.
PYTHON = SimpleNamespace(full=lambda shape, value, dtype: np.full(shape, value), i32=None, launch=lambda blocks: None)

SCALARS, TILES = ("a", "b", "c"), ("t", "u")
# Remainders keep the numbers small: Python's do not wrap.
scalar_exprs = st.sampled_from(
    ["a", "b + 1", "(a - c) % 999", "b // 3", "c % 5", "(i + a) % 999", "2", "max(a, b)", "x[a % 4]", "-c"]
)
tile_exprs = st.sampled_from(["t", "(u + t) % 97", "u - 1", "t * a % 97", "full((2,), b, tilus.i32)", "t - i"])
conditions = st.sampled_from(
    [
        "a < b",
        "a % 2 == 0",
        "b > 3 and x[b % 4] > 2",
        "not c < a",
        "0 <= c < 9 or x[a % 4] == b",
        "i == 1",
        "True",
        "BIG > 3",
    ]
)


def _lines(text: str) -> list[str]:
    return [text]


assignments = st.one_of(
    st.builds("{} = {}".format, st.sampled_from(SCALARS), scalar_exprs),
    st.builds("{0} += {1}; {0} %= 999".format, st.sampled_from(SCALARS), scalar_exprs),
    st.builds("{} = {} if {} else {}".format, st.sampled_from(SCALARS), scalar_exprs, conditions, scalar_exprs),
    st.builds("{} = {}".format, st.sampled_from(TILES), tile_exprs),
    st.sampled_from(
        ["a, b = b, a", "t, u = u, t", "a, (b, c) = c, (a, b)", "pair = (a, t)", "print(a, t)", "b, u = pair"]
    ),
).map(_lines)
jumps = st.builds(lambda c, j: [f"if {c}:", f"    {j}"], conditions, st.sampled_from(["break", "continue"]))


def _indent(lines: list[str]) -> list[str]:
    return ["    " + line for line in lines]


def _if(cond: str, then: list[str], orelse: list[str]) -> list[str]:
    return [f"if {cond}:", *_indent(then), *(["else:", *_indent(orelse)] if orelse else [])]


def _for(bound: str, body: list[str]) -> list[str]:
    return [f"for i in {bound}:", *_indent(body), "i = 1"]


def _while(body: list[str]) -> list[str]:
    # `fuel` makes every loop end.
    return ["while fuel > 0 and a < 40:", "    fuel -= 1", *_indent(body)]


def _blocks(inner: st.SearchStrategy[list[str]]) -> st.SearchStrategy[list[str]]:
    body = st.lists(inner, min_size=1, max_size=4).map(lambda parts: [line for part in parts for line in part])
    jumping = st.builds(lambda a, j, b: [*a, *j, *b], body, jumps, body)
    bounds = st.sampled_from(["range(3)", "range(a % 4)", "range(4, a % 3, -1)", "range(b % 3, n, 2)"])
    return st.one_of(
        st.builds(_if, conditions, body, st.one_of(st.just([]), body)),
        st.builds(_for, bounds, st.one_of(body, jumping)),
        st.builds(_for, st.just("static_range(3)"), body),
        st.builds(_while, st.one_of(body, jumping)),
    )


programs = st.lists(st.recursive(assignments, _blocks, max_leaves=12), min_size=1, max_size=5)


def compare(lines: list[str], n: int, data: list[int]) -> None:
    body = [
        "launch(blocks=n)",
        "a, b, c, i, fuel = 0, n, 7, 1, 12",
        "t = full((2,), 1, tilus.i32)",
        "u = full((2,), n, tilus.i32)",
    ]
    body += ["pair = (a, t)", *lines, "print(a, b, c, t, u, pair[0], pair[1])"]
    text = "def k(x: ptr[i32], n: i32, *, BIG: int = 4):\n" + textwrap.indent("\n".join(body), "    ") + "\n"
    program = define(run_text(text)["k"]).specialize({})
    verify(program)
    printed: list[str] = []
    space = {
        "tilus": PYTHON, "full": PYTHON.full, "launch": PYTHON.launch, "static_range": range,
        "print": lambda *args: printed.append(" ".join(str(np.asarray(arg).tolist()) for arg in args)),
    }  # fmt: skip
    exec(text.replace("x: ptr[i32], n: i32", "x, n"), space)
    space["k"](data, n)
    assert Machine(program, [data, n]).printed == printed, text + to_text(program)


@settings(max_examples=150)
@given(programs, st.integers(-3, 9), st.lists(st.integers(-2, 6), min_size=4, max_size=4))
def test_random_programs(parts: list[list[str]], n: int, data: list[int]) -> None:
    compare([line for part in parts for line in part], n, data)
