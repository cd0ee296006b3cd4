"""Layer normalisation over the rows of a matrix, one block a row, any row length."""

from __future__ import annotations

from tilus.dtypes import DataType, f32, i32
from tilus.lang import arange, block_id, full, global_view, launch, load_global, ptr, rsqrt, store_global, sum, where
from tilus.runtime.kernel import kernel


@kernel
def layer_norm(
    x: ptr[T], gain: ptr[T], bias: ptr[T], y: ptr[T], m: i32, n: i32, eps: f32, *, T: DataType, BN: int = 1024
):
    """Y = (x - mean) / sqrt(variance + eps) * gain + bias for each of `m` rows of `n` elements, in f32.

    Two passes over the row (mean, then squared deviations), so that no cancellation spoils the variance.
    """
    launch(blocks=m, warps=4)
    row = block_id(0)
    source = global_view(x, shape=(m, n))
    total = full((1, 1), 0.0, f32)
    for j in range(0, n, BN):
        total += sum(load_global(source, offset=(row, j), shape=(1, BN)).to(f32), dim=1, keepdims=True)
    mean = total / n.to(f32)
    squares = full((1, 1), 0.0, f32)
    for j in range(0, n, BN):
        deviation = load_global(source, offset=(row, j), shape=(1, BN)).to(f32) - mean
        inside = arange((1, BN), dim=1, start=j) < n
        squares += sum(where(inside, deviation * deviation, 0.0), dim=1, keepdims=True)
    scale = rsqrt(squares / n.to(f32) + eps)
    result = global_view(y, shape=(m, n))
    for j in range(0, n, BN):
        deviation = load_global(source, offset=(row, j), shape=(1, BN)).to(f32) - mean
        g = load_global(global_view(gain, shape=(1, n)), offset=(0, j), shape=(1, BN)).to(f32)
        b = load_global(global_view(bias, shape=(1, n)), offset=(0, j), shape=(1, BN)).to(f32)
        store_global(result, (deviation * scale * g + b).to(T), offset=(row, j))
