"""Instructions on global and shared memory, and asynchronous copies.

A *tile access* names a rectangular part of a view: `offset` has one entry per dimension of the view, `shape` one per
dimension of the tile, and `dims` says which dimension of the view each tile dimension runs along (increasing; the
others have extent 1). Elements outside the view read as `other` and are not written.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilus.dtypes import DataType, boolean
from tilus.errors import VerifyError
from tilus.ir.expr import Expr, Tensor, Var, dtype_of
from tilus.ir.instructions.base import Instruction, instruction
from tilus.ir.types import GlobalType, PointerType, RegisterType, ScalarType, SharedType


def require(condition: bool, message: str) -> None:
    """Raise `VerifyError` unless the condition holds."""
    if not condition:
        raise VerifyError(message)


def register_type(x: Tensor, what: str = "operand") -> RegisterType:
    """Return the type of a register tensor, or raise."""
    if not isinstance(x.type, RegisterType):
        raise VerifyError(f"{what} {x.name!r} must be a register tensor, it is {x.type}")
    return x.type


def global_type(x: Tensor) -> GlobalType:
    """Return the type of a global view, or raise."""
    if not isinstance(x.type, GlobalType):
        raise VerifyError(
            f"{x.name!r} must be a global view, it is {x.type}", hint="make one with global_view(pointer, shape=...)"
        )
    return x.type


def shared_type(x: Tensor) -> SharedType:
    """Return the type of a shared tensor, or raise."""
    if not isinstance(x.type, SharedType):
        raise VerifyError(
            f"{x.name!r} must be a shared tensor, it is {x.type}", hint="make one with alloc_shared(dtype, shape)"
        )
    return x.type


def check_access(what: str, rank: int, offset: tuple[Expr, ...], tile_rank: int, dims: tuple[int, ...]) -> None:
    """Check the fields of a tile access against the rank of the tensor and of the tile."""
    require(len(offset) == rank, f"{what} has {rank} dimensions, but the offset has {len(offset)}")
    require(len(dims) == tile_rank, f"the tile has {tile_rank} dimensions, but dims names {len(dims)}")
    require(
        list(dims) == sorted(set(dims)) and all(0 <= d < rank for d in dims),
        f"dims {dims} must increase within 0..{rank - 1}",
    )
    require(all(dtype_of(o).is_integer for o in offset), "offsets must be integers")


def _global_view(i: GlobalView) -> GlobalType:
    require(isinstance(i.ptr.type, PointerType), f"{i.ptr.name!r} must be a pointer, it is {i.ptr.type}")
    require(len(i.shape) == len(i.strides) > 0, f"{len(i.shape)} extents but {len(i.strides)} strides")
    return GlobalType(i.ptr.type.dtype, len(i.shape))


@instruction("global_view", "global", result=_global_view)
@dataclass(frozen=True, slots=True)
class GlobalView(Instruction):
    """A tensor in global memory: element index i lies `sum(i * strides)` elements after the pointer."""

    ptr: Var
    shape: tuple[Expr, ...]
    strides: tuple[Expr, ...]


def _load_global(i: LoadGlobal) -> RegisterType:
    view = global_type(i.view)
    check_access("the view", view.rank, i.offset, len(i.shape), i.dims)
    return RegisterType(view.dtype, i.shape)


@instruction("load_global", "global", result=_load_global)
@dataclass(frozen=True, slots=True)
class LoadGlobal(Instruction):
    """Load a tile; elements outside the view are `other`."""

    view: Tensor
    offset: tuple[Expr, ...]
    shape: tuple[int, ...]
    dims: tuple[int, ...]
    other: float = 0.0


def _store_global(i: StoreGlobal) -> None:
    view, tile = global_type(i.view), register_type(i.tile, "the tile")
    check_access("the view", view.rank, i.offset, len(tile.shape), i.dims)
    require(view.dtype == tile.dtype, f"cannot store {tile.dtype} to a view of {view.dtype}")


@instruction("store_global", "global", check=_store_global)
@dataclass(frozen=True, slots=True)
class StoreGlobal(Instruction):
    """Store a tile; elements outside the view are not written."""

    view: Tensor
    tile: Tensor
    offset: tuple[Expr, ...]
    dims: tuple[int, ...]


@instruction("atomic_add", "global", check=_store_global)
@dataclass(frozen=True, slots=True)
class AtomicAdd(Instruction):
    """Add a tile to memory, each element atomically and in no fixed order; outside the view nothing happens."""

    view: Tensor
    tile: Tensor
    offset: tuple[Expr, ...]
    dims: tuple[int, ...]


def _load_element(i: LoadElement) -> ScalarType:
    require(isinstance(i.ptr.type, PointerType), f"{i.ptr.name!r} must be a pointer, it is {i.ptr.type}")
    require(dtype_of(i.index).is_integer, "the index must be an integer")
    return ScalarType(i.ptr.type.dtype)


@instruction("load_element", "global", result=_load_element)
@dataclass(frozen=True, slots=True)
class LoadElement(Instruction):
    """Load one element, `ptr[index]`, as a scalar; the index is not checked against any extent."""

    ptr: Var
    index: Expr


def _alloc_shared(i: AllocShared) -> SharedType:
    require(all(n > 0 for n in i.shape), f"extents must be positive, got {i.shape}")
    require(i.dtype.nbits % 8 == 0, f"shared tensors hold whole bytes, not {i.dtype}: allocate u8 and use view")
    return SharedType(i.dtype, i.shape)


@instruction("alloc_shared", "shared", result=_alloc_shared)
@dataclass(frozen=True, slots=True)
class AllocShared(Instruction):
    """A shared tensor with undefined contents; `byte_offset` is filled in when shared memory is planned."""

    dtype: DataType
    shape: tuple[int, ...]
    byte_offset: int | None = None


def _load_shared(i: LoadShared) -> RegisterType:
    src = shared_type(i.src)
    check_access("the shared tensor", len(src.shape), i.offset, len(i.shape), i.dims)
    return RegisterType(src.dtype, i.shape)


@instruction("load_shared", "shared", result=_load_shared)
@dataclass(frozen=True, slots=True)
class LoadShared(Instruction):
    """Load a tile of a shared tensor; it must lie inside."""

    src: Tensor
    offset: tuple[Expr, ...]
    shape: tuple[int, ...]
    dims: tuple[int, ...]


def _store_shared(i: StoreShared) -> None:
    dst, tile = shared_type(i.dst), register_type(i.tile, "the tile")
    check_access("the shared tensor", len(dst.shape), i.offset, len(tile.shape), i.dims)
    require(dst.dtype == tile.dtype, f"cannot store {tile.dtype} to a shared tensor of {dst.dtype}")


@instruction("store_shared", "shared", check=_store_shared)
@dataclass(frozen=True, slots=True)
class StoreShared(Instruction):
    """Store a tile into a shared tensor; it must lie inside."""

    dst: Tensor
    tile: Tensor
    offset: tuple[Expr, ...]
    dims: tuple[int, ...]


def _copy_async(i: CopyAsync) -> None:
    dst, src = shared_type(i.dst), global_type(i.src)
    check_access("the shared tensor", len(dst.shape), i.dst_offset, len(i.shape), i.dst_dims)
    check_access("the view", src.rank, i.src_offset, len(i.shape), i.src_dims)
    require(dst.dtype == src.dtype, f"cannot copy {src.dtype} to a shared tensor of {dst.dtype}")
    require(i.once is None or dtype_of(i.once) == boolean, "whether a tile is read once is a boolean")


@instruction("copy_async", "async", check=_copy_async)
@dataclass(frozen=True, slots=True)
class CopyAsync(Instruction):
    """Start copying a tile from a view to a shared tensor; outside the view zeros are written.

    The data is there after `commit_group` and a `wait_group` that covers it, and for other threads after `sync`. Where
    `once` holds nobody is expected to read the tile again, so caches may let go of it first.
    """

    dst: Tensor
    src: Tensor
    dst_offset: tuple[Expr, ...]
    src_offset: tuple[Expr, ...]
    shape: tuple[int, ...]
    dst_dims: tuple[int, ...]
    src_dims: tuple[int, ...]
    once: Expr | None = None


def _nothing(i: Instruction) -> None:
    """No operands to check."""


@instruction("commit_group", "async", check=_nothing)
@dataclass(frozen=True, slots=True)
class CommitGroup(Instruction):
    """Close the group of asynchronous copies started since the last one."""


def _wait_group(i: WaitGroup) -> None:
    require(i.pending >= 0, f"pending must not be negative, got {i.pending}")


@instruction("wait_group", "async", check=_wait_group)
@dataclass(frozen=True, slots=True)
class WaitGroup(Instruction):
    """Wait until at most `pending` of this thread's newest groups are under way."""

    pending: int


@instruction("sync", "control", check=_nothing)
@dataclass(frozen=True, slots=True)
class Sync(Instruction):
    """Barrier of all threads of the block; orders their shared-memory accesses."""
