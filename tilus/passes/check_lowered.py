"""What a lowered program guarantees to the emitters, checked; the numbers are those of ARCHITECTURE.md.

The last pass: whatever went before, an emitter never sees a program that breaks one of these rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tilus.errors import InternalError, LayoutError
from tilus.ir.atoms import LDMATRIX, MMA_BY_NAME
from tilus.ir.expr import Tensor
from tilus.ir.instructions import (
    INSTRUCTIONS,
    AllocShared,
    AtomicAdd,
    Cast,
    ClusterSum,
    ConvertLayout,
    Copy,
    CopyAsync,
    Dot,
    Elementwise,
    GlobalView,
    Instruction,
    LoadGlobal,
    LoadShared,
    Prefetch,
    Reduce,
    Reshape,
    Slice,
    StoreGlobal,
    StoreShared,
    Transpose,
    Unpack,
    View,
)
from tilus.ir.producer import BULK_CAPABILITY, find_pipeline, producer_of
from tilus.ir.program import Program
from tilus.ir.stmt import InstStmt, Selected, inst_stmts
from tilus.ir.target import Target
from tilus.layouts import RegisterLayout, classify_conversion, index_table, locate_table
from tilus.passes.access import GlobalAccess, contiguous_dim, global_access, unmasked_dims, views_of, widest
from tilus.passes.analyze import Analysis, analyze
from tilus.passes.bulk import is_bulk, is_piece
from tilus.passes.dot_layouts import matches_fma, matches_mma
from tilus.passes.plan_shared import barriers_of, find_tenants, may_share
from tilus.passes.shared_access import local_run, matrix_load, shared_access, vector_width
from tilus.passes.tensors import (
    layout_of,
    register_operands,
    register_tensors,
    register_type,
    shared_layout_of,
    shared_tensors,
    shared_type,
)


def check_lowered(program: Program, target: Target) -> Program:
    """Return the program as it is.

    Raises
    ------
    InternalError
        If it breaks a guarantee: all that do are listed.
    """
    breaches = list(_breaches(program, target))
    if breaches:
        raise InternalError(f"{program.name} is not lowered:\n" + "\n".join(breaches), loc=program.loc)
    return program


class _Context:
    """What the rules ask about the whole program."""

    def __init__(self, program: Program, target: Target) -> None:
        self.program = program
        self.target = target
        self.analysis: Analysis = analyze(program)
        self.views: Mapping[Tensor, GlobalView] = views_of(program)
        self.copying = self.analysis  # of the program that starts copies
        pipeline = find_pipeline(program, target)
        if pipeline is not None:
            self.copying = analyze(producer_of(program, pipeline))


def _breaches(program: Program, target: Target) -> Iterator[str]:
    incomplete = list(_incomplete(program))
    yield from incomplete
    if incomplete:
        return  # the other rules read layouts
    context = _Context(program, target)
    for stmt in inst_stmts(program):
        rule = _RULES.get(type(stmt.inst))
        if rule is not None:
            name = INSTRUCTIONS[type(stmt.inst)].name
            out = f"{stmt.out.name} = " if stmt.out is not None else ""
            yield from (f"{out}{name}: {text}" for text in rule(stmt.inst, stmt, context))
    yield from _overlaps(program)


def _incomplete(program: Program) -> Iterator[str]:
    """Rule 1."""
    for name in ("num_threads", "shared_bytes"):
        if getattr(program, name) is None:
            yield f"{name} is not set"
    for tensor in register_tensors(program):
        layout = register_type(tensor).layout
        if layout is None:
            yield f"{tensor.name} has no layout"
        elif layout.num_threads != program.num_threads:
            yield f"{tensor.name} is spread over {layout.num_threads} threads, not {program.num_threads}"
    yield from (f"{t.name} has no shared layout" for t in shared_tensors(program) if shared_type(t).layout is None)
    for stmt in inst_stmts(program):
        if isinstance(stmt.inst, AllocShared) and stmt.inst.byte_offset is None:
            yield f"alloc_shared of {stmt.inst.shape} has no byte_offset"
        if isinstance(stmt.inst, _NEED_SELECTION) and stmt.selected is None:
            yield f"{INSTRUCTIONS[type(stmt.inst)].name} has no hardware instruction selected"


def _overlaps(program: Program) -> Iterator[str]:
    """Rules 1 and 6: tenants of shared memory lie inside, and overlap only where a barrier parts them."""
    offsets: dict[int, int] = {}
    for stmt in inst_stmts(program):
        if isinstance(stmt.inst, AllocShared):
            offsets[id(stmt.out)] = stmt.inst.byte_offset or 0
        elif isinstance(stmt.inst, ConvertLayout) and stmt.selected is not None:
            offsets[id(stmt)] = stmt.selected.width
    tenants, barriers = find_tenants(program), barriers_of(program)
    for i, a in enumerate(tenants):
        start = offsets[id(a.owner)]
        if start + a.nbytes > (program.shared_bytes or 0) or start % a.alignment:
            yield f"bytes {start} to {start + a.nbytes} leave the {program.shared_bytes} planned or are not aligned"
        for b in tenants[:i]:
            apart = start >= offsets[id(b.owner)] + b.nbytes or offsets[id(b.owner)] >= start + a.nbytes
            if not apart and not may_share(a, b, barriers):
                yield f"tenants at bytes {start} and {offsets[id(b.owner)]} overlap while both are in use"


# --- registers: rules 2 to 4, 6 -------------------------------------------------------------------------------------


def _out(stmt: InstStmt) -> RegisterLayout:
    assert isinstance(stmt.out, Tensor)
    return layout_of(stmt.out)


def _same(inst: Copy | Cast, stmt: InstStmt, context: _Context) -> Iterator[str]:
    if layout_of(inst.x) != _out(stmt):
        yield f"operand {layout_of(inst.x)} and result {_out(stmt)} differ"


def _elementwise(inst: Elementwise, stmt: InstStmt, context: _Context) -> Iterator[str]:
    for x in register_operands(inst):
        wanted = _out(stmt).reduce_to(register_type(x).shape)
        if layout_of(x) != wanted:
            yield f"operand {x.name} has layout {layout_of(x)}, the result needs {wanted}"


def _derived(wanted: Callable[[Any, RegisterLayout], RegisterLayout]) -> Callable[..., Iterator[str]]:
    def rule(inst: Any, stmt: InstStmt, context: _Context) -> Iterator[str]:
        try:
            layout = wanted(inst, layout_of(inst.x))
        except LayoutError as error:
            yield error.message
            return
        if _out(stmt) != layout:
            yield f"the result has layout {_out(stmt)}, its operand gives {layout}"

    return rule


def _slice(inst: Slice, stmt: InstStmt, context: _Context) -> Iterator[str]:
    part = index_table(_out(stmt)) + np.array(inst.offset)
    holders = locate_table(layout_of(inst.x))[0][tuple(np.moveaxis(part, -1, 0))]
    threads = np.arange(part.shape[0])[:, None, None]
    if not (holders == threads).any(axis=-1).all():
        yield f"some elements of the result {_out(stmt)} lie in other threads of {layout_of(inst.x)}"


def _view(inst: View | Unpack, stmt: InstStmt, context: _Context) -> Iterator[str]:
    if _out(stmt) != inst.layout:
        yield f"the result has layout {_out(stmt)}, the instruction says {inst.layout}"


def _dot(inst: Dot, stmt: InstStmt, context: _Context) -> Iterator[str]:
    selected = _selected(stmt)
    a, b, c = layout_of(inst.a), layout_of(inst.b), layout_of(inst.c)
    if _out(stmt) != c:
        yield f"the result has layout {_out(stmt)}, the accumulator {c}"
    if selected.atom == "fma":
        if not matches_fma(a, b, c):
            yield f"threads do not hold what they multiply: {a}, {b}, {c}"
    elif selected.atom not in MMA_BY_NAME:
        yield f"no matrix product is called {selected.atom}"
    elif not matches_mma(MMA_BY_NAME[selected.atom], a, b, c):
        yield f"layouts are not the fragments of {selected.atom}: {a}, {b}, {c}"


def _convert(inst: ConvertLayout, stmt: InstStmt, context: _Context) -> Iterator[str]:
    atom = _selected(stmt).atom
    kind = classify_conversion(layout_of(inst.x), inst.layout, context.target.lanes)
    if atom != ("none" if kind == "same" else kind):
        yield f"the conversion is {kind}, selected is {atom}"
    if _out(stmt) != inst.layout:
        yield f"the result has layout {_out(stmt)}, the conversion makes {inst.layout}"


# --- memory: rule 5 -------------------------------------------------------------------------------------------------


def _selected(stmt: InstStmt) -> Selected:
    assert stmt.selected is not None
    return stmt.selected


def _bounds(access: GlobalAccess, stmt: InstStmt, analysis: Analysis) -> Iterator[str]:
    unproved = set(_selected(stmt).unmasked) - set(unmasked_dims(access, analysis))
    if unproved:
        yield f"dimensions {sorted(unproved)} go unmasked without proof"


def _global(inst: Instruction, stmt: InstStmt, context: _Context) -> Iterator[str]:
    access = global_access(inst, context.views)
    assert access is not None
    yield from _bounds(access, stmt, context.analysis)
    tile = stmt.out if isinstance(inst, LoadGlobal) else inst.tile if isinstance(inst, StoreGlobal) else None
    dim = contiguous_dim(access, context.analysis)
    limit = local_run(layout_of(tile), dim) if isinstance(tile, Tensor) and dim is not None else 1
    width = _selected(stmt).width
    if width != widest(access, dim, min(width, limit), context.analysis)[0]:
        yield f"{width} elements at once are not proved to lie together, aligned, and inside or outside together"


def _shared(inst: LoadShared | StoreShared, stmt: InstStmt, context: _Context) -> Iterator[str]:
    tile = stmt.out if isinstance(inst, LoadShared) else inst.tile
    access, selected = shared_access(inst), _selected(stmt)
    assert isinstance(tile, Tensor)
    assert access is not None
    layout, nbits = shared_layout_of(access.tensor), shared_type(access.tensor).dtype.nbits
    register = layout_of(tile)
    if selected.atom.startswith("ldmatrix"):
        load = matrix_load(access, register, nbits, layout, context.analysis, context.target)
        if nbits not in LDMATRIX or load is None or load.atom != selected.atom:
            yield f"{selected.atom} cannot read {register} from {layout}"
        return
    widths = (
        vector_width(access, dim, min(local_run(register, dim), selected.width), nbits, layout, context.analysis)
        for dim in range(register.rank)
    )
    if selected.width != max(widths, default=1):
        yield f"{selected.width} elements at once are not contiguous and aligned in {layout}"


def _copy_async(inst: CopyAsync, stmt: InstStmt, context: _Context) -> Iterator[str]:
    source, access, selected = global_access(inst, context.views), shared_access(inst), _selected(stmt)
    assert source is not None
    assert access is not None
    analysis, width = context.copying, selected.width
    yield from _bounds(source, stmt, analysis)
    if selected.atom == "cp.async" and width * source.nbits // 8 not in (4, 8, 16):
        yield f"cp.async moves 4, 8 or 16 bytes, not {width * source.nbits // 8}"
    dim = contiguous_dim(source, analysis)
    limit = 1
    if dim is not None:
        layout, most = shared_layout_of(inst.dst), min(width, inst.shape[dim] & -inst.shape[dim])
        limit = vector_width(access, dim, most, source.nbits, layout, analysis)
    if width != widest(source, dim, limit, analysis)[0]:
        yield f"{width} elements at once are not contiguous and aligned on both sides"
    if selected.atom == "cp.async.bulk":
        if find_pipeline(context.program, context.target) is None or context.target.capability < BULK_CAPABILITY:
            yield "a producer starts bulk copies, and the program, or the target, can have none"
        if not is_bulk(source, access, shared_layout_of(inst.dst), width, analysis):
            yield "a bulk copy moves one piece of memory, which the tile is not on both sides"


def _prefetch(inst: Prefetch, stmt: InstStmt, context: _Context) -> Iterator[str]:
    source, selected = global_access(inst, context.views), _selected(stmt)
    assert source is not None
    yield from _bounds(source, stmt, context.analysis)
    if selected.atom != "none" and not is_piece(source, selected.width, context.analysis):
        yield "one piece of memory is prefetched, which the tile is not"


_RULES: dict[type[Instruction], Callable[[Any, InstStmt, _Context], Iterator[str]]] = {
    Copy: _same,
    ClusterSum: _same,
    Cast: _same,
    Elementwise: _elementwise,
    Reduce: _derived(lambda inst, x: x.reduce([inst.dim], inst.keepdims)),
    Transpose: _derived(lambda inst, x: x.permute(inst.perm)),
    Reshape: _derived(lambda inst, x: x.reshape(inst.shape)),
    Slice: _slice,
    View: _view,
    Unpack: _view,
    Dot: _dot,
    ConvertLayout: _convert,
    LoadGlobal: _global,
    StoreGlobal: _global,
    AtomicAdd: _global,
    LoadShared: _shared,
    StoreShared: _shared,
    CopyAsync: _copy_async,
    Prefetch: _prefetch,
}
_NEED_SELECTION = (
    Dot,
    ConvertLayout,
    LoadGlobal,
    StoreGlobal,
    AtomicAdd,
    LoadShared,
    StoreShared,
    CopyAsync,
    Prefetch,
)
