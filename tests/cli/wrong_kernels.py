"""Kernels of a new user: each of the first ones has one mistake that no type and no check of the arguments can see."""

import tilus
from tilus import f16, f32, i32
from tilus.layouts import row_major


@tilus.kernel
def fold(x: tilus.ptr[f32], y: tilus.ptr[f32], n: i32, *, BN: int = 256):
    """Add the halves of every BN elements. Between store and load stands no sync: other threads hold the upper half."""
    tilus.launch(blocks=tilus.cdiv(n, BN), warps=4)
    i = tilus.block_id(0)
    tile = tilus.load_global(tilus.global_view(x, shape=(n,)), offset=(i * BN,), shape=(BN,))
    shared = tilus.alloc_shared(f32, shape=(BN,))
    tilus.store_shared(shared, tile)
    lower = tilus.load_shared(shared, offset=(0,), shape=(BN // 2,))
    upper = tilus.load_shared(shared, offset=(BN // 2,), shape=(BN // 2,))
    tilus.store_global(tilus.global_view(y, shape=(n,)), lower + upper, offset=(i * BN // 2,))


@tilus.kernel
def gather(x: tilus.ptr[f32], index: tilus.ptr[i32], y: tilus.ptr[f32], n: i32):
    """Copy the elements that memory names. Nobody holds an index against the array."""
    tilus.launch(blocks=n, warps=1)
    i = tilus.block_id(0)
    value = tilus.full((1,), x[index[i]], f32)
    tilus.store_global(tilus.global_view(y, shape=(n,)), value, offset=(i,))


@tilus.kernel
def copied(x: tilus.ptr[f16], y: tilus.ptr[f16], n: i32):
    """Copy through shared memory. The copy is committed, and nobody waits for it."""
    tilus.launch(blocks=tilus.cdiv(n, 256), warps=1)
    start = tilus.block_id(0) * 256
    shared = tilus.alloc_shared(f16, shape=(256,))
    tilus.copy_async(shared, tilus.global_view(x, shape=(n,)), src_offset=(start,))
    tilus.commit_group()
    tilus.sync()
    tilus.store_global(tilus.global_view(y, shape=(n,)), tilus.load_shared(shared), offset=(start,))


@tilus.kernel
def pipelined(x: tilus.ptr[f16], y: tilus.ptr[f16], n: i32, *, PENDING: int = 2):
    """Copy tile after tile, the next on its way while this one is stored. PENDING must be 1."""
    tilus.launch(blocks=1, warps=1)
    source, target = tilus.global_view(x, shape=(n,)), tilus.global_view(y, shape=(n,))
    shared = tilus.alloc_shared(f16, shape=(2, 256))
    tilus.copy_async(shared, source, src_offset=(0,), dst_offset=(0, 0), shape=(256,), dst_dims=(1,))
    tilus.commit_group()
    for i in range(tilus.cdiv(n, 256)):
        where = (i + 1) % 2
        tilus.copy_async(
            shared, source, src_offset=(i * 256 + 256,), dst_offset=(where, 0), shape=(256,), dst_dims=(1,)
        )
        tilus.commit_group()
        tilus.wait_group(PENDING)
        tilus.sync()
        tile = tilus.load_shared(shared, offset=(i % 2, 0), shape=(256,), dims=(1,))
        tilus.store_global(target, tile, offset=(i * 256,))
        tilus.sync()
    tilus.wait_group(0)


@tilus.kernel
def total(x: tilus.ptr[f32], y: tilus.ptr[f32], n: i32):
    """Add up all elements. Blocks add to y[0] without an atomic operation."""
    tilus.launch(blocks=tilus.cdiv(n, 128), warps=1)
    result = tilus.global_view(y, shape=(1,))
    tile = tilus.load_global(tilus.global_view(x, shape=(n,)), offset=(tilus.block_id(0) * 128,), shape=(128,))
    before = tilus.load_global(result, offset=(0,), shape=(1,))
    tilus.store_global(result, before + tilus.sum(tile, dim=0, keepdims=True), offset=(0,))


@tilus.kernel
def unwritten(x: tilus.ptr[f32], y: tilus.ptr[f32], n: i32):
    """Copy 64 elements of 128 into shared memory, and all 128 out of it."""
    tilus.launch(blocks=1, warps=1)
    shared = tilus.alloc_shared(f32, shape=(128,))
    tilus.store_shared(
        shared, tilus.load_global(tilus.global_view(x, shape=(n,)), offset=(0,), shape=(64,)), offset=(0,)
    )
    tilus.sync()
    tilus.store_global(tilus.global_view(y, shape=(n,)), tilus.load_shared(shared), offset=(0,))


@tilus.kernel
def staged(x: tilus.ptr[f16], y: tilus.ptr[f16], n: i32):
    """Copy tile after tile through two stages, as if there were three: the third is the tensor behind."""
    tilus.launch(blocks=1, warps=1)
    source, target = tilus.global_view(x, shape=(n,)), tilus.global_view(y, shape=(n,))
    shared, behind = tilus.alloc_shared(f16, shape=(2, 256)), tilus.alloc_shared(f16, shape=(256,))
    for i in range(tilus.cdiv(n, 256)):
        tile = tilus.load_global(source, offset=(i * 256,), shape=(256,))
        tilus.store_shared(shared, tile, offset=(i % 3, 0), dims=(1,))
        tilus.store_shared(behind, tile)
        tilus.sync()
        tile = tilus.load_shared(shared, offset=(i % 3, 0), shape=(256,), dims=(1,))
        tilus.store_global(target, tile + tilus.load_shared(behind), offset=(i * 256,))
        tilus.sync()


# --- right ones -----------------------------------------------------------------------------------------------------


@tilus.kernel
def scale_rows(x: tilus.ptr[f16], s: tilus.ptr[f32], y: tilus.ptr[f16], m: i32, n: i32, *, BN: int = 512):
    tilus.launch(blocks=(m, tilus.cdiv(n, BN)), warps=4)
    i, j = tilus.block_id(0), tilus.block_id(1) * BN
    gx = tilus.global_view(x, shape=(m, n))
    tile = tilus.load_global(gx, offset=(i, j), shape=(1, BN))
    tilus.store_global(tilus.global_view(y, shape=(m, n)), (tile.to(f32) * s[i]).to(f16), offset=(i, j))


@tilus.kernel
def transpose(x: tilus.ptr[f32], y: tilus.ptr[f32], *, LAYOUT: str = "chosen"):
    """Transpose 32 x 32 elements through shared memory, with the compiler's layout or one that has no swizzle."""
    tilus.launch(blocks=1, warps=1)
    shared = tilus.alloc_shared(f32, shape=(32, 32), layout=row_major(32, 32) if LAYOUT == "plain" else None)
    tilus.store_shared(shared, tilus.load_global(tilus.global_view(x, shape=(32, 32)), offset=(0, 0), shape=(32, 32)))
    tilus.sync()
    tile = tilus.transpose(tilus.load_shared(shared))
    tilus.store_global(tilus.global_view(y, shape=(32, 32)), tile, offset=(0, 0))


@tilus.autotune(BN=[128, 256])
@tilus.kernel
def tuned(x: tilus.ptr[f16], y: tilus.ptr[f16], n: i32, *, BN: int):
    tilus.launch(blocks=tilus.cdiv(n, BN), warps=1)
    i = tilus.block_id(0) * BN
    tile = tilus.load_global(tilus.global_view(x, shape=(n,)), offset=(i,), shape=(BN,))
    tilus.store_global(tilus.global_view(y, shape=(n,)), tile * 2, offset=(i,))


@tilus.kernel
def agreed(x: tilus.ptr[f32], y: tilus.ptr[i32], n: i32):
    """Right only where every element is on the same side of 100: all blocks write one place."""
    tilus.launch(blocks=n, warps=1)
    t = tilus.load_global(tilus.global_view(x, shape=(n,)), offset=(tilus.block_id(0),), shape=(1,))
    tilus.store_global(tilus.global_view(y, shape=(1,)), (t > 100.0).to(i32), offset=(0,))
