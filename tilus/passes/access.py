"""Tile accesses to global memory: which dimension is contiguous, how wide an access may be, which bounds are proved.

`width` consecutive elements move as one if they are consecutive in memory, if the first one's address is a multiple of
their size, and if they lie inside or outside the view together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tilus.ir.expr import Expr, Tensor
from tilus.ir.instructions import AtomicAdd, CopyAsync, GlobalView, Instruction, LoadGlobal, Prefetch, StoreGlobal
from tilus.ir.program import Program
from tilus.ir.stmt import inst_stmts
from tilus.ir.types import GlobalType
from tilus.passes.analyze import Analysis
from tilus.passes.tensors import register_type

MAX_BYTES = 16  # the widest access of one thread to any memory


@dataclass(frozen=True, slots=True)
class GlobalAccess:
    """A rectangular part of a view: the fields that loads, stores, atomic additions, copies and prefetches share.

    `dims` says which dimension of the view each tile dimension runs along.
    """

    view: GlobalView
    offset: tuple[Expr, ...]
    shape: tuple[int, ...]
    dims: tuple[int, ...]
    nbits: int


def views_of(program: Program) -> dict[Tensor, GlobalView]:
    """Return the definition of every global view."""
    return {s.out: s.inst for s in inst_stmts(program) if isinstance(s.inst, GlobalView) and isinstance(s.out, Tensor)}


def global_access(inst: Instruction, views: Mapping[Tensor, GlobalView]) -> GlobalAccess | None:
    """Return an instruction's access to global memory, None if it has none by tiles."""
    match inst:
        case (
            LoadGlobal(view=view, offset=offset, shape=shape, dims=dims)
            | Prefetch(view=view, offset=offset, shape=shape, dims=dims)
        ):
            pass
        case (
            StoreGlobal(view=view, tile=tile, offset=offset, dims=dims)
            | AtomicAdd(view=view, tile=tile, offset=offset, dims=dims)
        ):
            shape = register_type(tile).shape
        case CopyAsync(src=view, src_offset=offset, shape=shape, src_dims=dims):
            pass
        case _:
            return None
    assert isinstance(view.type, GlobalType)
    return GlobalAccess(views[view], offset, shape, dims, view.type.dtype.nbits)


def contiguous_dim(access: GlobalAccess, analysis: Analysis) -> int | None:
    """Return the tile dimension whose neighbours are neighbours in memory: of several, the longest, then the last."""
    unit = [d for d, at in enumerate(access.dims) if analysis.of(access.view.strides[at]).constant == 1]
    return max(unit, key=lambda d: (access.shape[d], d), default=None)


def unmasked_dims(access: GlobalAccess, analysis: Analysis) -> tuple[int, ...]:
    """Return the dimensions of the view in which the access is proved to lie inside."""
    sizes = dict(zip(access.dims, access.shape, strict=True))
    return tuple(
        at
        for at, (offset, extent) in enumerate(zip(access.offset, access.view.shape, strict=True))
        if analysis.lies_inside(offset, sizes.get(at, 1), extent)
    )


def widest(access: GlobalAccess, dim: int | None, limit: int, analysis: Analysis) -> tuple[int, str]:
    """Return the greatest proved number of elements per access along a contiguous tile dimension, and why.

    Parameters
    ----------
    access : GlobalAccess
    dim : int or None
        Contiguous tile dimension; None: elements move one by one.
    limit : int
        Greatest number that layouts and hardware allow.
    analysis : Analysis

    Returns
    -------
    (width, note)
        `width` is a power of two, and more than 1 only where the bytes moved are a power of two too.
    """
    if dim is None:
        return 1, "no contiguous dimension"
    unmasked = access.dims[dim] in unmasked_dims(access, analysis)
    width = whole_bytes(limit, access.nbits)
    reason = f"at most {limit} in a row" if width * access.nbits < MAX_BYTES * 8 else ""
    while width > 1:
        obstacle = _obstacle(access, dim, width, unmasked, analysis)
        if obstacle is None:
            break
        reason = obstacle
        width = whole_bytes(width // 2, access.nbits)
    return width, _note(width, access.nbits, reason, unmasked)


def _note(width: int, nbits: int, reason: str, unmasked: bool) -> str:
    size = f"{width * nbits // 8} B" if width * nbits % 8 == 0 else f"{width * nbits} bits"
    proved = f"offset % {width} == 0, " + ("inside" if unmasked else f"extent % {width} == 0") if width > 1 else ""
    return "; ".join([f"{size}: {proved}" if proved else size, *([reason] if reason else [])])


def whole_bytes(limit: int, nbits: int) -> int:
    """Return the greatest power of two, at most `limit`, of elements that fill 1, 2, 4, 8 or 16 bytes; else 1."""
    width = 1 << (max(limit, 1).bit_length() - 1)
    while width > 1:
        bits = width * nbits
        if bits % 8 == 0 and bits & (bits - 1) == 0 and bits <= MAX_BYTES * 8:
            return width
        width //= 2
    return 1


def _obstacle(access: GlobalAccess, dim: int, width: int, unmasked: bool, analysis: Analysis) -> str | None:
    """Return why `width` elements cannot move at once, None if they can."""
    view, at = access.view, access.dims[dim]
    if analysis.alignment.get(view.ptr, 1) * 8 % (width * access.nbits):
        return f"{view.ptr.name} is aligned to {analysis.alignment.get(view.ptr, 1)} B"
    if not analysis.of(access.offset[at]).divisible_by(width):
        return f"offset % {width} unknown"
    for other, (offset, stride) in enumerate(zip(access.offset, view.strides, strict=True)):
        if other == at:
            continue
        step = analysis.of(stride)
        if other in access.dims and access.shape[access.dims.index(other)] > 1 and not step.divisible_by(width):
            return f"stride % {width} unknown"
        if not analysis.product(offset, stride).divisible_by(width):
            return f"offset * stride % {width} unknown"
    if not unmasked and not analysis.of(view.shape[at]).divisible_by(width):
        return f"extent % {width} unknown"
    return None
