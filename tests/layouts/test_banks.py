"""Bank conflicts against a simulator that looks at one lane and one word at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilus.errors import LayoutError
from tilus.layouts import (
    Access,
    BankReport,
    RegisterLayout,
    SharedLayout,
    bank_conflicts,
    best_swizzle,
    column_major,
    ldmatrix_conflicts,
    local,
    offset_table,
    parse,
    row_major,
    row_major_swizzle,
    spatial,
    strided,
)

PHASES = {1: 1, 2: 1, 4: 1, 8: 2, 16: 4}


def simulated(
    shared: SharedLayout, register: RegisterLayout, elem_bytes: int, vector_bytes: int, lanes: int
) -> BankReport:
    """Let every warp issue one access after the other, and every phase deliver one word per bank and wavefront."""
    width = vector_bytes // elem_bytes
    accesses = wavefronts = ideal = 0
    for first in range(0, register.num_threads, lanes):
        warp = range(first, min(first + lanes, register.num_threads))
        for vector in range(0, register.local_size, width):
            accesses += 1
            size = max(lanes // PHASES[vector_bytes], 1) if lanes == 32 else min(32 // PHASES[vector_bytes], lanes)
            for start in range(first, first + lanes, size):
                active = [t for t in warp if start <= t < start + size]
                if not active:
                    continue
                asked: dict[int, set[int]] = {}
                for thread in active:
                    address = int(shared(*register(thread, vector))) * elem_bytes
                    for byte in range(address, address + vector_bytes):
                        asked.setdefault(byte // 4 % 32, set()).add(byte // 4)
                wavefronts += max(map(len, asked.values()))
                ideal += 1
    return BankReport(accesses, wavefronts, ideal)


@st.composite
def cases(draw: st.DrawFn) -> tuple[SharedLayout, RegisterLayout, int, int]:
    """A tile of 2**k elements, in memory in some order with a swizzle, spread over threads in some order."""
    elem_bytes = draw(st.sampled_from([1, 2, 4]))
    vector_bytes = draw(st.sampled_from([v for v in (1, 2, 4, 8, 16) if v >= elem_bytes]))
    width = vector_bytes // elem_bytes
    factors = draw(st.permutations([("s", 0), ("s", 0), ("s", 1), ("s", 1), ("s", 1), ("l", 0), ("l", 1)]))
    layout = local(1, 1)
    for kind, dim in factors:
        shape = (2, 1) if dim == 0 else (1, 2)
        layout = layout * (spatial(*shape) if kind == "s" else local(*shape))
    layout = (spatial(2, 1) if draw(st.booleans()) else local(1, 1)) * layout * local(1, width)
    if draw(st.booleans()):
        layout = parse("replicated(2, rank=2)") * layout
    shared = draw(st.sampled_from([row_major(*layout.shape), strided(layout.shape, (layout.shape[1] + width, 1))]))
    base = width.bit_length() - 1
    if draw(st.booleans()):
        bits = draw(st.integers(1, 3))
        shared = shared.swizzled(base, bits, bits + draw(st.integers(0, 3)))
    return shared, layout, elem_bytes, vector_bytes


@settings(max_examples=100)
@given(cases(), st.sampled_from([32, 32, 16, 8]))
def test_counts_are_the_simulators(case: tuple[SharedLayout, RegisterLayout, int, int], lanes: int) -> None:
    shared, register, elem_bytes, vector_bytes = case
    report = bank_conflicts(shared, register, elem_bytes * 8, vector_bytes, lanes)
    assert report == simulated(shared, register, elem_bytes, vector_bytes, lanes)
    assert report.conflicts == report.wavefronts - report.ideal >= 0


A = parse("column_local(2,2) * spatial(8,4) * local(1,2)")


def simulated_ldmatrix(shared: SharedLayout, register: RegisterLayout, transposed: bool) -> int:
    """Find each matrix by its elements: the eight rows of 16 bytes, their words, the busiest bank."""
    total = 0
    for first in range(0, register.num_threads, 32):
        for pair in range(0, register.local_size, 2):
            words: dict[int, set[int]] = {}
            for row in range(8):
                places = []
                for k in range(8):
                    lane, i = (k * 4 + row // 2, row % 2) if transposed else (row * 4 + k // 2, k % 2)
                    places.append(int(shared(*register(first + lane, pair + i))) * 2)
                assert places == list(range(places[0], places[0] + 16, 2))
                for byte in range(places[0], places[0] + 16):
                    words.setdefault(byte // 4 % 32, set()).add(byte // 4)
            total += max(map(len, words.values()))
    return total


@pytest.mark.parametrize("columns", [16, 32, 64, 128, 24, 40])
@pytest.mark.parametrize("swizzle", [None, (3, 1, 3), (3, 2, 3), (3, 3, 3), (3, 2, 2), (4, 1, 2)], ids=str)
def test_ldmatrix_counts_are_the_simulators(columns: int, swizzle: tuple[int, int, int] | None) -> None:
    shared = row_major(32, columns)
    shared = shared.swizzled(*swizzle) if swizzle else shared
    tile = (spatial(2, 1) * local(1, columns // 8)) * parse("local(2,1) * spatial(8,4) * local(1,2)")
    assert ldmatrix_conflicts(shared, tile, 16).wavefronts == simulated_ldmatrix(shared, tile, False)
    turned = tile.permute(1, 0)
    report = ldmatrix_conflicts(shared.permute(1, 0), turned, 16)
    assert report.wavefronts == simulated_ldmatrix(shared, tile, False)
    by_columns = (spatial(2, 1) * local(2, columns // 8)) * parse("column_spatial(4,8) * local(2,1)")
    report = ldmatrix_conflicts(shared, by_columns, 16, transposed=True)
    assert report.wavefronts == simulated_ldmatrix(shared, by_columns, True)
    assert report.ideal == report.accesses == 2 * 2 * columns // 8


@pytest.mark.parametrize(
    ("shared", "register", "bits", "vector", "wavefronts", "ideal"),
    [
        (row_major(32, 32), spatial(1, 32).local(32, 1), 32, 4, 32, 32),  # rows: every lane its own bank
        (row_major(32, 32), spatial(32, 1).local(1, 32), 32, 4, 1024, 32),  # columns: one bank for all
        (strided((32, 32), (33, 1)), spatial(32, 1).local(1, 32), 32, 4, 32, 32),  # the padding everybody knows
        (row_major(32, 32), parse("replicated(32, rank=2) * local(32,32)"), 32, 4, 1024, 1024),  # a broadcast is free
        (row_major(32, 8), spatial(32, 1).local(1, 8), 16, 16, 4, 4),  # 16 bytes per lane: 4 phases
        (row_major(32, 4), spatial(32, 1).local(1, 4), 16, 8, 2, 2),  # 8 bytes per lane: 2 phases
        (row_major(32, 64), spatial(32, 1).local(1, 64), 16, 16, 8 * 4 * 8, 32),  # rows of 128 bytes: 8-way
        (row_major_swizzle((32, 64), 2), spatial(32, 1).local(1, 64), 16, 16, 32, 32),
        (row_major(1, 64), spatial(1, 32).local(1, 2), 8, 1, 2, 2),  # bytes of one word are one word
    ],
)
def test_known_counts(
    shared: SharedLayout, register: RegisterLayout, bits: int, vector: int, wavefronts: int, ideal: int
) -> None:
    report = bank_conflicts(shared, register, bits, vector)
    assert (report.wavefronts, report.ideal) == (wavefronts, ideal)


def test_ldmatrix_of_plain_and_swizzled_rows() -> None:
    tile = local(4, 4) * A
    assert ldmatrix_conflicts(row_major(64, 64), tile, 16) == BankReport(64, 512, 64)
    assert ldmatrix_conflicts(row_major_swizzle((64, 64), 2), tile, 16) == BankReport(64, 64, 64)


def test_sub_byte_elements() -> None:
    """Eight 4-bit elements are one word; 32 of them one vector of 16 bytes."""
    tile = spatial(32, 1).local(1, 32)
    assert bank_conflicts(row_major(32, 32), tile, 4, 16) == BankReport(1, 4, 4)
    assert bank_conflicts(row_major(32, 32), tile, 4, 4) == BankReport(4, 16, 4)


@pytest.mark.parametrize(
    ("columns", "elem_bytes"), [(8, 2), (16, 2), (24, 2), (32, 2), (40, 2), (48, 2), (64, 2), (96, 2), (128, 2)]
)
def test_best_swizzle_has_no_conflicts(columns: int, elem_bytes: int) -> None:
    """Rows of any number of 16-byte chunks, read by ldmatrix and written by lanes that walk down the rows."""
    tile = local(1, columns // 8) * parse("local(4,1) * local(2,1) * spatial(8,4) * local(1,2)")
    write = local(2, columns // 8) * spatial(32, 1) * local(1, 8)
    accesses = (Access(tile, kind="matrix"), Access(write, 16))
    shared = best_swizzle((64, columns), elem_bytes, accesses)
    assert [access.report(shared, 16).conflicts for access in accesses] == [0, 0]
    table = offset_table(shared)
    assert len(np.unique(table)) == table.size
    assert shared.storage_size == 64 * columns


def test_best_swizzle_pads_where_no_xor_fits() -> None:
    """Lanes that take 8 bytes in 8 rows of 4: an XOR moves whole vectors, and half a row of banks is too little."""
    fragment = Access(local(4, 2) * spatial(8, 4) * local(1, 4), 8)
    shared = best_swizzle((32, 32), 2, (fragment,))
    assert fragment.report(shared, 16).conflicts == 0
    assert shared == strided((32, 32), (48, 1))


def test_best_swizzle_of_lanes_that_walk_down_the_columns() -> None:
    column_walk = Access(spatial(32, 1).local(1, 12), 4)
    shared = best_swizzle((32, 12), 4, (column_walk,))
    assert column_walk.report(shared, 32).conflicts == 0
    assert bank_conflicts(row_major(32, 12), column_walk.layout, 32, 4).conflicts > 0


def test_best_swizzle_follows_the_vectors() -> None:
    down = Access(spatial(1, 32).local(8, 1), 16)
    assert best_swizzle((8, 32), 2, (down,)) == column_major(8, 32)
    across = Access(spatial(8, 4).local(1, 8), 16)
    with pytest.raises(LayoutError, match="fits all accesses"):
        best_swizzle((8, 32), 2, (down, across))


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (lambda: bank_conflicts(row_major(8, 8), spatial(8, 8), 16, 3), "a lane moves 1, 2, 4, 8 or 16 bytes at once"),
        (lambda: bank_conflicts(row_major(8, 8), spatial(8, 4), 16, 2), "shapes differ"),
        (lambda: bank_conflicts(row_major(8, 8), spatial(8, 8), 16, 4), "are no vectors of 4 bytes"),
        (lambda: bank_conflicts(column_major(8, 8), spatial(8, 1).local(1, 8), 16, 4), "not contiguous and aligned"),
        (
            lambda: bank_conflicts(strided((8, 2), (3, 1)), spatial(8, 1).local(1, 2), 16, 4),
            "not contiguous and aligned",
        ),
        (lambda: ldmatrix_conflicts(row_major(8, 8), spatial(8, 8), 16), "ldmatrix fills 32-bit registers"),
        (lambda: ldmatrix_conflicts(column_major(16, 16), A, 16), "not contiguous and aligned"),
        (
            lambda: ldmatrix_conflicts(row_major(16, 16), A, 8, transposed=True),
            "ldmatrix transposes 16-bit elements only",
        ),
    ],
)
def test_error_messages(count: object, message: str) -> None:
    with pytest.raises(LayoutError) as caught:
        count()  # type: ignore[operator]
    assert message in str(caught.value)
