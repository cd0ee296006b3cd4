"""Emitters of the instructions on shared memory, barriers among them."""

from __future__ import annotations

from tilus.codegen.cuda import cpp, ring, vectors
from tilus.codegen.cuda import ptx as rows
from tilus.codegen.cuda.context import Context, layout_of, register, shared
from tilus.codegen.cuda.cpp import Expr, call
from tilus.codegen.cuda.emit_global import selected_of
from tilus.codegen.cuda.placement import Term, coordinates, is_first_replica, local_indices, thread_terms
from tilus.codegen.cuda.shared_tile import SharedTile, base_of
from tilus.errors import CodegenError, LayoutError
from tilus.ir import instructions as I
from tilus.ir.atoms import LDMATRIX
from tilus.ir.expr import Tensor
from tilus.ir.stmt import InstStmt
from tilus.layouts import RegisterLayout
from tilus.layouts import digits as dg

_ROWS = 8  # of a matrix of ldmatrix


def alloc_shared(ctx: Context, stmt: InstStmt, out: Tensor, inst: I.AllocShared) -> None:
    """Remember where a tensor lies."""
    if inst.byte_offset is None:
        raise CodegenError(
            f"shared tensor {out.name!r} has no place yet",
            loc=inst.loc,
            hint="lower the program first: passes.pipeline.lower(program, target)",
        )
    ctx.shared_offsets[out] = inst.byte_offset


def sync(ctx: Context, stmt: InstStmt, out: None, inst: I.Sync) -> None:
    """Wait for all threads of the block; the producer waits for a stage to be free."""
    if ctx.is_producer and ctx.ring is not None:
        ring.wait_free(ctx, ctx.ring)
    else:
        barrier(ctx)


def barrier(ctx: Context) -> None:
    """Emit a barrier of all threads but the producer's."""
    if ctx.ring is None:
        ctx.emit(cpp.Do(call("__syncthreads")))
    else:
        ctx.do(rows.barrier(ctx.ring.consumers))


def load_shared(ctx: Context, stmt: InstStmt, out: Tensor, inst: I.LoadShared) -> None:
    """Load a tile by vectors, or by matrices."""
    kind, layout, selected = register(out), layout_of(out), selected_of(stmt)
    source, places = shared(inst.src)
    if selected.atom.startswith("ldmatrix"):
        _load_matrices(ctx, out, inst, selected.atom)
        return
    nbytes = source.dtype.nbits // 8
    terms = thread_terms(ctx, layout)
    tile = SharedTile(ctx, places, base_of(ctx, inst.src), nbytes, inst.offset, inst.dims, inst.shape, terms)
    indices = local_indices(layout)

    def fetch(i: int, bits: int, words: Expr) -> None:
        ctx.do(f"ld_shared_b{bits}", words, tile.address(indices[i]))

    vectors.load(ctx, ctx.name(out), kind.dtype.nbits, layout.local_size, selected.width, fetch)


def store_shared(ctx: Context, stmt: InstStmt, out: None, inst: I.StoreShared) -> None:
    """Store a tile by vectors; of replicas the first does it."""
    kind, layout, selected = register(inst.tile), layout_of(inst.tile), selected_of(stmt)
    target, places = shared(inst.dst)
    nbytes = target.dtype.nbits // 8
    terms, shape = thread_terms(ctx, layout), kind.shape
    tile = SharedTile(ctx, places, base_of(ctx, inst.dst), nbytes, inst.offset, inst.dims, shape, terms)
    indices, first = local_indices(layout), is_first_replica(ctx, layout)

    def send(i: int, bits: int, words: Expr) -> None:
        store_vector(ctx, bits, tile.address(indices[i]), words, first)

    vectors.store(ctx, ctx.name(inst.tile), kind.dtype.nbits, layout.local_size, selected.width, send)


