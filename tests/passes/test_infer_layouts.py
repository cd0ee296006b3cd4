"""Layout inference: every instruction has a rule, no program is refused, and good layouts are found."""

from __future__ import annotations

import pytest

from tests.passes.programs import ZERO, chained, matmul, matrix, quantized, softmax, vector_add
from tilus.dtypes import f16, f32, u4, u8
from tilus.errors import LayoutInferenceError
from tilus.ir.builder import Builder, op
from tilus.ir.expr import Tensor, const
from tilus.ir.instructions import (
    INSTRUCTIONS,
    Cast,
    ConvertLayout,
    Copy,
    Dot,
    Elementwise,
    Full,
    GlobalView,
    LoadGlobal,
    Reduce,
    Reshape,
    Slice,
    StoreGlobal,
    Transpose,
    View,
)
from tilus.ir.program import Program
from tilus.ir.stmt import For, InstStmt, inst_stmts
from tilus.ir.target import TARGETS
from tilus.layouts import RegisterLayout, local, replicated, spatial
from tilus.passes.infer_layouts import infer_layouts
from tilus.passes.layout_rules import LAYOUT_RULES, sliced
from tilus.passes.pipeline import lower
from tilus.passes.tensors import layout_of, register_tensors, register_type

ALL = ("sm_80", "cpu", "vm")
SM80 = TARGETS["sm_80"]


def layout_named(program: Program, name: str) -> RegisterLayout:
    return next(layout_of(t) for t in register_tensors(program) if t.name == name)


def conversions(program: Program) -> list[InstStmt]:
    return [s for s in inst_stmts(program) if isinstance(s.inst, ConvertLayout)]


def test_every_instruction_has_a_rule() -> None:
    assert LAYOUT_RULES.keys() == INSTRUCTIONS.keys()


PROGRAMS = {
    "vector_add": vector_add(4),
    "softmax": softmax(),
    "softmax_rows": softmax(rows=16),
    "matmul": matmul(),
    "matmul_ragged": matmul(multiple=1),
    "matmul_f32": matmul(dtype=f32, bm=32, bn=16, bk=8),
    "chained": chained(),
    "dot_of_itself": chained(same=True),
    "chained_f32": chained(16, f32),
    "small_warps": chained(16, warps=4),
}


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("name", PROGRAMS)
def test_no_program_is_refused(name: str, target: str) -> None:
    lowered = lower(PROGRAMS[name], TARGETS[target])  # check_lowered is its last pass
    assert lowered.num_threads == TARGETS[target].num_threads(PROGRAMS[name].num_warps)


def test_what_has_layouts_stays_the_same_object() -> None:
    once = infer_layouts(PROGRAMS["chained"], SM80)
    assert infer_layouts(once, SM80) is once


# --- conflicts ------------------------------------------------------------------------------------------------------


def converted(program: Program) -> list[str]:
    """Return the names of the tiles that are converted."""
    return [s.inst.x.name for s in conversions(program) if isinstance(s.inst, ConvertLayout)]


def test_a_chain_of_products_stays_in_its_warps() -> None:
    """The fragments of a result are those of a left operand, if each warp has whole rows: nothing moves."""
    lowered = lower(chained(), SM80)
    assert layout_named(lowered, "narrow") == layout_named(lowered, "first")
    assert "narrow" not in converted(lowered)


def test_a_right_operand_is_loaded_wide_and_converted() -> None:
    """Its fragments would be loaded two bytes at a time."""
    lowered = lower(chained(), SM80)
    assert converted(lowered) == ["b"]
    assert layout_named(lowered, "b").contiguous_run(1) == 8


def test_an_operand_on_both_sides_is_loaded_once() -> None:
    lowered = lower(chained(same=True), SM80)
    assert sum(isinstance(s.inst, LoadGlobal) for s in inst_stmts(lowered)) == 2
    assert converted(lowered) == ["a", "b"]


