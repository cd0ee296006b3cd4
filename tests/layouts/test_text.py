"""The text form: shortest products, round trips, tables, and errors that point into the text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.layouts.brute import layouts
from tests.layouts.test_shared import shared_layouts
from tilus.errors import ParseError
from tilus.layouts import (
    RegisterLayout,
    SharedLayout,
    auto_local_spatial,
    column_local,
    column_major,
    column_spatial,
    local,
    parse,
    parse_shared,
    replicated,
    row_major,
    row_major_swizzle,
    spatial,
    strided,
)


@settings(max_examples=190)
@given(layouts())
def test_parse_undoes_str(layout: RegisterLayout) -> None:
    assert parse(str(layout)) == layout
    assert repr(layout) == str(layout)


@settings(max_examples=70)
@given(shared_layouts())
def test_parse_shared_undoes_str(layout: SharedLayout) -> None:
    assert parse_shared(str(layout)) == layout


PRIMITIVES = st.sampled_from([spatial, local, column_spatial, column_local])


@settings(max_examples=120)
@given(st.lists(st.tuples(PRIMITIVES, st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2, 4])), max_size=4))
def test_a_product_is_printed_as_a_product_no_longer_than_it_was_written(parts: list[tuple[object, int, int]]) -> None:
    layout = local(1, 1)
    for primitive, m, n in parts:
        layout = layout * primitive(m, n)  # type: ignore[operator]
    text = str(layout)
    assert "register_layout" not in text
    assert text.count("*") <= max(len(parts) - 1, 0)


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (local(), "local()"),
        (spatial(1, 1), "local(1,1)"),
        (spatial(4, 1) * spatial(1, 8), "spatial(4,8)"),
        (spatial(1, 4) * spatial(8, 1), "column_spatial(8,4)"),
        (local(2, 1).spatial(8, 4).local(1, 2), "local(2,1) * spatial(8,4) * local(1,2)"),
        (spatial(2, 2) * spatial(3, 3), "spatial(2,2) * spatial(3,3)"),
        (replicated(4, 2), "replicated(4, rank=2)"),
        (spatial(3, 4).reduce([0]), "replicated(3, rank=1) * spatial(4)"),
        (auto_local_spatial(32, (8, 2)), "replicated(2, rank=2) * spatial(8,2)"),
        (
            parse("register_layout(shape=(4,), mode_shape=(2,2), spatial_modes=[1, Replicated(2), 0], local_modes=[])"),
            "register_layout(shape=[4], mode_shape=[2,2], spatial_modes=[1,Replicated(2),0], local_modes=[])",
        ),
    ],
)
def test_text(layout: RegisterLayout, text: str) -> None:
    assert str(layout) == text


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (row_major(8, 64), "row_major(8,64)"),
        (column_major(8, 64), "column_major(8,64)"),
        (row_major_swizzle((8, 64), 2), "row_major(8,64).swizzled(3, 3, 3)"),
        (strided((8, 64), (72, 1)), "strided([8,64], [72,1])"),
        (row_major_swizzle((8, 12), 4), "shared_layout(shape=[8,12], mode_shape=[8,3,4], mode_strides=[4,32,1])"),
        (row_major(), "row_major()"),
    ],
)
def test_shared_text(layout: SharedLayout, text: str) -> None:
    assert str(layout) == text


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("  spatial( 8 ,4 )  ", spatial(8, 4)),
        ("spatial(8,4).local(1,2)", spatial(8, 4).local(1, 2)),
        ("(spatial(8,4) * local(1,2)) / local(1,2)", spatial(8, 4)),
        ("spatial(2,4) / spatial(1,2) * local(2)", spatial(2, 2).local(1, 2)),
        ("left_divide(spatial(2,12), spatial(2,1))", spatial(1, 12)),
        ("reduce(spatial(3,4), dims=[0], keepdims=True)", replicated(3, 2) * spatial(1, 4)),
        ("spatial(3,4).reduce(0).unsqueeze((0,))", replicated(3, 2) * spatial(1, 4)),
        ("concat(spatial(2), local(3)).permute(1,0)", spatial(1, 2).local(3, 1)),
        ("auto_local_spatial(32, [8,2])", auto_local_spatial(32, (8, 2))),
        ("spatial(4,8).reshape(2,2,8)", spatial(2, 2, 8)),
        ("replicated(4,rank=2)", replicated(4, 2)),
    ],
)
def test_parse(text: str, layout: RegisterLayout) -> None:
    assert parse(text) == layout


@pytest.mark.parametrize(
    ("text", "message", "column"),
    [
        ("spatial(8,4", "expected , or ), got 'the end'", 12),
        ("spatial(8,4))", "expected an operator or the end, got ')'", 13),
        ("spatial(8,4) *", "expected a layout, got the end", 15),
        ("spatial(8,4) * tile(2)", "expected a layout, got 'tile'", 16),
        ("spatial(8,4).__class__()", "spatial(8,4) has no operation '__class__'", 14),
        ("spatial(8,4) + local(2)", "'+' does not belong in a layout", 14),
        ("spatial[8,4]", "expected ( after spatial, got '['", 8),
        ("spatial(8) * 2", "* joins two layouts of one kind, got spatial(8) and 2", 12),
        ("32", "expected a register layout such as spatial(8,4) * local(1,2), got 32", 1),
        ("row_major(8,4)", "expected a register layout such as spatial(8,4) * local(1,2), got row_major(8,4)", 1),
        ("", "expected a layout, got the end", 1),
        ("reduce([1,2], dims=0)", "reduce does not take these arguments", 1),
        ("spatial([2])", "spatial does not take these arguments", 1),
        ("replicated(2, width=3)", "replicated does not take these arguments", 1),
    ],
)
def test_parse_error(text: str, message: str, column: int) -> None:
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert caught.value.message.startswith(message)
    assert caught.value.loc is not None
    assert caught.value.loc.column == column


def test_show_names_threads_and_locals() -> None:
    assert spatial(2, 3).local(2, 1).show() == (
        "spatial(2,3) * local(2,1)  (threads:local)\n0:0  1:0  2:0\n0:1  1:1  2:1\n3:0  4:0  5:0\n3:1  4:1  5:1"
    )
    assert spatial(2, 2).reduce(0).show() == "replicated(2, rank=1) * spatial(2)  (threads:local)\n0,2:0  1,3:0"
    assert local(2, 1, 2).show() == "local(2,1,2)  (threads:local)\nindex (0,):\n0:0  0:1\nindex (1,):\n0:2  0:3"
    assert local().show() == "local()  (threads:local)\n0:0"
    assert column_major(2, 2).show() == "column_major(2,2)  (element offset)\n0  2\n1  3"
