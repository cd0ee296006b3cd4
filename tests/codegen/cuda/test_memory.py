"""Instructions on global and shared memory, against the reference machine."""

from __future__ import annotations

import numpy as np
import pytest

from tests.agreement.machines import on_vm
from tests.codegen.cuda.build import RNG, Bench, as_buffer, codes_of, random_layout
from tests.codegen.cuda.compare import compare, lowered, run_generated
from tests.simt.library import on_simt
from tilus.dtypes import bf16, dtype, f16, f32, i32, i64, u8
from tilus.errors import CodegenError
from tilus.ir.builder import op
from tilus.ir.expr import CastExpr, const
from tilus.ir.instructions import (
    AllocShared,
    AtomicAdd,
    Cast,
    CommitGroup,
    CopyAsync,
    Full,
    GlobalView,
    LoadElement,
    LoadGlobal,
    LoadShared,
    StoreGlobal,
    StoreShared,
    Sync,
    WaitGroup,
)
from tilus.layouts import column_major, local, replicated, row_major, row_major_swizzle, shared_layout, spatial, strided

WIDTHS = ["u1", "u2", "u3", "u4", "u5", "u6", "u7", "u8", "f4e2m1", "f16", "f32", "i64", "bool"]


@pytest.mark.parametrize("name", WIDTHS)
def test_ragged_tiles(name: str) -> None:
    """Edges on all four sides, run-time extents and strides, elements of any width."""
    kind = dtype(name)
    b = Bench(warps=2)
    m, n = b.scalar("m"), b.scalar("n")
    rows, columns = 11, 21
    b.args += [rows, columns]
    x, y = b.pointer("x", kind, 16), b.pointer("y", kind, 16)
    gx = b.inst(GlobalView(x, (m, n), (n, const(1))), "gx")
    gy = b.inst(GlobalView(y, (m, n), (n, const(1))), "gy")
    for shift in ((-3, -5), (4, 8)):
        offset = (const(shift[0]), op("add", n, shift[1] - columns))
        other = 1.0 if kind.is_boolean or not kind.is_float else 0.5
        tile = b.inst(LoadGlobal(gx, offset, (8, 16), (0, 1), other), "tile")
        b.output(tile)
        b.inst(StoreGlobal(gy, tile, offset, (0, 1)))
    b.args.insert(2, as_buffer(kind, codes_of(kind, (rows * columns,))))
    b.args.insert(3, as_buffer(kind, np.zeros(rows * columns, int)))
    compare(b.done(), b.args)


@pytest.mark.parametrize("name", ["u2", "u3", "u4", "u8", "f16", "f32", "f64"])
def test_vectors_of_every_width(name: str) -> None:
    kind = dtype(name)
    b = Bench()
    for size in (1, 2, 4, 8, 16, 32):
        layout = spatial(2, 16) * local(1, size)
        b.output(b.input(kind, codes_of(kind, (2, 16 * size)), layout))
        b.output(b.input(kind, codes_of(kind, (16 * size, 2)), spatial(16, 2) * local(size, 1)))
    compare(b.done(), b.args)


def test_dimensions_and_strides() -> None:
    """Tiles along some dimensions of a view, column-major and overlapping strides, 64-bit scalars."""
    b = Bench()
    n = b.scalar("n", i64)
    b.args.append(6)
    x = b.pointer("x", f16, 16)
    b.args.append(RNG.standard_normal(5 * 6 * 64).astype(np.float16))
    view = b.inst(GlobalView(x, (const(5), n, const(64)), (const(384), const(64), const(1))), "view")
    for i in (0, 4, 7):
        b.output(b.inst(LoadGlobal(view, (const(i), op("sub", n, 3), const(8)), (4, 16), (1, 2)), "tile"))
    flipped = b.inst(GlobalView(x, (const(64), const(30)), (const(1), const(64))), "flipped")
    b.output(
        b.inst(
            LoadGlobal(flipped, (const(16), const(2)), (32, 8), (0, 1)), "column", layout=spatial(4, 8) * local(8, 1)
        )
    )
    diagonal = b.inst(GlobalView(x, (const(32), const(8)), (const(2), const(1))), "diagonal")
    b.output(b.inst(LoadGlobal(diagonal, (const(0), const(0)), (32, 8), (0, 1)), "window"))
    compare(b.done(), b.args)


