"""Global layouts: offsets by definition, products, slices, and operands that are not numbers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilus.errors import LayoutError
from tilus.layouts import GlobalLayout, global_column_major, global_row_major, global_strided

extents = st.lists(st.integers(1, 4), max_size=3)


@given(extents, st.booleans())
def test_dense_layouts_are_numpys(shape: list[int], columns: bool) -> None:
    layout = (global_column_major if columns else global_row_major)(*shape)
    expected = np.arange(prod(shape)).reshape(shape, order="F" if columns else "C")
    for index in product(*map(range, shape)):
        assert layout(*index) == expected[index]
    assert layout.shape == tuple(shape)
    assert layout.numel == prod(shape)


def test_row_of_a_product() -> None:
    both = global_row_major(2, 2) * global_row_major(2, 2)
    assert [both(0, j) for j in range(4)] == [0, 1, 4, 5]
    assert [both(i, 0) for i in range(4)] == [0, 2, 8, 10]


dense = st.sampled_from([global_row_major, global_column_major])


@settings(max_examples=90)
@given(st.integers(0, 2), st.data())
def test_product_is_a_copy_of_the_inner_per_element(rank: int, data: st.DataObject) -> None:
    shape = st.lists(st.integers(1, 3), min_size=rank, max_size=rank)
    a, b, c = (data.draw(dense)(*data.draw(shape)) for _ in range(3))
    both = a * b
    for index in product(*map(range, both.shape)):
        high = [i // n for i, n in zip(index, b.shape, strict=True)]
        low = [i % n for i, n in zip(index, b.shape, strict=True)]
        assert both(*index) == a(*high) * b.numel + b(*low)
    left, right = (a * b) * c, a * (b * c)
    for index in product(*map(range, left.shape)):
        assert left(*index) == right(*index)


@given(st.data())
def test_slice_and_permute(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    strides = data.draw(st.lists(st.integers(-3, 20), min_size=len(shape), max_size=len(shape)))
    layout = global_strided(shape, strides, offset=7)
    start = [data.draw(st.integers(0, n - 1)) for n in shape]
    size = [data.draw(st.integers(0, n - s)) for n, s in zip(shape, start, strict=True)]
    part = layout.slice(start, size)
    order = data.draw(st.permutations(range(len(shape))))
    for index in product(*map(range, size)):
        whole = [s + i for s, i in zip(start, index, strict=True)]
        assert part(*index) == layout(*whole) == 7 + sum(i * s for i, s in zip(whole, strides, strict=True))
        assert part.permute(*order)(*[index[d] for d in order]) == part(*index)


@dataclass(frozen=True)
class Symbol:
    """A run-time value that only writes down what is done with it."""

    text: str

    def __add__(self, other: object) -> Symbol:
        return Symbol(f"({self.text} + {show(other)})")

    def __radd__(self, other: object) -> Symbol:
        return Symbol(f"({show(other)} + {self.text})")

    def __mul__(self, other: object) -> Symbol:
        return Symbol(f"({self.text} * {show(other)})")

    def __rmul__(self, other: object) -> Symbol:
        return Symbol(f"({show(other)} * {self.text})")

    def __floordiv__(self, other: object) -> Symbol:
        return Symbol(f"({self.text} // {show(other)})")

    def __mod__(self, other: object) -> Symbol:
        return Symbol(f"({self.text} % {show(other)})")


def show(value: object) -> str:
    return value.text if isinstance(value, Symbol) else str(value)


def test_run_time_extents() -> None:
    m, n, i, j = map(Symbol, "mnij")
    assert show(global_row_major(m, n)(i, j)) == "((i * n) + j)"
    assert show(global_column_major(m, n)(i, j)) == "(i + (j * m))"
    assert show(global_row_major(m, 64)(i, j)) == "((i * 64) + j)"
    assert show(global_row_major(m, n).slice((i, 0), (16, n))(2, j)) == "(((i * n) + (2 * n)) + j)"
    tiled = global_row_major(m, n) * global_row_major(2, 4)
    text = show(tiled(i, j))
    for values in product(range(4), range(12)):
        number = eval(text, {"m": 2, "n": 3, "i": values[0], "j": values[1]})
        assert number == (global_row_major(2, 3) * global_row_major(2, 4))(*values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: global_strided((2, 3), (1,)), "expected one stride per dimension, got 2 extents and 1 strides"),
        (lambda: global_row_major(2, 3)(1), "expected an index of 2 coordinates, got 1"),
        (lambda: global_row_major(2) * global_row_major(2, 2), "expected two layouts of one rank, got 1 and 2"),
        (lambda: global_row_major(2, 3).slice((1, 0), (2, 3)), "slice [1, 3) lies outside of extent 2"),
        (lambda: global_row_major(2, 3).slice((1,), (2,)), "expected 2 starts and extents, got 1 and 1"),
        (lambda: global_row_major(2, 3).permute(1, 1), "expected a permutation of 2 dimensions, got (1, 1)"),
        (lambda: (global_row_major(2) * global_row_major(2)).strides, "has no single stride per dimension"),
        (lambda: GlobalLayout(((),)), "every dimension of a global layout has at least one mode"),
    ],
)
def test_error_messages(make: object, message: str) -> None:
    with pytest.raises(LayoutError) as caught:
        make()  # type: ignore[operator]
    assert message in str(caught.value)


def test_numbers_do_not_multiply_layouts() -> None:
    with pytest.raises(TypeError):
        global_row_major(2) * 2  # type: ignore[operator]
