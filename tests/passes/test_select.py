"""What accesses become: as wide as alignment, strides, offsets and bounds allow, and never wider."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.programs import ZERO, cdiv, chained, matmul, matrix, quantized, vector_add
from tilus.dtypes import DataType, bf16, f16, f32, i8, i32, u3, u4, u8, u32
from tilus.ir.builder import Builder, op
from tilus.ir.expr import const
from tilus.ir.instructions import (
    AllocShared,
    AtomicAdd,
    ConvertLayout,
    CopyAsync,
    Dot,
    GlobalView,
    Instruction,
    LoadGlobal,
    LoadShared,
    StoreGlobal,
    StoreShared,
)
from tilus.ir.program import Program
from tilus.ir.stmt import Selected, inst_stmts
from tilus.ir.target import TARGETS
from tilus.layouts import RegisterLayout, SharedLayout, column_local, local, offset_table, row_major, spatial
from tilus.passes.pipeline import lower
from tilus.passes.shared_access import contiguous_run

SM80 = TARGETS["sm_80"]


def selections(program: Program, cls: type[Instruction], target: str = "sm_80") -> list[Selected]:
    lowered = lower(program, TARGETS[target])
    return [s.selected for s in inst_stmts(lowered) if isinstance(s.inst, cls) and s.selected is not None]


# --- global memory --------------------------------------------------------------------------------------------------

ALIGNED = [
    # (multiple of n, alignment of pointers in bytes, elements per access of f32)
    (1, 16, 1),
    (2, 16, 2),
    (4, 16, 4),
    (16, 16, 4),
    (16, 8, 2),
    (16, 4, 1),
    (16, 1, 1),
    (6, 16, 2),
]


@pytest.mark.parametrize(("multiple", "align", "width"), ALIGNED)
def test_alignment_and_extent_bound_the_width(multiple: int, align: int, width: int) -> None:
    for cls, atom in ((LoadGlobal, "ld.global"), (StoreGlobal, "st.global")):
        for selected in selections(vector_add(multiple, align), cls):
            assert (selected.atom, selected.width) == (atom, width)


def test_a_tile_that_divides_the_extent_needs_no_mask() -> None:
    assert {s.unmasked for s in selections(vector_add(1024), LoadGlobal)} == {(0,)}
    assert {s.unmasked for s in selections(vector_add(512), LoadGlobal)} == {()}


def test_small_tiles_spread_over_all_threads() -> None:
    assert {s.width for s in selections(vector_add(16, tile=128), LoadGlobal)} == {1}
    assert {s.width for s in selections(vector_add(16, tile=256), LoadGlobal)} == {2}


def load_rows(
    dtype: DataType = f16,
    stride_multiple: int = 8,
    shift: int = 0,
    shape: tuple[int, int] = (16, 64),
    row: int = 0,
    **kwargs: Any,
) -> Program:
    """Copy a tile of rows `stride` apart, `shift` columns from an aligned column."""
    b = Builder("rows")
    m, n, stride = b.scalar("m"), b.scalar("n", i32, 8), b.scalar("stride", i32, stride_multiple)
    x, y = b.pointer("x", dtype, 16), b.pointer("y", dtype, 16)
    gx, gy = (b.inst(GlobalView(p, (m, n), (stride, const(1)))) for p in (x, y))
    start = b.let("start", op("add", op("mul", b.block_id(0), 64), shift))
    tile = b.inst(LoadGlobal(gx, (const(row), start), shape, (0, 1)), "tile", **kwargs)
    b.inst(StoreGlobal(gy, tile, (const(row), start), (0, 1)))
    return b.program(grid=(cdiv(n, 64),), warps=1)


@pytest.mark.parametrize(
    ("stride", "shift", "width"), [(8, 0, 8), (4, 0, 4), (1, 0, 1), (8, 4, 4), (8, 2, 2), (8, 1, 1)]
)
def test_strides_and_offsets_bound_the_width(stride: int, shift: int, width: int) -> None:
    assert {s.width for s in selections(load_rows(stride_multiple=stride, shift=shift), LoadGlobal)} == {width}


@pytest.mark.parametrize(("row", "stride", "width"), [(0, 1, 2), (1, 1, 1), (1, 2, 2), (2, 1, 2)])
def test_a_single_row_begins_where_its_number_and_the_stride_say(row: int, stride: int, width: int) -> None:
    program = load_rows(shape=(1, 64), row=row, stride_multiple=stride)
    assert {s.width for s in selections(program, LoadGlobal)} == {width}


@pytest.mark.parametrize(("dtype", "width"), [(f32, 4), (f16, 8), (bf16, 8), (i8, 16), (u4, 32)])
def test_sixteen_bytes_of_every_type(dtype: DataType, width: int) -> None:
    b = Builder("bytes")
    gx, gy = (matrix(b, name, dtype, const(64), const(128))[1] for name in "xy")
    tile = b.inst(LoadGlobal(gx, (ZERO, ZERO), (64, 128), (0, 1)), "tile")
    b.inst(StoreGlobal(gy, tile, (ZERO, ZERO), (0, 1)))
    (selected,) = selections(b.program(), LoadGlobal)
    assert (selected.width, selected.unmasked) == (width, (0, 1))
    assert selected.note.startswith("16 B")


def test_a_given_layout_bounds_the_width() -> None:
    given = local(1, 16) * spatial(16, 2) * local(1, 2)
    assert {s.width for s in selections(load_rows(layout=given), LoadGlobal)} == {2}
    columns = column_local(16, 2) * spatial(1, 32)
    assert {s.width for s in selections(load_rows(layout=columns), LoadGlobal)} == {1}


def test_the_contiguous_dimension_need_not_be_the_last() -> None:
    b = Builder("columns")
    x, y = b.pointer("x", f16, 16), b.pointer("y", f16, 16)
    n = b.scalar("n", i32, 8)
    gx, gy = (b.inst(GlobalView(p, (n, n), (const(1), n))) for p in (x, y))
    tile = b.inst(LoadGlobal(gx, (ZERO, ZERO), (64, 16), (0, 1)), "tile")
    b.inst(StoreGlobal(gy, tile, (ZERO, ZERO), (0, 1)))
    program = b.program()
    assert {s.width for s in selections(program, LoadGlobal)} == {8}
    (stmt,) = (s for s in inst_stmts(lower(program, SM80)) if isinstance(s.inst, LoadGlobal))
    assert stmt.out is not None
    assert stmt.out.type.layout.contiguous_run(0) == 8


def test_odd_widths_move_one_by_one() -> None:
    b = Builder("u3")
    from_bits = [matrix(b, name, u3, const(8), const(64))[1] for name in "xy"]
    tile = b.inst(LoadGlobal(from_bits[0], (ZERO, ZERO), (8, 64), (0, 1)), "tile")
    b.inst(StoreGlobal(from_bits[1], tile, (ZERO, ZERO), (0, 1)))
    assert {s.width for s in selections(b.program(), LoadGlobal)} == {1}


def test_atomics_move_one_by_one_and_keep_their_bounds() -> None:
    b = Builder("atomic")
    _, gx = matrix(b, "x", f32, const(16), const(64))
    tile = b.inst(LoadGlobal(gx, (ZERO, ZERO), (16, 64), (0, 1)), "tile")
    b.inst(AtomicAdd(gx, tile, (ZERO, const(1)), (0, 1)))
    assert selections(b.program(), AtomicAdd) == [Selected("atom.add", 1, "one element at a time", (0,))]


# --- shared memory --------------------------------------------------------------------------------------------------


def test_a_pipelined_matmul_takes_the_widest_of_everything() -> None:
    program = matmul()
    assert {(s.atom, s.width) for s in selections(program, CopyAsync)} == {("cp.async", 8)}
    assert [s.atom for s in selections(program, LoadShared)] == ["ldmatrix.x4", "ldmatrix.x4.trans"]
    for selected in (*selections(program, CopyAsync), *selections(program, LoadShared)):
        assert selected.note.endswith("0 bank conflicts")
    (dot,) = selections(program, Dot)
    assert dot.atom == "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"


@pytest.mark.parametrize(
    ("multiple", "atom", "width"), [(8, "cp.async", 8), (4, "cp.async", 4), (2, "cp.async", 2), (1, "ld.st", 1)]
)
def test_asynchronous_copies_take_4_bytes_at_least(multiple: int, atom: str, width: int) -> None:
    assert {(s.atom, s.width) for s in selections(matmul(multiple=multiple), CopyAsync)} == {(atom, width)}


@pytest.mark.parametrize("target", ["cpu", "vm"])
def test_other_machines_have_no_such_instructions(target: str) -> None:
    program = matmul()
    assert {s.atom for s in selections(program, CopyAsync, target)} == {"ld.st"}
    assert {s.atom for s in selections(program, LoadShared, target)} == {"ld.shared"}
    assert {s.atom for s in selections(program, Dot, target)} == {"fma"}


def shared_round_trip(
    dtype: DataType, shared: SharedLayout | None, register: RegisterLayout, offset: int = 0, warps: int = 1
) -> Program:
    b = Builder("trip")
    rows, columns = register.shape
    _, gx = matrix(b, "x", dtype, const(rows), const(columns))
    tile = b.inst(LoadGlobal(gx, (ZERO, ZERO), (rows, columns), (0, 1)), "tile")
    s = b.inst(AllocShared(dtype, (rows, columns + offset)), "s", layout=shared)
    b.inst(StoreShared(s, tile, (ZERO, const(offset)), (0, 1)))
    again = b.inst(LoadShared(s, (ZERO, const(offset)), (rows, columns), (0, 1)), "again", layout=register)
    b.inst(StoreGlobal(gx, again, (ZERO, ZERO), (0, 1)))
    return b.program(warps=warps)


ROWS, COLUMNS = spatial(8, 4) * local(1, 2), (spatial(8, 4) * local(1, 2)).permute(1, 0)
BYTES = spatial(8, 4) * local(1, 4)
MATRIX_LOADS = [
    # type, layout of the whole shared tensor, layout of the tile, its first column, instruction, elements
    (f16, row_major(16, 64), local(2, 8) * ROWS, 0, "ldmatrix.x4", 8),
    (f16, row_major(16, 16), local(2, 2) * ROWS, 0, "ldmatrix.x4", 8),
    (f16, row_major(16, 8), local(2, 1) * ROWS, 0, "ldmatrix.x2", 4),
    (f16, row_major(8, 8), ROWS, 0, "ldmatrix.x1", 2),
    (f16, row_major(24, 8), local(3, 1) * ROWS, 0, "ldmatrix.x1", 2),
    (f16, row_major(8, 16), local(1, 2) * COLUMNS, 0, "ldmatrix.x2.trans", 4),
    (f16, row_major(16, 8).permute(1, 0), local(1, 2) * COLUMNS, 0, "ldmatrix.x2", 4),
    (f16, row_major(16, 8).permute(1, 0), local(1, 2) * ROWS, 0, "ldmatrix.x2.trans", 4),
    (f16, row_major(16, 16), local(2, 1) * ROWS, 8, "ldmatrix.x2", 4),
    (f16, row_major(16, 12), local(2, 1) * ROWS, 4, "ld.shared", 2),  # rows are not aligned to 16 bytes
    (f16, row_major(16, 64), local(16, 2) * spatial(1, 32), 0, "ld.shared", 1),
    (u8, row_major(8, 16), BYTES, 0, "ldmatrix.x1", 4),
    (u8, row_major(16, 8), BYTES.permute(1, 0), 0, "ld.shared", 1),  # only 16-bit matrices are transposed
    (u32, row_major(8, 4), spatial(8, 4), 0, "ldmatrix.x1", 1),
    (f32, row_major(16, 8), local(2, 2) * spatial(8, 4), 0, "ldmatrix.x4", 4),
]


@pytest.mark.parametrize(("dtype", "shared", "register", "offset", "atom", "width"), MATRIX_LOADS)
def test_ldmatrix_where_fragments_and_rows_fit(
    dtype: DataType, shared: SharedLayout, register: RegisterLayout, offset: int, atom: str, width: int
) -> None:
    (selected,) = selections(shared_round_trip(dtype, shared, register, offset), LoadShared)
    assert (selected.atom, selected.width) == (atom, width)


def test_bank_conflicts_are_counted() -> None:
    (bad,) = selections(shared_round_trip(f16, row_major(16, 64), local(2, 8) * ROWS), LoadShared)
    assert bad.note == "112 bank conflicts"  # 16 matrices of 8 rows, all rows of a matrix in the same banks
    (good,) = selections(shared_round_trip(f16, None, local(2, 8) * ROWS), LoadShared)
    assert good.note == "0 bank conflicts"


def test_runs_of_shared_layouts_are_measured() -> None:
    assert contiguous_run(row_major(8, 24), 1) == 8
    assert contiguous_run(row_major(8, 24), 0) == 1
    assert contiguous_run(row_major(8, 64).swizzled(3, 3, 3), 1) == 8
    assert contiguous_run(row_major(8, 20), 1) == 4
    table = offset_table(row_major(8, 64).swizzled(3, 3, 3))
    assert (np.diff(table.reshape(8, 8, 8), axis=2) == 1).all()


# --- registers ------------------------------------------------------------------------------------------------------


def test_conversions_name_their_way() -> None:
    kinds = [s.atom for s in selections(chained(), ConvertLayout)]
    assert kinds == ["shared"]
    b = Builder("shuffled")
    _, gx = matrix(b, "x", f32, const(8), const(8))
    tile = b.inst(LoadGlobal(gx, (ZERO, ZERO), (8, 8), (0, 1)), "tile", layout=local(2, 1) * spatial(4, 8))
    other = b.inst(ConvertLayout(tile, spatial(4, 8) * local(2, 1)), "other")
    same = b.inst(ConvertLayout(other, spatial(4, 8) * local(2, 1)), "same")
    b.inst(StoreGlobal(gx, same, (ZERO, ZERO), (0, 1)))
    assert [s.atom for s in selections(b.program(), ConvertLayout)] == ["shuffle", "none"]


def test_packed_weights_are_read_in_16_bytes() -> None:
    fragment = local(1, 4) * spatial(4, 1) * column_local(2, 2) * spatial(8, 4) * local(1, 2)
    program = quantized(spatial(128) * local(16), fragment)
    weight, x = selections(program, LoadGlobal)
    assert (weight.width, weight.unmasked) == (16, (0,))
    assert x.width == 2
    assert not selections(program, ConvertLayout)
    (dot,) = selections(program, Dot)
    assert dot.atom.startswith("mma")
