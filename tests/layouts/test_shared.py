"""Shared layouts: the map by its definition, products, reshapes, swizzles."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tilus.errors import LayoutError
from tilus.layouts import (
    SharedLayout,
    Swizzle,
    column_major,
    offset_table,
    row_major,
    row_major_swizzle,
    shared_layout,
    strided,
)


def raw_offset(modes: list[list[tuple[int, int]]], index: tuple[int, ...]) -> int:
    """The definition: split each coordinate over its modes, row-major, and add up the strides."""
    total = 0
    for coordinate, group in zip(index, modes, strict=True):
        sizes = [size for size, _ in group]
        digits = np.unravel_index(coordinate, sizes) if group else ()
        total += sum(int(digit) * stride for digit, (_, stride) in zip(digits, group, strict=True))
    return total


@st.composite
def raw_modes(draw: st.DrawFn, max_rank: int = 3) -> list[list[tuple[int, int]]]:
    mode = st.tuples(st.sampled_from([1, 2, 2, 3, 4]), st.sampled_from([0, 1, 2, 3, 4, 6, 8, 12, 16]))
    return draw(st.lists(st.lists(mode, max_size=2), min_size=0, max_size=max_rank))


def built(modes: list[list[tuple[int, int]]], swizzle: Swizzle | None = None) -> SharedLayout:
    flat = [mode for group in modes for mode in group]
    shape = [prod(size for size, _ in group) for group in modes]
    return shared_layout(shape, [size for size, _ in flat], [stride for _, stride in flat], swizzle)


swizzles = st.builds(
    lambda base, bits, extra: Swizzle(base, bits, bits + extra), st.integers(0, 2), st.integers(1, 2), st.integers(0, 2)
)


@st.composite
def shared_layouts(draw: st.DrawFn) -> SharedLayout:
    return built(draw(raw_modes()), draw(st.none() | swizzles))


@settings(max_examples=120)
@given(raw_modes(), st.none() | swizzles)
def test_layout_has_the_offsets_of_its_definition(modes: list[list[tuple[int, int]]], swizzle: Swizzle | None) -> None:
    layout = built(modes, swizzle)
    for index in product(*map(range, layout.shape)):
        offset = raw_offset(modes, index)
        if swizzle is not None:
            for bit in range(swizzle.bits):
                offset ^= (offset >> (swizzle.base + swizzle.shift + bit) & 1) << (swizzle.base + bit)
        assert layout(*index) == offset
        assert offset_table(layout)[index] == offset


@settings(max_examples=150)
@given(st.sampled_from([(4,), (8,), (2, 4), (12,)]), st.data())
def test_equal_exactly_if_the_offsets_are_equal(shape: tuple[int, ...], data: st.DataObject) -> None:
    def draw_one() -> SharedLayout:
        modes = []
        for extent in shape:
            first = data.draw(st.sampled_from([k for k in range(1, extent + 1) if extent % k == 0]))
            strides = data.draw(st.tuples(*[st.sampled_from([0, 1, 2, 4])] * 2))
            modes.append([(first, strides[0]), (extent // first, strides[1])])
        return built(modes)

    a, b = draw_one(), draw_one()
    assert (a == b) == bool((offset_table(a) == offset_table(b)).all())
    if a == b:
        assert hash(a) == hash(b)


@settings(max_examples=70)
@given(
    st.lists(st.sampled_from([1, 2, 3, 4]), max_size=3), st.booleans(), st.lists(st.sampled_from([1, 2, 4]), max_size=3)
)
def test_product_is_a_copy_of_the_inner_per_element(outer: list[int], columns: bool, inner: list[int]) -> None:
    a = (column_major if columns else row_major)(*outer)
    b = strided(inner, [3 * prod(inner[d + 1 :]) for d in range(len(inner))])
    both = a * b
    rank = max(len(outer), len(inner))
    a, b = a.unsqueeze(range(rank - a.rank)), b.unsqueeze(range(rank - b.rank))
    for index in product(*map(range, both.shape)):
        high = [i // n for i, n in zip(index, b.shape, strict=True)]
        low = [i % n for i, n in zip(index, b.shape, strict=True)]
        assert both(*index) == int(a(*high)) * b.storage_size + int(b(*low))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (row_major(2, 2), row_major_swizzle((8, 64), 2)),
        (column_major(4, 2), row_major(8, 8).swizzled(0, 3, 3)),
        (row_major(8, 8).swizzled(0, 2, 3), row_major(2, 2)),
        (row_major(8, 8).swizzled(1, 2, 3), column_major(1, 8)),
    ],
    ids=str,
)
def test_product_of_a_swizzled_tile(a: SharedLayout, b: SharedLayout) -> None:
    both = a * b
    for index in product(*map(range, both.shape)):
        high = [i // n for i, n in zip(index, b.shape, strict=True)]
        low = [i % n for i, n in zip(index, b.shape, strict=True)]
        assert both(*index) == int(a(*high)) * b.storage_size + int(b(*low))


def test_product_that_is_no_single_swizzle_is_refused() -> None:
    swizzled = row_major(8, 8).swizzled(0, 3, 3)
    for a, b in [
        (swizzled, swizzled),
        (row_major(2, 2), row_major(3, 3).swizzled(0, 1, 1)),
        (swizzled, row_major(3, 1)),
    ]:
        with pytest.raises(LayoutError, match="is not one swizzle"):
            a * b


@settings(max_examples=120)
@given(shared_layouts(), st.data())
def test_permute_and_unsqueeze_move_coordinates(layout: SharedLayout, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(layout.rank)))
    assert (offset_table(layout.permute(*order)) == offset_table(layout).transpose(order)).all()
    place = data.draw(st.integers(0, layout.rank))
    assert (offset_table(layout.unsqueeze(place)) == np.expand_dims(offset_table(layout), place)).all()


@settings(max_examples=150)
@given(shared_layouts(), st.data())
def test_reshape_keeps_row_major_order_or_is_impossible(layout: SharedLayout, data: st.DataObject) -> None:
    rest, shape = prod(layout.shape), []
    assume(rest > 1)
    for _ in range(data.draw(st.integers(0, 2))):
        shape.append(data.draw(st.sampled_from([k for k in range(1, rest + 1) if rest % k == 0])))
        rest //= shape[-1]
    shape.append(rest)
    unswizzled = shared_layout(layout.shape, layout.mode_shape, layout.mode_strides)
    try:
        reshaped = layout.reshape(*shape)
    except LayoutError:
        assert not is_a_sum_of_modes(offset_table(unswizzled).reshape(shape))
        return
    assert (offset_table(reshaped) == offset_table(layout).reshape(shape)).all()


@given(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=3), st.booleans(), st.permutations([2, 3, 4]))
def test_a_dense_tile_takes_every_shape(shape: list[int], swizzled: bool, other: list[int]) -> None:
    """Dimensions that lie one inside the other in memory merge before they split."""
    outer = [*shape, prod(other)]
    layout = row_major(*outer)
    layout = layout.swizzled(0, 1, 2) if swizzled else layout
    flat = layout.reshape(prod(outer))
    assert (offset_table(flat) == offset_table(layout).ravel()).all()
    assert flat.reshape(*other, prod(shape)).reshape(*outer) == layout


def is_a_sum_of_modes(table: np.ndarray) -> bool:
    """Brute force: the table is a sum over dimensions, and along each one some prime modes with strides explain it."""
    lines = [table[tuple(slice(None) if e == d else 0 for e in range(table.ndim))] for d in range(table.ndim)]
    total = sum(line.reshape([-1 if e == d else 1 for e in range(table.ndim)]) for d, line in enumerate(lines))
    return bool((total == table).all()) and all(line_has_modes(line) for line in lines)


def line_has_modes(line: np.ndarray) -> bool:
    if len(line) == 1:
        return True
    for size in (k for k in range(2, len(line) + 1) if len(line) % k == 0):
        inner = line[:: len(line) // size]  # the outermost mode
        steps = line.reshape(size, -1)
        steady = (inner == np.arange(size) * inner[1]).all() and (steps == inner[:, None] + steps[0]).all()
        if steady and line_has_modes(steps[0]):
            return True
    return False


@given(shared_layouts(), st.integers(1, 4))
def test_prepended_buffers_are_translated_copies(layout: SharedLayout, extent: int) -> None:
    table = offset_table(layout.prepend_dim(extent))
    assert table.shape == (extent, *layout.shape)
    used = [set(buffer.ravel().tolist()) for buffer in table]
    for k in range(extent):
        assert (table[k] - table[k].min() == table[0] - table[0].min()).all()
        assert all(used[k].isdisjoint(used[j]) for j in range(k))


@given(st.integers(0, 4), st.integers(1, 4), st.integers(0, 4))
def test_swizzle_is_its_own_inverse_and_stays_in_its_block(base: int, bits: int, extra: int) -> None:
    swizzle = Swizzle(base, bits, bits + extra)
    offsets = np.arange(2 * swizzle.period, dtype=np.int64)
    moved = swizzle(offsets)
    assert (swizzle(moved) == offsets).all()
    assert (moved >> (base + bits) == offsets >> (base + bits)).all()
    assert (moved[swizzle.period :] == moved[: swizzle.period] + swizzle.period).all()
    assert (moved != offsets).any()


@given(
    st.lists(st.sampled_from([1, 2, 3, 8]), max_size=2),
    st.sampled_from([1, 8, 12, 16, 24, 32, 40, 64, 96, 128, 192, 256]),
    st.sampled_from([1, 2, 4, 8, 16]),
)
def test_row_major_swizzle_is_dense_and_keeps_chunks(lead: list[int], columns: int, elem_bytes: int) -> None:
    layout = row_major_swizzle((*lead, columns), elem_bytes)
    table = offset_table(layout)
    assert sorted(table.ravel().tolist()) == list(range(prod(layout.shape)))
    chunk = max(16 // elem_bytes, 1)
    if columns % chunk == 0:
        chunks = table.reshape(-1, chunk)
        assert (chunks == chunks[:, :1] + np.arange(chunk)).all()
        assert (chunks[:, 0] % chunk == 0).all()


def test_wide_rows_are_panels_of_128_bytes() -> None:
    layout = row_major_swizzle((16, 128), 2)
    panel = row_major_swizzle((16, 64), 2)
    for row, column in product(range(16), range(128)):
        assert layout(row, column) == column // 64 * 16 * 64 + int(panel(row, column % 64))


def test_arrays_of_indices() -> None:
    layout = row_major_swizzle((8, 64), 2)
    rows, columns = np.meshgrid(np.arange(8), np.arange(64), indexing="ij")
    assert (layout(rows, columns) == offset_table(layout)).all()
    assert (np.asarray(layout(rows, 3)) == offset_table(layout)[:, 3:4]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: strided((2, 0), (1, 1)), "expected extents of at least 1 and one stride per mode"),
        (lambda: strided((2, 2), (1,)), "expected extents of at least 1 and one stride per mode"),
        (lambda: strided((2,), (-1,)), "strides in shared memory are at least 0"),
        (lambda: shared_layout((6,), (4,), (1,)), "the modes do not factor the shape"),
        (lambda: shared_layout((4,), (4, 2), (1, 1)), "there are more modes than the shape has"),
        (lambda: row_major(2, 3)(1), "row_major(2,3) has 2 dimensions, got an index of 1"),
        (lambda: row_major(2, 3).reshape(5), "cannot reshape (2, 3) to (5,): 6 and 5 elements"),
        (lambda: column_major(2, 3).reshape(3, 2), "cannot reshape column_major(2,3) to (3, 2)"),
        (lambda: row_major(2, 3).permute(0), "expected a permutation of 2 dimensions, got (0,)"),
        (lambda: row_major(2, 3).unsqueeze((0, 0)), "dimensions to insert must differ"),
        (lambda: Swizzle(0, 3, 2), "a swizzle needs base >= 0 and shift >= bits >= 1"),
        (lambda: row_major(8, 8).swizzled(0, 1, 1).swizzled(0, 1, 1), "is swizzled already"),
        (lambda: row_major_swizzle((8, 8), 3), "expected at least one dimension and elements of 1 to 16 bytes"),
    ],
)
def test_error_messages(make: object, message: str) -> None:
    with pytest.raises(LayoutError) as caught:
        make()  # type: ignore[operator]
    assert message in str(caught.value)