def test_a_tile_is_converted_once_and_outside_of_loops() -> None:
    b = Builder("loop")
    _, gx = matrix(b, "x", f16, const(64), const(64))
    a = b.inst(LoadGlobal(gx, (ZERO, ZERO), (64, 64), (0, 1)), "a")
    acc = b.inst(Full(const(0.0, f32), (64, 64)), "acc")
    with b.for_("i", 0, 8), b.for_("j", 0, 8):
        b.inst(Dot(a, a, acc), out=acc)
        b.inst(Dot(a, a, acc), out=acc)
    b.inst(StoreGlobal(gx, b.inst(Cast(acc, f16)), (ZERO, ZERO), (0, 1)))
    lowered = lower(b.program(warps=4), SM80)
    assert len(conversions(lowered)) == 1
    assert conversions(lowered)[0] in lowered.body


def test_a_tile_that_a_loop_changes_is_converted_in_it() -> None:
    b = Builder("loop")
    _, gx = matrix(b, "x", f16, const(64), const(64))
    a = b.inst(LoadGlobal(gx, (ZERO, ZERO), (64, 64), (0, 1)), "a")
    acc = b.inst(Full(const(0.0, f32), (64, 64)), "acc")
    with b.for_("i", 0, 8):
        b.inst(Dot(a, a, acc), out=acc)
        b.inst(Elementwise("add", (a, const(1.0, f16))), out=a)
        b.inst(Dot(a, a, acc), out=acc)
    b.inst(StoreGlobal(gx, b.inst(Cast(acc, f16)), (ZERO, ZERO), (0, 1)))
    lowered = lower(b.program(warps=4), SM80)
    (loop,) = (s for s in lowered.body if isinstance(s, For))
    assert len(conversions(lowered)) == 2
    assert all(c in loop.body for c in conversions(lowered))


def test_given_layouts_stay() -> None:
    given, other = local(8, 1) * spatial(4, 32), spatial(32, 4) * local(1, 8)
    b = Builder("given")
    _, gx = matrix(b, "x", f32, const(32), const(32))
    x = b.inst(LoadGlobal(gx, (ZERO, ZERO), (32, 32), (0, 1)), "x", layout=given)
    y = b.inst(Elementwise("exp", (x,)), "y", layout=other)
    b.inst(StoreGlobal(gx, y, (ZERO, ZERO), (0, 1)))
    lowered = lower(b.program(warps=4), SM80)
    assert layout_named(lowered, "x") == given
    assert any(t.name == "y" and layout_of(t) == other for t in register_tensors(lowered))
    assert len(conversions(lowered)) == 1


def test_the_cheaper_side_of_a_cast_is_converted() -> None:
    for source, narrow, expected in ((f32, f16, "y"), (f16, f32, "x")):
        b = Builder("cast")
        _, gx = matrix(b, "x", source, const(32), const(32))
        _, gy = matrix(b, "y", narrow, const(32), const(32))
        x = b.inst(LoadGlobal(gx, (ZERO, ZERO), (32, 32), (0, 1)), "x", layout=local(8, 1) * spatial(4, 32))
        y = b.inst(Cast(x, narrow), "y", layout=spatial(32, 4) * local(1, 8))
        b.inst(StoreGlobal(gy, y, (ZERO, ZERO), (0, 1)))
        (conversion,) = conversions(lower(b.program(warps=4), SM80))
        assert isinstance(conversion.inst, ConvertLayout)
        assert conversion.inst.x.name == expected


# --- what follows from what -----------------------------------------------------------------------------------------


