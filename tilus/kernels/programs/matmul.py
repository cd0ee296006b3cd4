"""Matrix product of 16-bit (or f32) matrices: tiles staged through shared memory by asynchronous copies."""

from __future__ import annotations

from tilus.dtypes import DataType, f32, i32
from tilus.lang import (
    alloc_shared,
    block_id,
    cdiv,
    commit_group,
    copy_async,
    dot,
    global_view,
    launch,
    load_shared,
    ptr,
    static_range,
    store_global,
    sync,
    wait_group,
    zeros,
)
from tilus.runtime.kernel import kernel


@kernel
def matmul(
    a: ptr[T],
    b: ptr[T],
    c: ptr[T],
    m: i32,
    n: i32,
    k: i32,
    *,
    T: DataType,
    BM: int = 64,
    BN: int = 64,
    BK: int = 32,
    STAGES: int = 3,
    WARPS: int = 4,
):
    """C[m, n] = A[m, k] @ B[k, n], all row-major of type `T`, summed in f32; any extents.

    Tile t lives in stage t % STAGES. While one tile is multiplied, the next STAGES - 1 are on their way.
    """
    launch(blocks=(cdiv(n, BN), cdiv(m, BM)), warps=WARPS)
    row, col = block_id(1) * BM, block_id(0) * BN
    ga, gb = global_view(a, shape=(m, k)), global_view(b, shape=(k, n))
    sa, sb = alloc_shared(T, (STAGES, BM, BK)), alloc_shared(T, (STAGES, BK, BN))
    for s in static_range(STAGES - 1):
        copy_async(sa, ga, src_offset=(row, s * BK), dst_offset=(s, 0, 0), shape=(BM, BK))
        copy_async(sb, gb, src_offset=(s * BK, col), dst_offset=(s, 0, 0), shape=(BK, BN))
        commit_group()
    acc = zeros((BM, BN), f32)
    for t in range(cdiv(k, BK)):
        wait_group(STAGES - 2)
        sync()  # tile t is there for all threads, and all have left tile t - 1, whose stage is filled next
        ahead = t + (STAGES - 1)
        copy_async(sa, ga, src_offset=(row, ahead * BK), dst_offset=(ahead % STAGES, 0, 0), shape=(BM, BK))
        copy_async(sb, gb, src_offset=(ahead * BK, col), dst_offset=(ahead % STAGES, 0, 0), shape=(BK, BN))
        commit_group()
        x = load_shared(sa, offset=(t % STAGES, 0, 0), shape=(BM, BK))
        y = load_shared(sb, offset=(t % STAGES, 0, 0), shape=(BK, BN))
        acc = dot(x, y, acc)
    store_global(global_view(c, shape=(m, n)), acc.to(T), offset=(row, col))
