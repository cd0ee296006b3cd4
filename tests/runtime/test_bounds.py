"""A launch that would touch foreign memory is refused before any block runs; one that would not is let through."""

import timeit

import numpy as np
import pytest
import torch

import tilus
from tests.test_scale_rows import scale_rows
from tilus import f16, f32, i32, u4, u8
from tilus.errors import LaunchError
from tilus.runtime.arguments import describe
from tilus.runtime.bounds import bounds_check

TARGETS = ("cpu", "vm")


@tilus.kernel
def fill(y: tilus.ptr[f32], m: i32, n: i32, s: i32, t: i32):
    tilus.launch(blocks=1, warps=1)
    tilus.store_global(tilus.global_view(y, shape=(m, n), strides=(s, t)), tilus.full((4, 8), 1.0, f32), offset=(0, 0))


def refused(match, kernel, *args, **constants):
    with pytest.raises(LaunchError, match=match) as caught:
        kernel(*args, **constants)
    return caught.value


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("m", [6, 50, 500])
def test_a_view_larger_than_its_array(m, target):
    x, s = np.ones((5, 1000), np.float16), np.ones(m, np.float32)
    y = np.full_like(x, 9)
    with tilus.knobs.scope(target=target):
        error = refused(rf"the view \[{m} x 1000\] of 'x' needs {m}000 elements, the array has 5000", scale_rows,
                        x, s, y, m, 1000)  # fmt: skip
        big = np.ones((m, 1000), np.float16)
        refused(
            rf"view \[{m} x 1000\] of 'y' needs {m}000 elements, the array has 5000", scale_rows, big, s, y, m, 1000
        )
    assert (y == 9).all()
    assert "gx = tilus.global_view(x, shape=(m, n))" in str(error)


def test_tensors_and_arrays_with_gaps_count_their_own_elements():
    wide = torch.ones(5, 20, dtype=torch.float16)
    y = torch.zeros(5, 10, dtype=torch.float16)
    scale_rows(wide[:, ::2], torch.ones(5), y, 5, 10)
    assert (y == 1).all()
    refused("'x' needs 55 elements, the array has 50", scale_rows, wide[:, ::2], torch.ones(5), y, 5, 11)


def test_an_element_past_the_end_by_the_block_index():
    x, y = np.ones((5, 10), np.float16), np.ones((5, 10), np.float16)
    error = refused("elements 0 to 4 of 's' are read, the array has 2", scale_rows, x, np.ones(2, np.float32), y, 5, 10)
    assert "s[i]" in str(error)


@pytest.mark.parametrize(
    ("shape", "strides", "needed"),
    [((4, 8), (8, 1), 32), ((4, 8), (1, 4), 32), ((4, 8), (0, 1), 8), ((4, 8), (0, 0), 1), ((4, 8), (100, 10), 371)],
)
def test_exactly_what_is_needed_is_enough(shape, strides, needed):
    y = np.zeros(needed, np.float32)
    fill(y, *shape, *strides)
    assert y[-1] == 1
    refused(f"needs {needed} elements, the array has {needed - 1}", fill, y[:-1], *shape, *strides)


def test_a_view_that_begins_before_its_array():
    refused("begins 7 elements before the array", fill, np.zeros(32, np.float32), 4, 8, 8, -1)


def test_an_empty_view_needs_nothing():
    y = np.zeros(1, np.float32)
    for m, n in ((0, 8), (4, 0), (-3, 8), (-3, -5)):
        fill(y, m, n, 1000, 1000)
    assert (y == 0).all()


@tilus.kernel
def chosen(x: tilus.ptr[f32], y: tilus.ptr[f32], n: i32, flag: i32):
    tilus.launch(blocks=2, warps=1)
    gx, gy = tilus.global_view(x, shape=(n,)), tilus.global_view(y, shape=(n,))
    value = tilus.zeros((8,), f32)
    if flag > 0:
        value = tilus.load_global(gx, offset=(0,), shape=(8,)) + x[n - 1]
    if tilus.block_id(0) == 7:
        far = tilus.global_view(x, shape=(1000,))
        value = value + tilus.load_global(far, offset=(0,), shape=(8,)) + x[999]
    tilus.store_global(gy, value, offset=(0,))


def test_what_is_not_reached_is_not_refused():
    x, y = np.ones(2, np.float32), np.zeros(8, np.float32)
    chosen(x, y, 8, 0)
    refused("view \\[8\\] of 'x' needs 8 elements, the array has 2", chosen, x, y, 8, 1)
    chosen(np.ones(8, np.float32), y, 8, 1)
    assert (y == 2).all()