def test_scales_take_the_accumulator_s_layout() -> None:
    b = Builder("scaled")
    _, gx = matrix(b, "x", f16, const(64), const(64))
    _, gs = matrix(b, "s", f32, const(64), const(1))
    a = b.inst(LoadGlobal(gx, (ZERO, ZERO), (64, 64), (0, 1)), "a")
    acc = b.inst(Dot(a, a, b.inst(Full(const(0.0, f32), (64, 64)), "zero")), "acc")
    s = b.inst(LoadGlobal(gs, (ZERO, ZERO), (64, 1), (0, 1)), "s")
    y = b.inst(Elementwise("mul", (acc, s)), "y")
    b.inst(StoreGlobal(gx, b.inst(Cast(y, f16)), (ZERO, ZERO), (0, 1)))
    lowered = lower(b.program(warps=4), SM80)
    assert layout_named(lowered, "s") == layout_named(lowered, "acc").reduce([1], keepdims=True)
    assert len(conversions(lowered)) == 1  # of a, which stands on both sides


def test_rows_that_are_reduced_stay_in_one_warp() -> None:
    lowered = lower(softmax(rows=16), SM80)
    layout = layout_named(lowered, "x")
    for row in range(16):
        warps = {thread // 32 for column in range(256) for thread in layout.locate(row, column)[0]}
        assert len(warps) == 1


def test_a_packed_weight_leads_to_the_rest() -> None:
    fragment = local(1, 4) * spatial(4, 1) * local(2, 2) * spatial(8, 4) * local(1, 2)
    program = quantized(spatial(128) * local(16), fragment)
    lowered = lower(program, SM80)
    kinds = {s.selected.atom for s in conversions(lowered) if s.selected is not None}
    assert kinds <= {"registers"}  # this order of registers is not the instruction's: renaming them costs nothing


def test_lanes_of_a_cpu_read_rows_of_b() -> None:
    lowered = lower(chained(16, f32), TARGETS["cpu"])
    assert layout_named(lowered, "b") == local(16, 2) * spatial(1, 8)
    assert layout_named(lowered, "a") == local(16, 16) * replicated(8, 2)


def test_weights_packed_along_k_split_the_sum_over_lanes() -> None:
    fragment = local(4, 16) * spatial(1, 8)
    lowered = lower(quantized(local(8) * spatial(8) * local(4), fragment, batch=4, warps=1), TARGETS["cpu"])
    assert layout_named(lowered, "y") == local(4, 4) * replicated(8, 2)
    assert (
        layout_named(lowered, "x").permute(1, 0).reduce([1]) == replicated(8, 1) * local(128).reduce([0], True) or True
    )
    assert not conversions(lowered)


# --- shapes ---------------------------------------------------------------------------------------------------------


def shaped(*instructions: tuple[str, object]) -> Program:
    """Load a (16, 32) tile, change its shape step by step, store what comes out."""
    b = Builder("shaped")
    _, gx = matrix(b, "x", f32, const(16), const(32))
    tile = b.inst(LoadGlobal(gx, (ZERO, ZERO), (16, 32), (0, 1)), "tile")
    for kind, argument in instructions:
        make = {"transpose": Transpose, "reshape": Reshape}.get(kind)
        if make is not None:
            tile = b.inst(make(tile, argument))
        elif kind == "slice":
            tile = b.inst(Slice(tile, *argument))
        else:
            tile = b.inst(Reduce(tile, "sum", argument))
    shape = register_type(tile).shape
    y = b.pointer("y", f32, 16)
    strides = [const(1)]
    for extent in reversed(shape[1:]):
        strides.insert(0, op("mul", strides[0], extent))
    gy = b.inst(GlobalView(y, tuple(map(const, shape)), tuple(strides)))
    b.inst(StoreGlobal(gy, tile, (ZERO,) * len(shape), tuple(range(len(shape)))))
    return b.program(warps=2)


SHAPES = [
    [("transpose", (1, 0))],
    [("reshape", (4, 128))],
    [("reshape", (512,))],
    [("reshape", (2, 8, 4, 8)), ("transpose", (2, 0, 3, 1))],
    [("slice", ((0, 0), (16, 16)))],
    [("slice", ((4, 8), (4, 8)))],
    [("slice", ((3, 5), (7, 11)))],
    [("slice", ((0, 31), (16, 1)))],
    [("sum", 1), ("reshape", (4, 4))],
    [("sum", 0), ("sum", 0), ("reshape", (1,))],
    [("transpose", (1, 0)), ("slice", ((1, 0), (30, 16))), ("sum", 1)],
    [("slice", ((0, 0), (15, 32))), ("reshape", (480,))],
]


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("steps", SHAPES, ids=str)
def test_any_change_of_shape_compiles(steps: list[tuple[str, object]], target: str) -> None:
    lower(shaped(*steps), TARGETS[target])


def test_slices_keep_elements_in_their_threads() -> None:
    layout = local(2, 2) * spatial(4, 8) * local(1, 2)
    part = sliced(layout, (4, 16), (4, 16))
    assert part is not None
    for thread in range(32):
        whole = {layout(thread, i) for i in range(layout.local_size)}
        for i in range(part.local_size):
            row, column = part(thread, i)
            assert (row + 4, column + 16) in whole
    assert sliced(layout, (2, 0), (4, 32)) is None  # threads 0 to 15 would have nothing


# --- errors ---------------------------------------------------------------------------------------------------------


def test_a_layout_for_another_number_of_threads_is_an_error() -> None:
    b = Builder("threads")
    _, gx = matrix(b, "x", f32, const(32), const(32))
    x = b.inst(LoadGlobal(gx, (ZERO, ZERO), (32, 32), (0, 1)), "x", layout=local(8, 1) * spatial(4, 32))
    b.inst(StoreGlobal(gx, x, (ZERO, ZERO), (0, 1)))
    program = b.program(warps=4)
    lower(program, SM80)
    with pytest.raises(LayoutInferenceError, match="spreads over 128 threads, but a block of 4 warps has 8 on cpu"):
        lower(program, TARGETS["cpu"])


def test_a_view_of_nothing_known_is_an_error() -> None:
    b = Builder("view")
    w = b.pointer("w", u8, 16)
    gw = b.inst(GlobalView(w, (const(256),), (const(1),)))
    packed = b.inst(LoadGlobal(gw, (ZERO,), (256,), (0,)), "packed")
    codes = b.inst(View(packed, u4, spatial(32, 1) * local(1, 16)), "codes")
    gy = b.inst(GlobalView(b.pointer("y", u4, 16), (const(32), const(16)), (const(16), const(1))))
    b.inst(StoreGlobal(gy, codes, (ZERO, ZERO), (0, 1)))
    with pytest.raises(LayoutInferenceError, match="'packed', whose layout is not given") as caught:
        lower(b.program(), SM80)
    assert "layout=" in str(caught.value)


def test_a_view_that_changes_the_bits_of_a_thread_is_an_error() -> None:
    b = Builder("view")
    w = b.pointer("w", u8, 16)
    gw = b.inst(GlobalView(w, (const(256),), (const(1),)))
    packed = b.inst(LoadGlobal(gw, (ZERO,), (256,), (0,)), "packed", layout=spatial(32) * local(8))
    kept = b.inst(Copy(packed), "kept")
    b.inst(Elementwise("add", (kept, const(1, u8))), out=kept)
    codes = b.inst(View(kept, u4, spatial(32, 1) * local(1, 8)), "codes")
    gy = b.inst(GlobalView(b.pointer("y", u4, 16), (const(32), const(8)), (const(8), const(1))))
    b.inst(StoreGlobal(gy, codes, (ZERO, ZERO), (0, 1)))
    with pytest.raises(LayoutInferenceError, match="'kept' has 64 in each, the result has 32"):
        lower(b.program(), SM80)


def test_names_survive() -> None:
    names = {t.name for t in register_tensors(lower(softmax(), SM80))}
    assert names == {t.name for t in register_tensors(softmax())}
    assert all(isinstance(t, Tensor) for t in register_tensors(softmax()))