def store_vector(ctx: Context, bits: int, address: Expr, words: Expr, condition: Expr) -> None:
    """Emit the store of one vector to shared memory."""
    if condition == cpp.TRUE:
        ctx.do(f"st_shared_b{bits}", address, words)
    else:
        ctx.do(f"st_shared_b{bits}_if", address, words, condition)


# --- ldmatrix -------------------------------------------------------------------------------------------------------


def _load_matrices(ctx: Context, out: Tensor, inst: I.LoadShared, atom: str) -> None:
    """Load N matrices of 8 rows of 16 bytes at once: lanes 8j to 8j+7 name the rows of matrix j.

    Result word j of a lane is its part of matrix j: the next fragment in the order of locals. So matrix j of an
    instruction is the fragment whose local number ends in j, and a lane finds its row from the number `lane / 8`.
    """
    source, places = shared(inst.src)
    layout, nbits = layout_of(out), source.dtype.nbits
    name, count, transposed = _parse(atom)
    outer, pairs_along = _fragments(layout, nbits)
    other = 2 * layout.rank - 3 - pairs_along  # of the last two dimensions
    across = pairs_along if transposed else other  # a row is contiguous along the other one
    fragment = tuple(n // m for n, m in zip(layout.shape, outer.shape, strict=True))
    matrix = ctx.thread_digit(_ROWS, count) if count > 1 else cpp.ZERO
    parts = dg.cut(outer.local_digits, count)
    if parts is None:
        raise CodegenError(f"{atom} cannot load {layout}: {count} fragments in a row do not form a rectangle")
    far, near = parts
    terms = _warp_terms(ctx, outer)
    for dim, found in enumerate(coordinates(near, layout.rank, _digits_of(near, matrix))):
        terms[dim] += found
    terms = [[Term(t.value, t.size, t.stride * fragment[dim]) for t in found] for dim, found in enumerate(terms)]
    terms[across].append(Term(ctx.thread_digit(1, _ROWS), _ROWS, 1))
    nbytes = nbits // 8
    tile = SharedTile(ctx, places, base_of(ctx, inst.src), nbytes, inst.offset, inst.dims, inst.shape, terms)
    array = ctx.name(out)
    for step in range(dg.count(far)):
        index = [0] * layout.rank
        dg.index_of(far, step, index)
        start = tuple(i * n for i, n in zip(index, fragment, strict=True))
        ctx.do(name, array + step * count, tile.address(start))


def _parse(atom: str) -> tuple[str, int, bool]:
    """Return the row of the table, the number of matrices, and whether they are transposed."""
    _, shape, *suffix = atom.split(".")
    return f"ldmatrix_{shape}{'_trans' if suffix else ''}", int(shape[1:]), bool(suffix)


def _fragments(layout: RegisterLayout, nbits: int) -> tuple[RegisterLayout, int]:
    """Return the layout of whole fragments, and the dimension in which a lane holds neighbours."""
    plain, rank = LDMATRIX[nbits], layout.rank
    for dim, fragment in ((rank - 1, plain), (rank - 2, plain.permute(1, 0))):
        try:
            return layout / fragment.unsqueeze(range(rank - 2)), dim
        except LayoutError:
            continue
    raise CodegenError(f"ldmatrix cannot load {layout}: it is not made of fragments")


def _warp_terms(ctx: Context, outer: RegisterLayout) -> list[list[Term]]:
    """Return the coordinates, in fragments, that the warp adds: its digits begin above those of the 32 lanes."""
    values: list[Expr] = []
    weight = 32
    for size, _, _ in reversed(outer.spatial_digits):
        values.insert(0, ctx.thread_digit(weight, size))
        weight *= size
    return coordinates(outer.spatial_digits, outer.rank, values)


def _digits_of(digits: dg.Digits, number: Expr) -> list[Expr]:
    """Return the digits of a run-time number below `count(digits)`."""
    values: list[Expr] = []
    weight, whole = 1, dg.count(digits)
    for size, _, _ in reversed(digits):
        value = number // weight
        values.insert(0, value if weight * size == whole else value % size)
        weight *= size
    return values
