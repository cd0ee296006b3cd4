"""Softmax over the rows of a matrix, one block a row, any row length."""

from __future__ import annotations

from tilus.dtypes import DataType, f32, i32
from tilus.lang import block_id, exp, full, global_view, launch, load_global, max, maximum, ptr, store_global, sum
from tilus.runtime.kernel import kernel


@kernel
def softmax(x: ptr[T], y: ptr[T], m: i32, n: i32, *, T: DataType, BN: int = 1024):
    """y[i] = exp(x[i] - max(x[i])) / sum(exp(x[i] - max(x[i]))) for each of `m` rows of `n` elements, in f32.

    The running maximum and the running sum are kept together, so a row is read twice, however long it is.
    """
    launch(blocks=m, warps=4)
    row = block_id(0)
    source = global_view(x, shape=(m, n))
    top = full((1, 1), f32.min_value, f32)
    total = full((1, 1), 0.0, f32)
    for j in range(0, n, BN):
        tile = load_global(source, offset=(row, j), shape=(1, BN), other=float("-inf")).to(f32)
        new_top = maximum(top, max(tile, dim=1, keepdims=True))
        total = total * exp(top - new_top) + sum(exp(tile - new_top), dim=1, keepdims=True)
        top = new_top
    result = global_view(y, shape=(m, n))
    for j in range(0, n, BN):
        tile = load_global(source, offset=(row, j), shape=(1, BN), other=float("-inf")).to(f32)
        store_global(result, (exp(tile - top) / total).to(T), offset=(row, j))
