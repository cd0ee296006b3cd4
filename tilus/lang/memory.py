"""Functions on global and shared memory, and asynchronous copies."""

from __future__ import annotations

from tilus.dtypes import boolean
from tilus.ir.expr import Const, Expr, Tensor, const, mul
from tilus.ir.instructions import (
    AllocShared,
    AtomicAdd,
    CommitGroup,
    CopyAsync,
    GlobalView,
    LoadGlobal,
    LoadShared,
    StoreGlobal,
    StoreShared,
    Sync,
    WaitGroup,
)
from tilus.lang.arguments import (
    ArgumentError,
    a_pointer,
    a_sequence,
    a_shape,
    a_shared,
    a_tile,
    a_view,
    access_dims,
    an_element_dtype,
    an_int,
    expected,
    integers,
    layout_for,
    ranked,
)
from tilus.lang.arithmetic import condition
from tilus.lang.builder import Builder
from tilus.lang.primitives import function
from tilus.lang.values import NUMBER, Scalar, SharedTile, Tile, Value, View
from tilus.layouts import SharedLayout


@function()
def global_view(b: Builder, ptr: Value, shape: Value, strides: Value = None) -> View:
    """View global memory as a tensor.

    Parameters
    ----------
    ptr : pointer parameter
    shape : tuple of integers
        Extents, at compile or run time.
    strides : tuple of integers, optional
        In elements; row-major by default.
    """
    pointer = a_pointer(ptr, "ptr")
    extents = _settled(b, shape, "shape")
    if not extents:
        raise ArgumentError("shape", "a global view has at least one dimension")
    steps = _row_major(extents) if strides is None else _settled(b, strides, "strides")
    if len(steps) != len(extents):
        raise ArgumentError("strides", f"the view has {len(extents)} dimensions, but strides has {len(steps)}")
    view = b.tensor(GlobalView(pointer.var, extents, steps, loc=b.loc), pointer.var.name + "_view")
    written = tuple(v if isinstance(v, int) else Scalar(e) for v, e in zip(a_sequence(shape), extents, strict=True))
    return View(view, written, tuple(map(Scalar, steps)))


def _settled(b: Builder, value: Value, parameter: str) -> tuple[Expr, ...]:
    """Return integers that a later assignment in a loop cannot change: a view may read them at every access."""
    exprs = integers(value, parameter)
    return tuple(b.snapshot(Scalar(e), parameter).expr for e in exprs)


def _row_major(shape: tuple[Expr, ...]) -> tuple[Expr, ...]:
    strides: list[Expr] = [const(1)]
    for extent in reversed(shape[1:]):
        strides.insert(0, mul(extent, strides[0]))
    return tuple(strides)


@function()
def load_global(
    b: Builder, view: Value, offset: Value, shape: Value, dims: Value = None, other: Value = 0, layout: Value = None
) -> Tile:
    """Load a tile of a global view; elements outside the view are `other`.

    Parameters
    ----------
    view : global view
    offset : tuple of integers
        One for each dimension of the view.
    shape : tuple of compile-time integers
        Extents of the tile.
    dims : tuple of int, optional
        The dimension of the view that each dimension of the tile runs along; by default the last ones.
    other : number
    layout : register layout, optional
        How the tile is spread over threads; inferred by default.
    """
    source = a_view(view, "view")
    extents = a_shape(shape)
    rank = len(source.shape)
    where = ranked(offset, rank, "offset", "the view")
    along = access_dims(dims, rank, len(extents), "dims", "the view")
    if not isinstance(other, NUMBER):
        raise expected("other", "a compile-time number", other)
    return b.tile(
        LoadGlobal(source.tensor, where, extents, along, float(other), loc=b.loc), layout_for(layout, extents)
    )


@function()
def store_global(b: Builder, view: Value, tile: Value, offset: Value, dims: Value = None) -> None:
    """Store a tile to a global view; elements outside the view are not written. `dims` as in `load_global`."""
    target, source, where, along = _store(view, tile, offset, dims)
    b.run(StoreGlobal(target, source, where, along, loc=b.loc))


@function()
def atomic_add(b: Builder, view: Value, tile: Value, offset: Value, dims: Value = None) -> None:
    """Add a tile to a global view, each element atomically and in no fixed order. `dims` as in `load_global`."""
    target, source, where, along = _store(view, tile, offset, dims)
    b.run(AtomicAdd(target, source, where, along, loc=b.loc))


def _store(
    view: Value, tile: Value, offset: Value, dims: Value
) -> tuple[Tensor, Tensor, tuple[Expr, ...], tuple[int, ...]]:
    target, source = a_view(view, "view"), a_tile(tile, "tile")
    rank = len(target.shape)
    where = ranked(offset, rank, "offset", "the view")
    along = access_dims(dims, rank, len(source.shape), "dims", "the view")
    _same_dtype(source, target)
    return target.tensor, source.tensor, where, along


def _same_dtype(tile: Tile, target: View | SharedTile) -> None:
    if tile.dtype != target.dtype:
        what = "global view" if isinstance(target, View) else "shared tensor"
        raise ArgumentError(
            "tile", f"cannot store {tile.dtype} to a {what} of {target.dtype}", f"convert it with .to({target.dtype})"
        )


