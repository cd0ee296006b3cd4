"""Conversions: the class by sets of elements, and the tables by carrying them out on labelled registers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.layouts.brute import Raw, map_of
from tilus.errors import LayoutError
from tilus.layouts import (
    RegisterLayout,
    RegisterMoves,
    Replicated,
    Same,
    Shuffles,
    ThroughShared,
    classify_conversion,
    column_local,
    flat_index_table,
    local,
    parse,
    plan_conversion,
    replicated,
    spatial,
)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[RegisterLayout, RegisterLayout, int]:
    """Two layouts of one shape and thread count, and a warp size. Modes have one size, so any k make the threads."""
    base = draw(st.sampled_from([2, 2, 2, 3]))
    groups = draw(
        st.lists(st.integers(0, 3), min_size=1, max_size=2).filter(lambda g: 1 <= sum(g) <= (5 if base == 2 else 3))
    )
    modes = tuple((base,) * k for k in groups)
    names = [(d, p) for d, k in enumerate(groups) for p in range(k)]
    spatial_count = draw(st.integers(0, len(names) + 1))

    def one() -> RegisterLayout:
        replicas = draw(st.integers(max(spatial_count - len(names), 0), min(2, spatial_count)))
        order = draw(st.permutations(names))
        inside = order[: spatial_count - replicas]
        threads = draw(st.permutations([*inside, *[Replicated(base)] * replicas]))
        return Raw(modes, tuple(threads), tuple(order[len(inside) :])).layout()

    return one(), one(), base ** draw(st.integers(0, 3))


def brute_class(src: RegisterLayout, dst: RegisterLayout, lanes: int) -> str:
    source, target = map_of(src), map_of(dst)
    if source == target:
        return "same"
    threads = range(len(source))
    if all(x in source[t] for t in threads for x in target[t]):
        moves = {tuple(source[t].index(x) for x in target[t]) for t in threads}
        if len(moves) == 1:
            return "registers"
    warps = [{x for u in threads if u // lanes == t // lanes for x in source[u]} for t in threads]
    return "shuffle" if all(x in warps[t] for t in threads for x in target[t]) else "shared"


def carried_out(
    plan: Same | RegisterMoves | Shuffles, registers: np.ndarray, num_locals: int, lanes: int
) -> np.ndarray:
    """Do what the plan says, thread by thread."""
    match plan:
        case Same():
            return registers
        case RegisterMoves(src_local=src_local):
            return registers[:, list(src_local)]
        case Shuffles(rounds=rounds):
            result = np.full((len(registers), num_locals), -1, dtype=np.int64)
            for item in rounds:
                offered = [registers[t, item.send[t]] for t in range(len(registers))]
                for t in range(len(registers)):
                    assert item.source[t] // lanes == t // lanes
                    if item.keep[t] >= 0:
                        assert result[t, item.keep[t]] == -1, "every local is filled once"
                        result[t, item.keep[t]] = offered[item.source[t]]
            return result


@settings(max_examples=390)
@given(pairs())
def test_class_and_tables(case: tuple[RegisterLayout, RegisterLayout, int]) -> None:
    src, dst, lanes = case
    kind = classify_conversion(src, dst, lanes)
    plan = plan_conversion(src, dst, lanes)
    assert kind == plan.kind == brute_class(src, dst, lanes)
    if not isinstance(plan, ThroughShared):
        registers = flat_index_table(src)
        result = carried_out(plan, registers, dst.local_size, lanes)
        assert (result == flat_index_table(dst)).all()


@settings(max_examples=70)
@given(pairs())
def test_shuffles_use_few_rounds(case: tuple[RegisterLayout, RegisterLayout, int]) -> None:
    """At least one round for each local; at most as many as there are pairs (local of src, local of dst)."""
    src, dst, lanes = case
    plan = plan_conversion(src, dst, lanes)
    if isinstance(plan, Shuffles):
        assert dst.local_size <= len(plan.rounds) <= src.local_size * dst.local_size


C = "local(2,1) * spatial(8,4) * local(1,2)"
A = "column_local(2,2) * spatial(8,4) * local(1,2)"


@pytest.mark.parametrize(
    ("src", "dst", "kind"),
    [
        (f"local(1,2) * {C}", A, "same"),
        (f"local(2,1) * {C}", "local(4,1) * spatial(8,4) * local(1,2)", "same"),
        ("column_local(2,2) * spatial(8,4)", "local(2,2) * spatial(8,4)", "registers"),
        ("spatial(8,4) * local(2,2)", "spatial(8,4) * column_local(2,2)", "registers"),
        ("spatial(32,1) * local(1,32)", "spatial(1,32) * local(32,1)", "shuffle"),
        (C, "spatial(16,2) * local(1,4)", "shuffle"),
        ("spatial(4,1) * spatial(8,4)", "spatial(1,1) * spatial(32,4)", "same"),
        ("spatial(64,1) * local(1,64)", "spatial(1,64) * local(64,1)", "shared"),
        ("spatial(2,1) * replicated(2,2) * spatial(8,4)", "replicated(2,2) * spatial(2,1) * spatial(8,4)", "shared"),
        ("replicated(2,2) * spatial(8,4) * local(2,1)", "spatial(2,1) * spatial(8,4)", "shuffle"),
        ("replicated(2,2) * local(2,1) * spatial(8,4)", "spatial(2,1) * spatial(8,4)", "shuffle"),
        ("local(2,1) * spatial(8,4)", "local(2,1) * spatial(8,4)", "same"),
    ],
)
def test_known_classes(src: str, dst: str, kind: str) -> None:
    a, b = parse(src), parse(dst)
    assert classify_conversion(a, b) == kind == brute_class(a, b, 32)


def test_a_transposed_square_takes_as_many_shuffles_as_registers() -> None:
    """4 x 4 over 4 lanes: exchanging at distances 0 to 3 beats reading the same lane 4 times for each register."""
    plan = plan_conversion(spatial(4, 1).local(1, 4), spatial(1, 4).local(4, 1))
    assert isinstance(plan, Shuffles)
    assert len(plan.rounds) == 4


def test_a_broadcast_takes_one_shuffle_per_register() -> None:
    plan = plan_conversion(spatial(32), replicated(32).local(32))
    assert isinstance(plan, Shuffles)
    assert len(plan.rounds) == 32
    assert all(len(set(item.source.tolist())) == 1 for item in plan.rounds)


def test_dropping_replicas_is_a_renaming() -> None:
    plan = plan_conversion(replicated(32).local(4), replicated(32) * column_local(4))
    assert plan == Same()
    assert plan_conversion(local(2, 3), column_local(2, 3)) == RegisterMoves((0, 3, 1, 4, 2, 5))


def test_different_shapes_or_threads_are_refused() -> None:
    for a, b in [(spatial(4), spatial(2, 2)), (spatial(4), local(4))]:
        with pytest.raises(LayoutError, match="a conversion keeps shape and threads"):
            classify_conversion(a, b)


def test_a_large_conversion_is_planned() -> None:
    src = spatial(4, 2) * local(2, 8) * parse(C)
    dst = spatial(8, 1) * local(1, 16) * parse("spatial(4,8) * local(4,1)")
    assert src.num_threads == dst.num_threads == 256
    assert src.shape == (128, 128) == dst.shape
    assert classify_conversion(src, dst) == brute_class(src, dst, 32) == "shared"
