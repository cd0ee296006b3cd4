"""Requires layouts; ensures that every memory, product and conversion instruction says what hardware runs it, and why.

For memory it is the widest access that the layout, the alignment and the bounds are proved to allow. The reasons are
kept in the program, for whoever asks why a line is slow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from tilus.errors import LayoutError
from tilus.ir.expr import Tensor
from tilus.ir.instructions import (
    AtomicAdd,
    ConvertLayout,
    CopyAsync,
    Dot,
    GlobalView,
    Instruction,
    LoadGlobal,
    LoadShared,
    Prefetch,
    StoreGlobal,
    StoreShared,
)
from tilus.ir.node import Node, rewrite
from tilus.ir.producer import BULK_CAPABILITY, find_pipeline, producer_of
from tilus.ir.program import Program
from tilus.ir.stmt import InstStmt, Selected, inst_stmts
from tilus.ir.target import DEPENDENT_LAUNCH, Target
from tilus.layouts import Access, BankReport, RegisterLayout, dealt_vectors
from tilus.passes.access import contiguous_dim, global_access, unmasked_dims, views_of, widest
from tilus.passes.analyze import Analysis, analyze
from tilus.passes.bulk import is_bulk, is_piece
from tilus.passes.conversion_kind import conversion_kind
from tilus.passes.dot_layouts import matches_fma, matches_mma, mma_atoms, product_extents
from tilus.passes.shared_access import SharedAccess, local_run, matrix_load, shared_access, tile_layout, vector_width
from tilus.passes.tensors import layout_of, register_type, shared_layout_of, shared_type

_ASYNC_BYTES = (4, 8, 16)  # PTX ISA, "cp.async": cp-size
_ASYNC_CAPABILITY = 80


@dataclass(frozen=True, slots=True)
class _Context:
    target: Target
    num_threads: int
    analysis: Analysis
    views: Mapping[Tensor, GlobalView]
    producer: Analysis | None = None  # of the producer's program, if one starts the copies


def select(program: Program, target: Target) -> Program:
    """Choose the hardware instruction of every line; the same program where all are chosen already."""
    assert program.num_threads is not None, "layouts are inferred before instructions are selected"
    context = _with_producer(program, _Context(target, program.num_threads, analyze(program), views_of(program)))
    if program.producer and context.producer is None:
        program = replace(program, producer=False)

    def rule(node: Node) -> Node | None:
        if not isinstance(node, InstStmt) or type(node.inst) not in _SELECTORS:
            return None
        selected = _SELECTORS[type(node.inst)](node.inst, node.out, context)
        return None if selected == node.selected else replace(node, selected=selected)

    new: Program = rewrite(program, rule)
    return new


def _with_producer(program: Program, context: _Context) -> _Context:
    """Let a producer start the copies if it can start all of them."""
    pipeline = find_pipeline(program, context.target)
    if pipeline is None:
        return context
    produced = replace(context, producer=analyze(producer_of(program, pipeline)))
    copies = [stmt.inst for stmt in inst_stmts(program) if isinstance(stmt.inst, CopyAsync)]
    atoms = {_copy_async(inst, None, produced).atom for inst in copies}
    return context if "ld.st" in atoms else produced


# --- global memory --------------------------------------------------------------------------------------------------


def _global(inst: Instruction, tile: Tensor, atom: str, context: _Context) -> Selected:
    access = global_access(inst, context.views)
    assert access is not None
    dim = contiguous_dim(access, context.analysis)
    limit = 1 if dim is None else local_run(layout_of(tile), dim)
    width, note = widest(access, dim, limit, context.analysis)
    return Selected(atom, width, note, unmasked_dims(access, context.analysis))


def _load_global(inst: LoadGlobal, out: Tensor, context: _Context) -> Selected:
    return _global(inst, out, "ld.global", context)


def _store_global(inst: StoreGlobal, out: None, context: _Context) -> Selected:
    return _global(inst, inst.tile, "st.global", context)


def _atomic_add(inst: AtomicAdd, out: None, context: _Context) -> Selected:
    access = global_access(inst, context.views)
    assert access is not None
    return Selected("atom.add", 1, "one element at a time", unmasked_dims(access, context.analysis))


# --- shared memory --------------------------------------------------------------------------------------------------


def _load_shared(inst: LoadShared, out: Tensor, context: _Context) -> Selected:
    access, register, layout = _parts(inst, out)
    nbits = shared_type(inst.src).dtype.nbits
    load = matrix_load(access, register, nbits, layout, context.analysis, context.target)
    if load is None:
        return _vector(inst, out, "ld.shared", context)
    kind = Access(register, kind="matrix_transposed" if load.transposed else "matrix")
    width = load.count * max(32 // nbits, 1)
    return Selected(load.atom, width, _conflicts(kind, access, inst.src, context))


def _store_shared(inst: StoreShared, out: None, context: _Context) -> Selected:
    return _vector(inst, inst.tile, "st.shared", context)


def _parts(inst: Instruction, tile: Tensor) -> tuple[SharedAccess, RegisterLayout, Any]:
    access = shared_access(inst)
    assert access is not None
    return access, layout_of(tile), shared_layout_of(access.tensor)


def _vector(inst: Instruction, tile: Tensor, atom: str, context: _Context) -> Selected:
    access, register, layout = _parts(inst, tile)
    nbits = register_type(tile).dtype.nbits
    width = max(
        (
            vector_width(access, dim, local_run(register, dim), nbits, layout, context.analysis)
            for dim in range(register.rank)
        ),
        default=1,
    )
    size = width * nbits // 8
    note = _conflicts(Access(register, vector_bytes=size), access, access.tensor, context)
    return Selected(atom, width, f"{size} B" + (f", {note}" if note else ""))


def _conflicts(kind: Access, access: SharedAccess, tensor: Tensor, context: _Context) -> str:
    """Return the number of bank conflicts of an access, as text; nothing where the machine has no banks."""
    if context.target.kind != "cuda":
        return ""
    tile = tile_layout(shared_layout_of(tensor), access)
    if tile is None:
        return ""
    try:
        report: BankReport = kind.report(tile, shared_type(tensor).dtype.nbits)
    except LayoutError:
        return ""
    return f"{report.conflicts} bank conflicts"


def _copy_async(inst: CopyAsync, out: None, context: _Context) -> Selected:
    source, target = global_access(inst, context.views), shared_access(inst)
    assert source is not None
    assert target is not None
    analysis = context.producer or context.analysis
    dim, nbits, layout = contiguous_dim(source, analysis), source.nbits, shared_layout_of(inst.dst)
    unmasked = unmasked_dims(source, analysis)
    limit = 1
    if dim is not None:
        extent = inst.shape[dim]
        limit = vector_width(target, dim, extent & -extent, nbits, layout, analysis)
    width, note = widest(source, dim, limit, analysis)
    bulk = context.producer is not None and context.target.capability >= BULK_CAPABILITY
    if bulk and is_bulk(source, target, layout, width, analysis):
        return Selected("cp.async.bulk", width, f"{prod(inst.shape) * nbits // 8} B by one thread", unmasked)
    along = len(inst.shape) - 1 if dim is None else dim
    threads = context.num_threads if context.producer is None else context.target.lanes
    by_threads = dealt_vectors(threads, inst.shape, along, width)
    conflicts = _conflicts(Access(by_threads, vector_bytes=max(width * nbits // 8, 1)), target, inst.dst, context)
    possible = context.target.capability >= _ASYNC_CAPABILITY
    atom = "cp.async" if possible and width * nbits // 8 in _ASYNC_BYTES else "ld.st"
    return Selected(atom, width, ", ".join(x for x in (note, conflicts) if x), unmasked)


# --- the grid -------------------------------------------------------------------------------------------------------


def _prefetch(inst: Prefetch, out: None, context: _Context) -> Selected:
    access = global_access(inst, context.views)
    assert access is not None
    if context.target.capability < DEPENDENT_LAUNCH:
        return Selected("none", 1, f"{context.target.name} starts no kernel early")
    dim = contiguous_dim(access, context.analysis)
    limit = 1 if dim is None else inst.shape[dim] & -inst.shape[dim]
    width, note = widest(access, dim, limit, context.analysis)
    if not is_piece(access, width, context.analysis):
        return Selected("none", width, f"no aligned piece of memory; {note}")
    size = f"{prod(inst.shape) * access.nbits // 8} B by one thread"
    return Selected("cp.async.bulk.prefetch", width, size, unmasked_dims(access, context.analysis))


# --- registers ------------------------------------------------------------------------------------------------------


def _dot(inst: Dot, out: Tensor, context: _Context) -> Selected:
    a, b, c = (register_type(x) for x in (inst.a, inst.b, inst.c))
    layouts = layout_of(inst.a), layout_of(inst.b), layout_of(inst.c)
    for atom in mma_atoms(a, b, c, context.target):
        if matches_mma(atom, *layouts):
            m, n, k, _ = product_extents(a, b)
            steps = "x".join(str(extent // step) for extent, step in zip((m, n, k), atom.shape, strict=True))
            return Selected(atom.name, 1, f"{steps} fragments in {layouts[2] / atom.fragments(layouts[2].rank)[2]}")
    assert matches_fma(*layouts), "inference gives products layouts that fit"
    return Selected("fma", 1, f"no tensor-core instruction for {a.dtype} -> {c.dtype}, {a.shape} x {b.shape}")


def _convert_layout(inst: ConvertLayout, out: Tensor, context: _Context) -> Selected:
    kind = conversion_kind(layout_of(inst.x), inst.layout, context.target.lanes)
    return Selected("none" if kind == "same" else kind)


_SELECTORS: dict[type[Instruction], Callable[[Any, Any, _Context], Selected]] = {
    LoadGlobal: _load_global,
    StoreGlobal: _store_global,
    AtomicAdd: _atomic_add,
    LoadShared: _load_shared,
    StoreShared: _store_shared,
    CopyAsync: _copy_async,
    Prefetch: _prefetch,
    Dot: _dot,
    ConvertLayout: _convert_layout,
}