@function()
def alloc_shared(b: Builder, dtype: Value, shape: Value, layout: Value = None) -> SharedTile:
    """Allocate a tensor in shared memory, with undefined contents.

    `layout`, a shared layout, says where each element lies; by default the compiler chooses one without bank conflicts.
    """
    extents = a_shape(shape)
    if layout is not None and not isinstance(layout, SharedLayout):
        raise expected("layout", "a shared layout", layout)
    if layout is not None and tuple(layout.shape) != extents:
        raise ArgumentError("layout", f"the layout has shape {tuple(layout.shape)}, the tensor {extents}")
    return SharedTile(b.tensor(AllocShared(an_element_dtype(dtype, "dtype"), extents, loc=b.loc), "shared", layout))


@function()
def load_shared(
    b: Builder, s: Value, offset: Value = None, shape: Value = None, dims: Value = None, layout: Value = None
) -> Tile:
    """Load a tile of a shared tensor; it must lie inside.

    Parameters
    ----------
    s : shared tensor
    offset : tuple of integers, optional
        One for each dimension of `s`; zeros by default.
    shape : tuple of compile-time integers, optional
        Extents of the tile; those of `s` (along `dims`) by default.
    dims : tuple of int, optional
        The dimension of `s` that each dimension of the tile runs along; by default the last ones.
    layout : register layout, optional
    """
    source = a_shared(s, "s")
    rank = len(source.shape)
    if shape is None:
        along = access_dims(dims, rank, rank if dims is None else len(a_sequence(dims)), "dims", "the shared tensor")
        extents = tuple(source.shape[d] for d in along)
    else:
        extents = a_shape(shape)
        along = access_dims(dims, rank, len(extents), "dims", "the shared tensor")
    _inside(source, extents, along)
    where = _shared_offset(offset, rank, "offset")
    return b.tile(LoadShared(source.tensor, where, extents, along, loc=b.loc), layout_for(layout, extents))


@function()
def store_shared(b: Builder, s: Value, tile: Value, offset: Value = None, dims: Value = None) -> None:
    """Store a tile into a shared tensor; it must lie inside. `offset` and `dims` as in `load_shared`."""
    target, source = a_shared(s, "s"), a_tile(tile, "tile")
    rank = len(target.shape)
    where = _shared_offset(offset, rank, "offset")
    along = access_dims(dims, rank, len(source.shape), "dims", "the shared tensor")
    _inside(target, source.shape, along)
    _same_dtype(source, target)
    b.run(StoreShared(target.tensor, source.tensor, where, along, loc=b.loc))


def _shared_offset(offset: Value, rank: int, parameter: str) -> tuple[Expr, ...]:
    if offset is None:
        return (const(0),) * rank
    return ranked(offset, rank, parameter, "the shared tensor")


def _inside(s: SharedTile, shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
    if any(n > s.shape[d] for n, d in zip(shape, dims, strict=True)):
        raise ArgumentError("shape", f"a tile of shape {shape} does not fit a shared tensor of shape {s.shape}")


@function()
def copy_async(
    b: Builder,
    dst: Value,
    src: Value,
    src_offset: Value,
    dst_offset: Value = None,
    shape: Value = None,
    dst_dims: Value = None,
    src_dims: Value = None,
    once: Value = None,
) -> None:
    """Start copying a tile of a global view to a shared tensor; zeros are written where it leaves the view.

    The data is there after `commit_group` and a `wait_group` that covers it, and for other threads after `sync`.

    Parameters
    ----------
    dst : shared tensor
    src : global view
    src_offset, dst_offset : tuple of integers
        One for each dimension of `src` and `dst`; `dst_offset` is zeros by default.
    shape : tuple of compile-time integers, optional
        Extents of the tile; by default the last extents of `dst`, as many as `src` has dimensions.
    dst_dims, src_dims : tuple of int, optional
        The dimensions the tile runs along; by default the last ones.
    once : boolean, optional
        Whether nobody reads the tile again soon, so that the second-level cache may let go of it first: a hint, which
        bulk copies follow.
    """
    target, source = a_shared(dst, "dst"), a_view(src, "src")
    rank = len(source.shape)
    extents = target.shape[-rank:] if shape is None else a_shape(shape)
    into = access_dims(dst_dims, len(target.shape), len(extents), "dst_dims", "the shared tensor")
    along = access_dims(src_dims, rank, len(extents), "src_dims", "the view")
    _inside(target, extents, into)
    if source.dtype != target.dtype:
        raise ArgumentError("src", f"cannot copy {source.dtype} to a shared tensor of {target.dtype}")
    there = _shared_offset(dst_offset, len(target.shape), "dst_offset")
    here = ranked(src_offset, rank, "src_offset", "the view")
    if not isinstance(once, bool | Scalar | None):
        raise expected("once", "a boolean", once)
    known = None if once is None else condition(once, "once")
    hint = Const(known, boolean) if isinstance(known, bool) else known
    b.run(CopyAsync(target.tensor, source.tensor, there, here, extents, into, along, hint, loc=b.loc))


@function()
def commit_group(b: Builder) -> None:
    """Close the group of asynchronous copies started since the last one."""
    b.run(CommitGroup(loc=b.loc))


@function()
def wait_group(b: Builder, pending: Value = 0) -> None:
    """Wait until at most `pending` of the newest groups are under way."""
    count = an_int(pending, "pending")
    if count < 0:
        raise ArgumentError("pending", f"pending must not be negative, got {count}")
    b.run(WaitGroup(count, loc=b.loc))


@function()
def sync(b: Builder) -> None:
    """Wait for all threads of the block; orders their accesses to shared memory."""
    b.run(Sync(loc=b.loc))
