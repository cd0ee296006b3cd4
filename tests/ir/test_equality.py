"""Equality of programs: names do not count, everything else does."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import assume, given

from tests.ir.strategies import programs
from tilus.dtypes import f16, f32, i32
from tilus.ir.builder import Builder, op
from tilus.ir.expr import Const, Tensor, Var, const
from tilus.ir.instructions import Elementwise, Full, LoadElement
from tilus.ir.node import children, is_identity, map_children, rewrite, substitute, walk
from tilus.ir.parser import parse
from tilus.ir.program import Program


def renamed(program: Program, name: str) -> Program:
    table = {n: dataclasses.replace(n, name=f"{name}{i}") for i, n in enumerate(walk(program)) if is_identity(n)}
    return substitute(program, table)


@given(programs())
def test_names_do_not_count(program: Program) -> None:
    other = renamed(program, "z")
    assert other is not program
    assert other == program
    assert hash(other) == hash(program)


@given(programs(), programs())
def test_equality_is_that_of_numbered_texts(p: Program, q: Program) -> None:
    """Two independent definitions: comparing fields, and comparing texts in which every name is a number."""
    assert (p == q) == (str(renamed(p, "v")) == str(renamed(q, "v")))


@given(programs())
def test_any_literal_counts(program: Program) -> None:
    seen = []

    def once(node):
        if isinstance(node, Const) and not seen and not isinstance(node.value, bool):
            seen.append(node)
            return dataclasses.replace(node, value=node.value + 1)
        return None

    other = rewrite(program, once)
    assume(seen and seen[0].value + 1 != seen[0].value)
    assert other != program


def two(make) -> tuple[Program, Program]:
    out = []
    for swap in (False, True):
        b = Builder("p")
        make(b, swap)
        out.append(b.program())
    return out[0], out[1]


DIFFERENCES = {
    "order of operands": lambda b, s: (lambda x, y: b.let("z", op("sub", *((y, x) if s else (x, y)))))(
        b.let("x", 1), b.let("y", 1)
    ),
    "one variable or two": lambda b, s: (lambda x, y: b.let("z", op("sub", x, x if s else y)))(
        b.let("x", 1), b.let("y", 1)
    ),
    "type": lambda b, s: b.inst(Full(Const(0.0, f16 if s else f32), (1,))),
    "sign of zero": lambda b, s: b.let("x", const(-0.0 if s else 0.0)),
    "kind of literal": lambda b, s: b.let("x", Const(1, i32) if s else Const(1.0, f32)),
    "parameter promise": lambda b, s: b.scalar("n", i32, 2 if s else 1),
    "attribute": lambda b, s: b.inst(Full(const(0), (1, 2) if s else (2, 1))),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_differences(name: str) -> None:
    p, q = two(DIFFERENCES[name])
    assert p != q
    assert p == parse(str(p))
    assert q == parse(str(q))


def test_nan_is_itself() -> None:
    p, q = two(lambda b, s: b.let("x", const(float("nan"))))
    assert p == q
    assert p != "not a program"


# Laws of the traversal


@given(programs())
def test_identity_rewrite_returns_the_same_object(program: Program) -> None:
    assert rewrite(program, lambda node: None) is program
    assert rewrite(program, lambda node: node) is program


def variables(value, found: list) -> list:
    """Every variable below a value, found by looking at all fields: independent of `walk`."""
    if is_identity(value) if hasattr(value, "loc") else False:
        found.append(value)
    elif dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            if f.name != "loc":
                variables(getattr(value, f.name), found)
    elif isinstance(value, tuple | list):
        for item in value:
            variables(item, found)
    return found


@given(programs())
def test_walk_visits_every_variable(program: Program) -> None:
    seen = [node for node in walk(program) if isinstance(node, Var | Tensor)]
    assert seen == variables(program, [])
    assert all(any(child is node for node in walk(program)) for child in children(program))


def test_variables_compare_by_identity() -> None:
    b = Builder("p")
    x, y = b.let("x", 1), b.let("x", 1)
    assert x != y
    assert len({x, y}) == 2
    assert op("add", x, x) != op("add", x, y)
    assert op("add", x, y) == op("add", x, y)


def test_statements_may_become_none_or_several() -> None:
    b = Builder("p")
    b.let("x", 1)
    with b.while_(const(True)):
        b.let("y", 2)
        b.break_()
    program = b.program()
    gone = rewrite(program, lambda n: () if type(n).__name__ == "Let" else None)
    assert [type(s).__name__ for s in gone.body] == ["While"]
    assert [type(s).__name__ for s in gone.body[0].body] == ["Break"]
    double = map_children(program, lambda n: (n, n) if n in program.body else n)
    assert len(double.body) == 4


def test_substitute_reaches_declarations_and_operands() -> None:
    b = Builder("p")
    x = b.pointer("x", f32)
    v = b.inst(LoadElement(x, const(0)), "v")
    t = b.inst(Full(v, (4,)), "t")
    b.inst(Elementwise("mul", (t, v)), out=t)
    program = b.program()
    new = {n: dataclasses.replace(n, name=n.name + "2") for n in (x, v, t)}
    text = str(substitute(program, new))
    assert "x2: ptr" in text
    assert 't2 = elementwise(op="mul", args=(t2, v2))' in text