def test_stores_by_replicas_and_loops_over_blocks() -> None:
    b = Bench(warps=2)
    y = b.pointer("y", f32, 16)
    b.args.append(np.zeros(3 * 2 * 8, np.float32))
    view = b.inst(GlobalView(y, (const(3), const(2), const(8)), (const(16), const(8), const(1))), "view")
    value = CastExpr(f32, op("add", op("mul", b.block_id(1), 10), b.block_id(0)))
    tile = b.inst(Full(value, (8,)), "tile", layout=replicated(8, 1) * spatial(8))
    b.inst(StoreGlobal(view, tile, (b.block_id(1), b.block_id(0), const(0)), (2,)))
    compare(b.done(grid=(2, 3)), b.args)


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "i32", "i64", "f64"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_atomic_add(name: str, arch: str) -> None:
    kind = dtype(name)
    b = Bench(warps=2)
    y = b.pointer("y", kind, 16)
    b.args.append(np.arange(21).astype(kind.numpy_dtype))
    view = b.inst(GlobalView(y, (const(3), const(7)), (const(7), const(1))), "view")
    tile = b.inst(Full(const(2 if kind.is_integer else 2.0, kind), (4, 8)), "tile")
    b.inst(AtomicAdd(view, tile, (b.block_id(0), const(-1)), (0, 1)))
    program = b.done(grid=(3,))
    compare(program, b.args, arch)
    found, report = on_simt(program, b.args, arch)
    assert report.ok, str(report)
    np.testing.assert_array_equal(found[0], on_vm(program, b.args)[0])


def test_atomic_add_of_a_type_without_one() -> None:
    b = Bench()
    y = b.pointer("y", u8)
    view = b.inst(GlobalView(y, (const(32),), (const(1),)), "view")
    b.inst(AtomicAdd(view, b.inst(Full(const(1, u8), (32,)), "tile"), (const(0),), (0,)))
    with pytest.raises(CodegenError, match="no atomic addition of u8 on sm_80") as caught:
        lowered(b.done())
    assert "cast the tile" in str(caught.value)


@pytest.mark.parametrize("name", ["u3", "u8", "i8", "f16", "bf16", "f32", "i64", "f64", "f6e3m2"])
def test_single_elements(name: str) -> None:
    kind = dtype(name)
    b = Bench()
    x = b.pointer("x", kind)
    b.args.append(as_buffer(kind, codes_of(kind, (40,))))
    for i in (0, 7, 38):
        value = b.inst(LoadElement(x, op("add", b.block_id(0), i)), "value")
        b.output(b.inst(Full(value, (32,)), "tile"))
    compare(b.done(), b.args)


LAYOUTS = {
    "plain": row_major(16, 64),
    "column": column_major(16, 64),
    "padded": strided((16, 64), (72, 1)),
    "swizzled": row_major_swizzle((16, 64), 2),
    "panels": row_major_swizzle((16, 128), 2),
    "modes": shared_layout((16, 64), (4, 4, 2, 32), (32, 512, 128, 1)),
    "three": shared_layout((12, 48), (3, 4, 3, 16), (256, 16, 768, 1)),
}


