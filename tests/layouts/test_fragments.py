"""Tensor-core fragments as expressions, against the formulas of the PTX manual (group = lane / 4, quad = lane % 4)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tilus.errors import LayoutError
from tilus.layouts import index_table, local, parse, spatial

Formula = Callable[[int, int, int], tuple[int, int]]  # (group, quad, register element) -> index

FRAGMENTS: dict[str, tuple[str, tuple[int, int], Formula]] = {
    "m16n8k16 f16 A": (
        "column_local(2,2) * spatial(8,4) * local(1,2)",
        (16, 16),
        lambda g, q, i: (g + 8 * (i in (2, 3, 6, 7)), q * 2 + i % 2 + 8 * (i >= 4)),
    ),
    "m16n8k16 f16 B": (
        "local(2,1) * column_spatial(4,8) * local(2,1)",
        (16, 8),
        lambda g, q, i: (q * 2 + i % 2 + 8 * (i >= 2), g),
    ),
    "m16n8 C": (
        "local(2,1) * spatial(8,4) * local(1,2)",
        (16, 8),
        lambda g, q, i: (g + 8 * (i >= 2), q * 2 + i % 2),
    ),
    "m16n8k8 f16 A": (
        "local(2,1) * spatial(8,4) * local(1,2)",
        (16, 8),
        lambda g, q, i: (g + 8 * (i >= 2), q * 2 + i % 2),
    ),
    "m16n8k32 s8 A": (
        "column_local(2,2) * spatial(8,4) * local(1,4)",
        (16, 32),
        lambda g, q, i: (g + 8 * (4 <= i < 8 or i >= 12), q * 4 + i % 4 + 16 * (i >= 8)),
    ),
    "m16n8k32 s8 B": (
        "local(2,1) * column_spatial(4,8) * local(4,1)",
        (32, 8),
        lambda g, q, i: (q * 4 + i % 4 + 16 * (i >= 4), g),
    ),
    "m16n8k8 tf32 A": (
        "column_local(2,2) * spatial(8,4)",
        (16, 8),
        lambda g, q, i: (g + 8 * (i % 2), q + 4 * (i >= 2)),
    ),
    "m16n8k8 tf32 B": ("local(2,1) * column_spatial(4,8)", (8, 8), lambda g, q, i: (q + 4 * i, g)),
    "ldmatrix": ("spatial(8,4) * local(1,2)", (8, 8), lambda g, q, i: (g, 2 * q + i)),
    "ldmatrix.trans": ("column_spatial(4,8) * local(2,1)", (8, 8), lambda g, q, i: (2 * q + i, g)),
}


@pytest.mark.parametrize("name", FRAGMENTS)
def test_fragment_is_the_manuals(name: str) -> None:
    text, shape, formula = FRAGMENTS[name]
    layout = parse(text)
    assert layout.shape == shape
    assert layout.num_threads == 32
    assert str(layout) == text
    table = index_table(layout)
    for lane in range(32):
        for i in range(layout.local_size):
            assert tuple(table[lane, i]) == formula(lane // 4, lane % 4, i)


@pytest.mark.parametrize("name", FRAGMENTS)
@pytest.mark.parametrize("outer", [spatial(2, 2), local(4, 2), spatial(2, 1).local(2, 3), local(1, 1)], ids=str)
def test_tiles_divide_by_their_instruction(name: str, outer: object) -> None:
    atom = parse(FRAGMENTS[name][0])
    assert (outer * atom) / atom == outer  # type: ignore[operator]


def test_the_accumulator_is_the_next_products_operand() -> None:
    """Two n-tiles of C are one A fragment: chained products need no conversion."""
    c, a = parse(FRAGMENTS["m16n8 C"][0]), parse(FRAGMENTS["m16n8k16 f16 A"][0])
    assert local(1, 2) * c == a


def test_other_tiles_do_not_divide() -> None:
    a, b = parse(FRAGMENTS["m16n8k16 f16 A"][0]), parse(FRAGMENTS["m16n8k16 f16 B"][0])
    for whole, part in [(local(1, 2) * b, a), (spatial(16, 2).local(1, 8), a), (a, b)]:
        with pytest.raises(LayoutError, match="cannot divide"):
            whole / part