@tilus.kernel
def looped(x: tilus.ptr[f32], y: tilus.ptr[f32], n: i32, k: i32):
    tilus.launch(blocks=1, warps=1)
    gx = tilus.global_view(x, shape=(n,))
    acc = tilus.zeros((8,), f32)
    for t in range(k):
        acc = acc + tilus.load_global(gx, offset=(t,), shape=(8,))
    tilus.store_global(tilus.global_view(y, shape=(8,)), acc, offset=(0,))


def test_a_loop_without_turns_reads_nothing():
    x, y = np.ones(2, np.float32), np.zeros(8, np.float32)
    looped(x, y, 8, 0)
    refused("'x' needs 8 elements", looped, x, y, 8, 1)


@tilus.kernel
def asserting(x: tilus.ptr[f32], n: i32):
    tilus.launch(blocks=1, warps=1)
    assert n < 10, "n is too big"
    tilus.store_global(tilus.global_view(x, shape=(n,)), tilus.zeros((4,), f32), offset=(0,))


def test_an_assertion_before_the_view_speaks_first():
    x = np.zeros(4, np.float32)
    refused("n is too big", asserting, x, 11)
    refused("needs 9 elements, the array has 4", asserting, x, 9)
    asserting(x, 4)


@tilus.kernel
def packed(w: tilus.ptr[u4], y: tilus.ptr[u8], n: i32):
    tilus.launch(blocks=1, warps=1)
    codes = tilus.load_global(tilus.global_view(w, shape=(n,)), offset=(0,), shape=(32,))
    tilus.store_global(tilus.global_view(y, shape=(n,)), codes.to(u8), offset=(0,))


def test_codes_narrower_than_a_byte_are_counted_in_bits():
    w, y = np.full(8, 0x21, np.uint8), np.zeros(17, np.uint8)
    with tilus.knobs.scope(target="vm"):
        packed(w, y, 16)
    assert y[:4].tolist() == [1, 2, 1, 2]
    refused("view \\[17\\] of 'w' needs 17 elements, the array has 16", packed, w, y, 17)


@tilus.kernel
def staged(y: tilus.ptr[f32], i: i32):
    tilus.launch(blocks=1, warps=1)
    s = tilus.alloc_shared(f32, (64,))
    tilus.store_shared(s, tilus.full((32,), 1.0, f32), offset=(i,))
    tilus.sync()
    tilus.store_global(tilus.global_view(y, shape=(32,)), tilus.load_shared(s, offset=(i,), shape=(32,)), offset=(0,))


@pytest.mark.parametrize("target", TARGETS)
def test_a_tile_that_leaves_shared_memory(target):
    y = np.zeros(32, np.float32)
    with tilus.knobs.scope(target=target):
        staged(y, 32)
        for i in (33, -1):
            refused(
                f"a tile of 32 elements at {i} to {i} along dimension 0 leaves the shared tensor 's' of 64",
                staged,
                y,
                i,
            )
    assert (y == 1).all()


@tilus.kernel
def divided(x: tilus.ptr[f32], n: i32, g: i32):
    tilus.launch(blocks=n // g, warps=1)
    tilus.store_global(tilus.global_view(x, shape=(n,)), tilus.zeros((4,), f32), offset=(0,))


def test_division_by_zero_in_the_grid():
    refused("divides by zero for n=4, g=0", divided, np.zeros(4, np.float32), 4, 0)


def test_an_operator_that_the_host_lacks():
    @tilus.kernel
    def rooted(x: tilus.ptr[f32], r: f32):
        tilus.launch(blocks=tilus.sqrt(r).to(i32), warps=1)
        tilus.store_global(tilus.global_view(x, shape=(4,)), tilus.zeros((4,), f32), offset=(0,))

    refused("sqrt is not evaluated on the host", rooted, np.zeros(4, np.float32), 4.0)


def test_the_check_costs_a_launch_less_than_a_microsecond():
    x, s = np.ones((5, 1000), np.float16), np.ones(5, np.float32)
    check = bounds_check(scale_rows.program(BN=512))
    values = [describe(x), describe(s), describe(x), 5, 1000]
    assert min(timeit.repeat(lambda: check(values, (5, 2)), number=1000, repeat=20)) / 1000 < 1e-6


def test_nothing_to_check():
    @tilus.kernel
    def idle(x: tilus.ptr[f16]):
        tilus.launch(blocks=1, warps=1)

    assert bounds_check(idle.program()) is None