@pytest.mark.parametrize("which", LAYOUTS)
@pytest.mark.parametrize("name", ["u8", "f16", "f32", "i64"])
def test_shared_layouts(which: str, name: str) -> None:
    kind, places, rng = dtype(name), LAYOUTS[which], np.random.default_rng(3)
    b = Bench(warps=2)
    rows, columns = places.shape
    i = b.scalar("i")
    b.args.append(4)
    s = b.inst(AllocShared(kind, (rows, columns)), "s", layout=places)
    x = b.input(kind, codes_of(kind, places.shape), random_layout(places.shape, 64, rng))
    b.inst(StoreShared(s, x, (const(0), const(0)), (0, 1)))
    b.inst(Sync())
    for _ in range(2):
        layout = random_layout(places.shape, 64, rng)
        b.output(b.inst(LoadShared(s, (const(0), const(0)), places.shape, (0, 1)), "all", layout=layout))
    part = (4, columns // 2)
    for offset in ((i, const(0)), (const(4), const(columns // 2)), (i, op("mul", i, 2)), (const(3), const(5))):
        b.output(b.inst(LoadShared(s, offset, part, (0, 1)), "part", layout=random_layout(part, 64, rng)))
    b.output(b.inst(LoadShared(s, (i, const(0)), (columns // 2,), (1,)), "row"))
    compare(b.done(), b.args)


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize(
    ("name", "columns", "promise"), [("f16", 64, 8), ("f16", 24, 2), ("f32", 20, 1), ("u8", 40, 4), ("f16", 33, 1)]
)
def test_asynchronous_copies(name: str, columns: int, promise: int, stages: int) -> None:
    """16, 8, 4 bytes and through registers; rows and columns beyond the view become zeros."""
    kind = dtype(name)
    b = Bench(warps=2)
    n = b.scalar("n", i32, promise)
    width = columns - columns % promise
    x = b.pointer("x", kind, 16)
    b.args += [width, as_buffer(kind, codes_of(kind, (13 * width,)))]
    view = b.inst(GlobalView(x, (const(13), n), (n, const(1))), "view")
    s = b.inst(AllocShared(kind, (stages, 8, 64)), "s")
    for stage in range(stages):
        b.inst(
            CopyAsync(
                s, view, (const(stage), const(0), const(0)), (const(stage * 4), const(0)), (8, 64), (1, 2), (0, 1)
            )
        )
        b.inst(CommitGroup())
    for stage in range(stages):
        b.inst(WaitGroup(stages - 1 - stage))
        b.inst(Sync())
        b.output(b.inst(LoadShared(s, (const(stage), const(0), const(0)), (8, 64), (1, 2)), "tile"))
    compare(b.done(), b.args)


def test_asynchronous_copies_are_asynchronous() -> None:
    """The shim delivers at the wait: without one the shared tensor is garbage."""
    b = Bench()
    x = b.pointer("x", f32, 16)
    b.args.append(np.ones(128, np.float32))
    view = b.inst(GlobalView(x, (const(128),), (const(1),)), "view")
    s = b.inst(AllocShared(f32, (128,)), "s")
    b.inst(CopyAsync(s, view, (const(0),), (const(0),), (128,), (0,), (0,)))
    b.inst(CommitGroup())
    b.inst(Sync())
    b.output(b.inst(LoadShared(s, (const(0),), (128,), (0,)), "tile"))
    run_generated(b.done(), b.args)
    assert (b.args[1].view(np.uint8) == 0xA5).all()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", [f16, bf16], ids=str)
def test_matrix_loads(kind, transposed: bool) -> None:
    """`ldmatrix` of fragments of both operands, swizzled and not, at offsets."""
    b = Bench(warps=2)
    i = b.scalar("i", i32, 16)
    b.args.append(16)
    shape = (64, 64)
    found = 0
    for places in (row_major_swizzle(shape, 2), row_major(*shape), strided(shape, (72, 1))):
        s = b.inst(AllocShared(kind, shape), "s", layout=places)
        b.inst(StoreShared(s, b.input(kind, codes_of(kind, shape)), (const(0), const(0)), (0, 1)))
        b.inst(Sync())
        plain = spatial(2, 1) * local(1, 2) * spatial(8, 4) * local(1, 2)
        stacked = spatial(1, 2) * local(2, 1) * local(2, 1) * spatial(8, 4) * local(1, 2)
        for layout in (plain, stacked):
            layout = layout.permute(1, 0) if transposed else layout
            for offset in ((const(0), const(0)), (i, const(32)), (const(16), i)):
                b.output(b.inst(LoadShared(s, offset, layout.shape, (0, 1)), "tile", layout=layout))
    program = b.done()
    found = lowered(program)[1].text.count("ptx_ldmatrix") - 3
    assert found >= 9, "selection has not chosen ldmatrix"
    compare(program, b.args)


def test_elements_that_are_no_bit_stream() -> None:
    b = Bench()
    x = b.pointer("x", dtype("t1.6"))
    view = b.inst(GlobalView(x, (const(32),), (const(1),)), "view")
    tile = b.inst(LoadGlobal(view, (const(0),), (32,), (0,)), "tile")
    b.output(b.inst(Cast(tile, f32), "wide"))
    with pytest.raises(CodegenError, match=r"t1\.6 elements are no stream of bits"):
        lowered(b.done())
