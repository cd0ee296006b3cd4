"""Requires register layouts; ensures that every shared tensor has a layout.

The layout is the one that costs all accesses of the tensor the fewest wavefronts, counted bank by bank, among plain,
swizzled and padded ones. Leading dimensions of which every access touches one index are buffers of a pipeline: they
hold copies of the same tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tilus.errors import LayoutError
from tilus.ir.expr import Tensor
from tilus.ir.instructions import CopyAsync, GlobalView, Instruction, LoadShared, StoreShared
from tilus.ir.producer import find_pipeline
from tilus.ir.program import Program
from tilus.ir.stmt import InstStmt, inst_stmts
from tilus.ir.target import Target
from tilus.layouts import Access, RegisterLayout, SharedLayout, best_swizzle, dealt_vectors, row_major
from tilus.passes.access import contiguous_dim, global_access, views_of, whole_bytes, widest
from tilus.passes.analyze import Analysis, analyze
from tilus.passes.shared_access import SharedAccess, expanded, local_run, matrix_load, shared_access
from tilus.passes.tensors import layout_of, shared_tensors, shared_type, with_layouts


def infer_shared(program: Program, target: Target) -> Program:
    """Give every shared tensor a layout; those that have one keep it."""
    missing = [t for t in shared_tensors(program) if shared_type(t).layout is None]
    if not missing:
        return program
    threads = program.num_threads if find_pipeline(program, target) is None else target.lanes
    assert threads is not None
    chooser = _Chooser(program, target, analyze(program), views_of(program), threads)
    return with_layouts(program, {t: chooser.layout(t) for t in missing})


@dataclass(frozen=True, slots=True)
class _Chooser:
    program: Program
    target: Target
    analysis: Analysis
    views: Mapping[Tensor, GlobalView]
    copying_threads: int  # that asynchronous copies are dealt to

    def layout(self, tensor: Tensor) -> SharedLayout:
        shape = shared_type(tensor).shape
        users = [s for s in inst_stmts(self.program) if (a := shared_access(s.inst)) is not None and a.tensor is tensor]
        touched = [at for s in users for at in _touched(s.inst)]
        first = min(touched, default=len(shape) - 1)
        core = shape[first:]
        dims = self.contiguous_dims(users, first, len(shape))
        options = [self.option(tensor, users, first, core, dim) for dim in dims]
        _, layout = min(options, key=lambda option: option[0])
        for extent in reversed(shape[:first]):
            layout = layout.prepend_dim(extent)
        return layout

    def contiguous_dims(self, users: Sequence[InstStmt], first: int, rank: int) -> list[int]:
        """Return the dimensions that might be contiguous: the last one, and those along which accesses move vectors."""
        dims = {rank - 1: None}
        for stmt in users:
            access = shared_access(stmt.inst)
            assert access is not None
            if isinstance(stmt.inst, CopyAsync):
                dim = self.copied_along(stmt.inst)
                wanted = [] if dim is None else [dim]
            else:
                layout = layout_of(_tile(stmt))
                wanted = [d for d in range(layout.rank) if local_run(layout, d) > 1]
            dims.update((access.dims[d], None) for d in wanted)
        return [dim for dim in dims if dim >= first]

    def copied_along(self, inst: CopyAsync) -> int | None:
        access = global_access(inst, self.views)
        assert access is not None
        return contiguous_dim(access, self.analysis)

    def option(
        self, tensor: Tensor, users: Sequence[InstStmt], first: int, core: tuple[int, ...], dim: int
    ) -> tuple[float, SharedLayout]:
        """Return the cost and layout that come of making one dimension contiguous."""
        order = [*(d for d in range(len(core)) if d != dim - first), dim - first]
        plain = row_major(*(core[d] for d in order)).permute(*(order.index(d) for d in range(len(core))))
        nbits = shared_type(tensor).dtype.nbits
        if self.target.kind != "cuda":
            return float(not self.copies_along(users, dim)), plain
        found = (self.bank_access(stmt, first, core, dim, plain, nbits) for stmt in users)
        accesses = tuple(dict.fromkeys(access for access in found if access is not None))
        try:
            layout = best_swizzle(core, nbits // 8, accesses) if accesses else plain
        except LayoutError:
            return float("inf"), plain
        return float(sum(access.report(layout, nbits).wavefronts for access in accesses)), layout

    def copies_along(self, users: Sequence[InstStmt], dim: int) -> bool:
        copies = [s.inst for s in users if isinstance(s.inst, CopyAsync)]
        along = [(inst, self.copied_along(inst)) for inst in copies]
        return any(at is not None and inst.dst_dims[at] == dim for inst, at in along)

    def bank_access(
        self, stmt: InstStmt, first: int, core: tuple[int, ...], dim: int, plain: SharedLayout, nbits: int
    ) -> Access | None:
        """Return what an instruction does to the banks if `dim` is contiguous; None where its tile does not repeat."""
        access = shared_access(stmt.inst)
        assert access is not None
        whole = plain
        for extent in reversed(shared_type(access.tensor).shape[:first]):
            whole = whole.prepend_dim(extent)
        register, width, matrix = self.moved(stmt, access, dim, whole, nbits)
        covering = expanded(register, access, core)
        if covering is None:
            return None
        if matrix is not None:
            return Access(covering, kind="matrix_transposed" if matrix else "matrix")
        return Access(covering, vector_bytes=max(width * nbits // 8, 1))

    def moved(
        self, stmt: InstStmt, access: SharedAccess, dim: int, whole: SharedLayout, nbits: int
    ) -> tuple[RegisterLayout, int, bool | None]:
        """Return who moves which elements, how many at once, and for ldmatrix whether it transposes."""
        along = access.dims.index(dim) if dim in access.dims else None
        if isinstance(stmt.inst, CopyAsync):
            return self.copied(stmt.inst, along, nbits)
        register = layout_of(_tile(stmt))
        if isinstance(stmt.inst, LoadShared):
            load = matrix_load(access, register, nbits, whole, self.analysis, self.target)
            if load is not None:
                return register, 1, load.transposed
        if along is None:
            return register, 1, None
        width = whole_bytes(local_run(register, along), nbits)
        while width > 1 and not self.analysis.of(access.offset[dim]).divisible_by(width):
            width //= 2
        return register, width, None

    def copied(self, inst: CopyAsync, along: int | None, nbits: int) -> tuple[RegisterLayout, int, None]:
        source = global_access(inst, self.views)
        assert source is not None
        dim = contiguous_dim(source, self.analysis)
        width = 1
        if dim is not None and dim == along:
            at = inst.dst_dims[dim]
            limit = _power_of_two_in(inst.shape[dim])
            width, _ = widest(source, dim, min(limit, max(128 // nbits, 1)), self.analysis)
            while width > 1 and not self.analysis.of(inst.dst_offset[at]).divisible_by(width):
                width //= 2
        threads, last = self.copying_threads, len(inst.shape) - 1
        return dealt_vectors(threads, inst.shape, last if dim is None else dim, width), width, None


def _power_of_two_in(n: int) -> int:
    return n & -n


def _touched(inst: Instruction) -> list[int]:
    """Return the dimensions of the shared tensor in which an access touches more than one index."""
    access = shared_access(inst)
    assert access is not None
    return [at for at, size in zip(access.dims, access.shape, strict=True) if size > 1]


def _tile(stmt: InstStmt) -> Tensor:
    """Return the register tile that a load or store of shared memory moves."""
    tile = stmt.inst.tile if isinstance(stmt.inst, StoreShared) else stmt.out
    assert isinstance(tile, Tensor)
    return tile
