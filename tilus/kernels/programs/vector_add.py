"""c = a + b for vectors of any type and length."""

from __future__ import annotations

from tilus.dtypes import DataType, i32
from tilus.lang import block_id, cdiv, global_view, launch, load_global, ptr, store_global
from tilus.runtime.kernel import kernel


@kernel
def vector_add(a: ptr[T], b: ptr[T], c: ptr[T], n: i32, *, T: DataType, BN: int = 1024):
    """Add two vectors of `n` elements of type `T`."""
    launch(blocks=cdiv(n, BN), warps=4)
    start = block_id(0) * BN
    x = load_global(global_view(a, shape=(n,)), offset=(start,), shape=(BN,))
    y = load_global(global_view(b, shape=(n,)), offset=(start,), shape=(BN,))
    store_global(global_view(c, shape=(n,)), x + y, offset=(start,))
