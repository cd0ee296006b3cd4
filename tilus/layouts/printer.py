"""The text form of layouts: the shortest product of primitives, and tables for people.

`parse(str(a)) == a` holds for every layout (`parser`). This module reads layouts and imports none of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import prod
from typing import TYPE_CHECKING

from tilus.layouts.digits import Digits

if TYPE_CHECKING:
    from tilus.layouts.register import RegisterLayout
    from tilus.layouts.shared import SharedLayout


def register_text(layout: RegisterLayout) -> str:
    """Return the shortest product of primitives, or `register_layout(...)` where the layout is no such product.

    A product lists thread digits and local digits from the outside in. A primitive takes digits from the front of one
    of the two lists, each from another dimension, ascending (row-major) or descending (column-major); a digit can be
    taken once all digits outside of it in its dimension are. So the best text is a shortest path over pairs
    (thread digits taken, local digits taken); ties go to the shorter text.
    """
    goal = len(layout.spatial_digits), len(layout.local_digits)
    queue: list[tuple[int, int, str, int, int]] = [(0, 0, "", 0, 0)]
    seen: set[tuple[int, int]] = set()
    while queue:
        factors, _, text, i, j = heapq.heappop(queue)
        if (i, j) == goal:
            return text or f"local({_commas([1] * layout.rank)})"
        if (i, j) in seen:
            continue
        seen.add((i, j))
        for factor, next_i, next_j in _factors(layout, i, j):
            longer = f"{text} * {factor}" if text else factor
            heapq.heappush(queue, (factors + 1, len(longer), longer, next_i, next_j))
    return (
        f"register_layout(shape=[{_commas(layout.shape)}], mode_shape=[{_commas(layout.mode_shape)}], "
        f"spatial_modes=[{_commas(layout.spatial_modes)}], local_modes=[{_commas(layout.local_modes)}])"
    )


def _factors(layout: RegisterLayout, i: int, j: int) -> Iterator[tuple[str, int, int]]:
    """Yield every primitive that can come next, with the numbers of thread and local digits taken after it."""
    reached = list(layout.shape)
    for size, dim, _ in (*layout.spatial_digits[:i], *layout.local_digits[:j]):
        if dim is not None:
            reached[dim] //= size
    if i < len(layout.spatial_digits) and layout.spatial_digits[i].dim is None:
        yield f"replicated({layout.spatial_digits[i].size}, rank={layout.rank})", i + 1, j
    for name, taken in _runs("spatial", layout.spatial_digits[i:], reached):
        yield name, i + taken, j
    for name, taken in _runs("local", layout.local_digits[j:], reached):
        yield name, i, j + taken


def _runs(kind: str, digits: Digits, reached: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Yield the primitives that take one or more digits from the front of `digits`."""
    shape, dims = [1] * len(reached), list[int]()
    for size, dim, stride in digits:
        if dim is None or dim in dims or size * stride != reached[dim]:
            return
        dims.append(dim)
        shape[dim] = size
        if dims == sorted(dims):
            yield f"{kind}({_commas(shape)})", len(dims)
        elif dims == sorted(dims, reverse=True):
            yield f"column_{kind}({_commas(shape)})", len(dims)
        else:
            return


def shared_text(layout: SharedLayout) -> str:
    """Return the shared layout as an expression that `parse_shared` reads."""
    shape, strides = layout.shape, _strides(layout)
    row_major = tuple(prod(shape[d + 1 :]) for d in range(len(shape)))
    column_major = tuple(prod(shape[:d]) for d in range(len(shape)))
    if strides is None:
        text = (
            f"shared_layout(shape=[{_commas(shape)}], mode_shape=[{_commas(layout.mode_shape)}], "
            f"mode_strides=[{_commas(layout.mode_strides)}])"
        )
    elif all(n == 1 or s == r for n, s, r in zip(shape, strides, row_major, strict=True)):
        text = f"row_major({_commas(shape)})"
    elif all(n == 1 or s == c for n, s, c in zip(shape, strides, column_major, strict=True)):
        text = f"column_major({_commas(shape)})"
    else:
        text = f"strided([{_commas(shape)}], [{_commas(strides)}])"
    s = layout.swizzle
    return text if s is None else f"{text}.swizzled({s.base}, {s.bits}, {s.shift})"


def _strides(layout: SharedLayout) -> tuple[int, ...] | None:
    """Return one stride per dimension, or None where a dimension has several modes."""
    if any(len(modes) > 1 for modes in layout.grouped_modes):
        return None
    return tuple(modes[0].stride if modes else 0 for modes in layout.grouped_modes)


def register_table(layout: RegisterLayout) -> str:
    """Return a text table with `threads:local` for every index; rank above 2 prints one block per leading index."""
    return _table(layout.shape, lambda index: _cell(layout, index), f"{layout}  (threads:local)")


def shared_table(layout: SharedLayout) -> str:
    """Return a text table with the element offset of every index."""
    return _table(layout.shape, lambda index: str(layout(*index)), f"{layout}  (element offset)")


def _cell(layout: RegisterLayout, index: tuple[int, ...]) -> str:
    threads, local = layout.locate(*index)
    return f"{_commas(threads)}:{local}"


def _table(shape: tuple[int, ...], cell: Callable[[tuple[int, ...]], str], title: str) -> str:
    rows, columns = (1, 1, *shape)[-2:]
    lines = [title]
    for lead in product(*map(range, shape[:-2])):
        cells = [[cell((*lead, r, c)[-len(shape) or 2 :]) for c in range(columns)] for r in range(rows)]
        width = max(len(text) for row in cells for text in row)
        lines += [f"index {lead}:"] if lead else []
        lines += ["  ".join(text.rjust(width) for text in row) for row in cells]
    return "\n".join(lines)


def _commas(values: Sequence[object]) -> str:
    return ",".join(map(str, values))
