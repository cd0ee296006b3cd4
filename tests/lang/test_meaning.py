"""Kernels run on the reference machine, as the front end makes them: the numbers are NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

from tilus import vm

SOFTMAX = """\
def k(x: ptr[f32], y: ptr[f32], m: i32, n: i32, *, BN: int = 32):
    launch(blocks=m, warps=1)
    row = block_id(0)
    source, result = global_view(x, shape=(m, n)), global_view(y, shape=(m, n))
    top, total = full((1, 1), -1e38, f32), zeros((1, 1), f32)
    for j in range(0, n, BN):
        tile = load_global(source, offset=(row, j), shape=(1, BN), other=float("-inf"))
        higher = maximum(top, tilus.max(tile, dim=-1, keepdims=True))
        total = total * exp(top - higher) + tilus.sum(exp(tile - higher), dim=1, keepdims=True)
        top = higher
    for j in range(0, n, BN):
        tile = load_global(source, offset=(row, j), shape=(1, BN), other=float("-inf"))
        store_global(result, exp(tile - top) / total, offset=(row, j))
"""


def test_softmax(kernel) -> None:
    x = np.random.default_rng(0).normal(size=(3, 77)).astype(np.float32) * 4
    y = np.zeros_like(x)
    vm.run(kernel(SOFTMAX).specialize({}), [x, y, 3, 77])
    powers = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    np.testing.assert_allclose(y, powers / powers.sum(axis=1, keepdims=True), rtol=2e-6)


PIPELINE = """\
def k(a: ptr[f16], b: ptr[f16], c: ptr[f32], m: i32, n: i32, depth: i32, *, B: int = 16, STAGES: int = 3):
    launch(blocks=(cdiv(n, B), cdiv(m, B)), warps=1)
    row, col = block_id(1) * B, block_id(0) * B
    ga, gb = global_view(a, shape=(m, depth)), global_view(b, shape=(depth, n))
    sa, sb = alloc_shared(f16, (STAGES, B, B)), alloc_shared(f16, (STAGES, B, B))
    for s in static_range(STAGES - 1):
        copy_async(sa, ga, src_offset=(row, s * B), dst_offset=(s, 0, 0), shape=(B, B))
        copy_async(sb, gb, src_offset=(s * B, col), dst_offset=(s, 0, 0), shape=(B, B))
        commit_group()
    acc = zeros((B, B), f32)
    for t in range(cdiv(depth, B)):
        wait_group(STAGES - 2)
        sync()
        ahead = t + (STAGES - 1)
        copy_async(sa, ga, src_offset=(row, ahead * B), dst_offset=(ahead % STAGES, 0, 0), shape=(B, B))
        copy_async(sb, gb, src_offset=(ahead * B, col), dst_offset=(ahead % STAGES, 0, 0), shape=(B, B))
        commit_group()
        acc = load_shared(sa, (t % STAGES, 0, 0), (B, B)) @ load_shared(sb, (t % STAGES, 0, 0), (B, B)) + acc
    store_global(global_view(c, shape=(m, n)), acc, offset=(row, col))
"""


def test_pipelined_matmul(kernel) -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-4, 5, size).astype(np.float16) for size in ((20, 70), (70, 33)))
    c = np.full((20, 33), np.nan, np.float32)
    vm.run(kernel(PIPELINE).specialize({}), [a, b, c, 20, 33, 70])
    np.testing.assert_array_equal(c, a.astype(np.float32) @ b.astype(np.float32))


SEARCH = """\
def k(keys: ptr[i32], wanted: ptr[i32], found: ptr[i32], n: i32, *, B: int = 32):
    launch(blocks=n, warps=1)
    key, low, high = wanted[block_id(0)], 0, n
    while low < high:
        middle = (low + high) // 2
        if keys[middle] == key:
            low = middle
            break
        if keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    place = low if low < n and keys[low] == key else -1
    store_global(global_view(found, shape=(n,)), full(1, place), offset=block_id(0))
"""


@pytest.mark.parametrize("n", [1, 2, 31])
def test_binary_search_never_reads_outside(kernel, n: int) -> None:
    # The machine rejects reads out of bounds: `low < n and keys[low]` must not load at n.
    keys = np.arange(n, dtype=np.int32) * 3
    wanted = np.arange(n, dtype=np.int32) * 4
    found = np.full(n, 99, np.int32)
    vm.run(kernel(SEARCH).specialize({}), [keys, wanted, found, n])
    expected = [int(np.flatnonzero(keys == w)[0]) if w in keys else -1 for w in wanted]
    assert found.tolist() == expected
