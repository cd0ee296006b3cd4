"""Every guarantee of a lowered program: broken on purpose, and noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.passes.programs import ZERO, chained, matmul, matrix, softmax, vector_add
from tilus.dtypes import f16, f32
from tilus.errors import InternalError
from tilus.ir.builder import Builder
from tilus.ir.expr import Tensor, const
from tilus.ir.instructions import (
    AllocShared,
    Cast,
    ConvertLayout,
    CopyAsync,
    Dot,
    Elementwise,
    Instruction,
    LoadGlobal,
    LoadShared,
    Reduce,
    Reshape,
    Slice,
    StoreGlobal,
    Transpose,
    View,
)
from tilus.ir.node import Node, rewrite, substitute
from tilus.ir.program import Program
from tilus.ir.stmt import InstStmt, inst_stmts
from tilus.ir.target import TARGETS
from tilus.layouts import RegisterLayout, auto_local_spatial, local, replicated, spatial
from tilus.passes.check_lowered import check_lowered
from tilus.passes.pipeline import lower
from tilus.passes.tensors import register_tensors, register_type, shared_tensors

SM80 = TARGETS["sm_80"]
MATMUL, CHAINED, ADD, SOFTMAX, ROWS = (
    lower(p, SM80) for p in (matmul(), chained(), vector_add(1000), softmax(), softmax(rows=16))
)


def shapes() -> Program:
    b = Builder("shapes")
    _, gx = matrix(b, "x", f32, const(16), const(32))
    x = b.inst(LoadGlobal(gx, (ZERO, ZERO), (16, 32), (0, 1)), "x", layout=local(4, 4) * spatial(4, 8))
    half = b.inst(Slice(x, (0, 0), (8, 32)), "half")
    turned = b.inst(Transpose(half, (1, 0)), "turned")
    flat = b.inst(Reshape(turned, (256, 1)), "flat")
    codes = b.inst(View(x, f16, local(8, 4) * spatial(4, 8)), "codes")
    b.inst(StoreGlobal(gx, b.inst(Cast(codes, f32)), (ZERO, ZERO), (0, 1)))
    gy = matrix(b, "y", f32, const(256), const(1))[1]
    b.inst(StoreGlobal(gy, flat, (ZERO, ZERO), (0, 1)))
    return b.program()


SHAPED = lower(shapes(), SM80)


def breaches(program: Program) -> str:
    with pytest.raises(InternalError) as caught:
        check_lowered(program, SM80)
    return caught.value.message


def change(program: Program, cls: type[Instruction], f: Callable[[InstStmt], InstStmt]) -> Program:
    """Change the first statement of an instruction class."""
    first = next(s for s in inst_stmts(program) if isinstance(s.inst, cls))

    def rule(node: Node) -> Node | None:
        return f(first) if node is first else None

    new: Program = rewrite(program, rule)
    return new


def selecting(program: Program, cls: type[Instruction], **fields: Any) -> Program:
    def f(stmt: InstStmt) -> InstStmt:
        assert stmt.selected is not None
        return replace(stmt, selected=replace(stmt.selected, **fields))

    return change(program, cls, f)


def tensor(program: Program, name: str) -> Tensor:
    return next(t for t in (*register_tensors(program), *shared_tensors(program)) if t.name == name)


def relaid(program: Program, name: str, layout: RegisterLayout | None) -> Program:
    """Give one tensor another layout, or none."""
    old = tensor(program, name)
    kind = register_type(old)
    return substitute(program, {old: replace(old, type=replace(kind, layout=layout))})


def test_lowered_programs_pass() -> None:
    for program in (MATMUL, CHAINED, ADD, SOFTMAX, SHAPED):
        assert check_lowered(program, SM80) is program


PLANTED: list[tuple[str, Callable[[], Program], str]] = [
    ("threads", lambda: replace(ADD, num_threads=None), "num_threads is not set"),
    ("shared bytes", lambda: replace(ADD, shared_bytes=None), "shared_bytes is not set"),
    ("no layout", lambda: relaid(ADD, "sum", None), "sum has no layout"),
    ("other threads", lambda: relaid(ADD, "sum", spatial(64).local(16)), "spread over 64 threads, not 128"),
    (
        "no shared layout",
        lambda: substitute(MATMUL, {(s := tensor(MATMUL, "sa")): replace(s, type=replace(s.type, layout=None))}),
        "sa has no shared layout",
    ),
    (
        "no offset",
        lambda: change(MATMUL, AllocShared, lambda s: replace(s, inst=replace(s.inst, byte_offset=None))),
        "no byte_offset",
    ),
    ("unselected", lambda: change(ADD, LoadGlobal, lambda s: replace(s, selected=None)), "load_global has no hardware"),
    (
        "overlap",
        lambda: change(MATMUL, AllocShared, lambda s: replace(s, inst=replace(s.inst, byte_offset=12288))),
        "overlap while both are in use",
    ),
    (
        "misaligned",
        lambda: change(MATMUL, AllocShared, lambda s: replace(s, inst=replace(s.inst, byte_offset=8))),
        "not aligned",
    ),
    ("too few bytes", lambda: replace(MATMUL, shared_bytes=100), "leave the 100 planned"),
    ("scratch outside", lambda: selecting(CHAINED, ConvertLayout, width=4096), "leave the 8192 planned"),
    ("elementwise", lambda: relaid(ADD, "sum", spatial(128) * local(8)), "the result needs"),
    ("cast", lambda: relaid(SOFTMAX, "wide", _other(SOFTMAX, "wide")), "differ"),
    ("reduce", lambda: relaid(ROWS, "top", _other(ROWS, "top")), "its operand gives"),
    ("transpose", lambda: relaid(SHAPED, "turned", _other(SHAPED, "turned")), "its operand gives"),
    ("reshape", lambda: relaid(SHAPED, "flat", _other(SHAPED, "flat")), "its operand gives"),
    ("slice", lambda: relaid(SHAPED, "half", spatial(8, 4) * local(1, 8)), "lie in other threads"),
    ("view", lambda: relaid(SHAPED, "codes", _other(SHAPED, "codes")), "the instruction says"),
    ("dot accumulator", lambda: relaid(MATMUL, "acc", _other(MATMUL, "acc")), "are not the fragments"),
    ("dot operand", lambda: relaid(MATMUL, "x", _other(MATMUL, "x")), "are not the fragments"),
    ("dot atom", lambda: selecting(MATMUL, Dot, atom="fma"), "do not hold what they multiply"),
    ("dot name", lambda: selecting(MATMUL, Dot, atom="mma.nothing"), "no matrix product is called"),
    ("conversion kind", lambda: selecting(CHAINED, ConvertLayout, atom="shuffle"), "is shared, selected is shuffle"),
    (
        "conversion result",
        lambda: change(CHAINED, ConvertLayout, lambda s: replace(s, inst=replace(s.inst, layout=_spread(s)))),
        "the conversion makes",
    ),
    ("load too wide", lambda: selecting(ADD, LoadGlobal, width=16), "not proved to lie together"),
    ("store too wide", lambda: selecting(ADD, StoreGlobal, width=8), "not proved to lie together"),
    ("unmasked", lambda: selecting(ADD, LoadGlobal, unmasked=(0,)), "dimensions [0] go unmasked without proof"),
    ("ldmatrix", lambda: selecting(MATMUL, LoadShared, atom="ldmatrix.x4.trans"), "ldmatrix.x4.trans cannot read"),
    (
        "ld.shared",
        lambda: selecting(MATMUL, LoadShared, atom="ld.shared", width=4),
        "4 elements at once are not contiguous",
    ),
    ("cp.async size", lambda: selecting(MATMUL, CopyAsync, width=1), "cp.async moves 4, 8 or 16 bytes, not 2"),
    ("cp.async width", lambda: selecting(MATMUL, CopyAsync, width=16), "on both sides"),
    ("cp.async bounds", lambda: selecting(MATMUL, CopyAsync, unmasked=(0, 1)), "without proof"),
]


def _spread(stmt: InstStmt) -> RegisterLayout:
    assert isinstance(stmt.inst, ConvertLayout)
    rows, columns = stmt.inst.layout.shape
    return spatial(rows, 128 // rows) * local(1, columns * rows // 128)


def _other(program: Program, name: str) -> RegisterLayout:
    """Return another layout for the same threads and extents."""
    layout = register_type(tensor(program, name)).layout
    assert layout is not None
    threads, shape = layout.num_threads, layout.shape
    options = [auto_local_spatial(threads, shape), replicated(threads, len(shape)) * local(*shape)]
    return next(option for option in options if option != layout)


@pytest.mark.parametrize(("program", "message"), [row[1:] for row in PLANTED], ids=[row[0] for row in PLANTED])
def test_a_broken_guarantee_is_noticed(program: Callable[[], Program], message: str) -> None:
    assert message in breaches(program())


def test_all_breaches_are_listed() -> None:
    text = breaches(selecting(selecting(ADD, LoadGlobal, width=16), StoreGlobal, width=8))
    assert "tile = load_global: 16 elements" in text
    assert "store_global: 8 elements" in text


def test_split_and_repeated_threads_are_told_apart() -> None:
    """An fma product whose operands are spread over threads that do not meet."""
    program = lower(chained(16, f32), SM80)
    assert "do not hold what they multiply" in breaches(relaid(program, "b", _other(program, "b")))


def test_every_rule_is_broken_once() -> None:
    planted = " ".join(name for name, *_ in PLANTED)
    for cls in (Elementwise, Cast, Reduce, Transpose, Reshape, Slice, View, Dot):
        assert cls.__name__.lower() in planted
