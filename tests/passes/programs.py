"""Programs that the tests of passes look at: small, and made without the language's front end."""

from __future__ import annotations

from tilus.dtypes import DataType, f16, f32, i32, u4, u8
from tilus.ir.builder import Builder, op
from tilus.ir.expr import Expr, Tensor, Var, const
from tilus.ir.instructions import (
    AllocShared,
    Cast,
    CommitGroup,
    CopyAsync,
    Dot,
    Elementwise,
    Full,
    GlobalView,
    LoadGlobal,
    LoadShared,
    Reduce,
    StoreGlobal,
    Sync,
    Transpose,
    View,
    WaitGroup,
)
from tilus.ir.program import Program
from tilus.layouts import RegisterLayout

ZERO = const(0)


def cdiv(a: Expr, c: int) -> Expr:
    return op("floordiv", op("add", a, c - 1), c)


def matrix(b: Builder, name: str, dtype: DataType, rows: Expr, columns: Expr, align: int = 16) -> tuple[Var, Tensor]:
    """A pointer parameter and its row-major view."""
    ptr = b.pointer(name, dtype, align)
    return ptr, b.inst(GlobalView(ptr, (rows, columns), (columns, const(1))), f"g{name}")


def vector_add(multiple: int = 1, align: int = 16, tile: int = 1024) -> Program:
    b = Builder("vector_add")
    pointers = [b.pointer(name, f32, align) for name in "xyz"]
    n = b.scalar("n", i32, multiple)
    views = [b.inst(GlobalView(p, (n,), (const(1),)), f"g{p.name}") for p in pointers]
    start = b.let("start", op("mul", b.block_id(0), tile))
    x, y = (b.inst(LoadGlobal(v, (start,), (tile,), (0,)), "tile") for v in views[:2])
    b.inst(StoreGlobal(views[2], b.inst(Elementwise("add", (x, y)), "sum"), (start,), (0,)))
    return b.program(grid=(cdiv(n, tile),), warps=4)


def softmax(tile: int = 256, rows: int = 1) -> Program:
    b = Builder("softmax")
    m, n = b.scalar("m"), b.scalar("n", i32, 8)
    _, gx = matrix(b, "x", f16, m, n)
    _, gy = matrix(b, "y", f16, m, n)
    row = b.let("row", op("mul", b.block_id(0), rows))
    x = b.inst(LoadGlobal(gx, (row, ZERO), (rows, tile), (0, 1), float("-inf")), "x")
    wide = b.inst(Cast(x, f32), "wide")
    top = b.inst(Reduce(wide, "max", 1, True), "top")
    e = b.inst(Elementwise("exp", (b.inst(Elementwise("sub", (wide, top)), "d"),)), "e")
    total = b.inst(Reduce(e, "sum", 1, True), "total")
    y = b.inst(Cast(b.inst(Elementwise("div", (e, total)), "r"), f16), "y")
    b.inst(StoreGlobal(gy, y, (row, ZERO), (0, 1)))
    return b.program(grid=(cdiv(m, rows),), warps=4)


def matmul(
    bm: int = 64, bn: int = 64, bk: int = 32, stages: int = 3, dtype: DataType = f16, multiple: int = 8, warps: int = 4
) -> Program:
    """C = A @ B, tiles staged through shared memory by asynchronous copies."""
    b = Builder("matmul")
    m, n, k = (b.scalar(name, i32, multiple) for name in "mnk")
    _, ga = matrix(b, "a", dtype, m, k)
    _, gb = matrix(b, "b", dtype, k, n)
    _, gc = matrix(b, "c", dtype, m, n)
    row, col = b.let("row", op("mul", b.block_id(1), bm)), b.let("col", op("mul", b.block_id(0), bn))
    sa = b.inst(AllocShared(dtype, (stages, bm, bk)), "sa")
    sb = b.inst(AllocShared(dtype, (stages, bk, bn)), "sb")

    def fetch(stage: Expr, at: Expr) -> None:
        b.inst(CopyAsync(sa, ga, (stage, ZERO, ZERO), (row, at), (bm, bk), (1, 2), (0, 1)))
        b.inst(CopyAsync(sb, gb, (stage, ZERO, ZERO), (at, col), (bk, bn), (1, 2), (0, 1)))
        b.inst(CommitGroup())

    for s in range(stages - 1):
        fetch(const(s), const(s * bk))
    acc = b.inst(Full(const(0.0, f32), (bm, bn)), "acc")
    with b.for_("t", 0, cdiv(k, bk)) as t:
        b.inst(WaitGroup(stages - 2))
        b.inst(Sync())
        ahead = b.let("ahead", op("add", t, stages - 1))
        fetch(b.let("into", op("mod", ahead, stages)), op("mul", ahead, bk))
        stage = b.let("stage", op("mod", t, stages))
        x = b.inst(LoadShared(sa, (stage, ZERO, ZERO), (bm, bk), (1, 2)), "x")
        y = b.inst(LoadShared(sb, (stage, ZERO, ZERO), (bk, bn), (1, 2)), "y")
        b.inst(Dot(x, y, acc), out=acc)
    out = acc if dtype == f32 else b.inst(Cast(acc, dtype), "out")
    b.inst(StoreGlobal(gc, out, (row, col), (0, 1)))
    return b.program(grid=(cdiv(n, bn), cdiv(m, bm)), warps=warps)


def chained(n: int = 64, dtype: DataType = f16, same: bool = False, warps: int = 4) -> Program:
    """C = (A @ B) @ B, or (A @ A) @ B."""
    b = Builder("chained")
    views = [matrix(b, name, dtype, const(n), const(n))[1] for name in "abc"]
    x, y = (b.inst(LoadGlobal(v, (ZERO, ZERO), (n, n), (0, 1)), "ab"[i]) for i, v in enumerate(views[:2]))
    zero = b.inst(Full(const(0.0, f32), (n, n)), "zero")
    first = b.inst(Dot(x, x if same else y, zero), "first")
    narrow = first if dtype == f32 else b.inst(Cast(first, dtype), "narrow")
    second = b.inst(Dot(narrow, y, zero), "second")
    out = second if dtype == f32 else b.inst(Cast(second, dtype), "out")
    b.inst(StoreGlobal(views[2], out, (ZERO, ZERO), (0, 1)))
    return b.program(warps=warps)


def quantized(bytes_layout: RegisterLayout, fragment: RegisterLayout, batch: int = 8, warps: int = 4) -> Program:
    """y = W @ xT with one tile of u4 weights, which are read as bytes and viewed as fragments."""
    b = Builder("quantized")
    rows, k = fragment.shape
    nbytes = bytes_layout.shape[0]
    w = b.pointer("w", u8, 16)
    gw = b.inst(GlobalView(w, (const(nbytes),), (const(1),)), "gw")
    _, gx = matrix(b, "x", f16, const(batch), const(k))
    _, gy = matrix(b, "y", f32, const(rows), const(batch))
    packed = b.inst(LoadGlobal(gw, (ZERO,), (nbytes,), (0,)), "packed", layout=bytes_layout)
    weight = b.inst(Cast(b.inst(View(packed, u4, fragment), "codes"), f16), "weight")
    x = b.inst(LoadGlobal(gx, (ZERO, ZERO), (batch, k), (0, 1)), "x")
    zero = b.inst(Full(const(0.0, f32), (rows, batch)), "zero")
    y = b.inst(Dot(weight, b.inst(Transpose(x, (1, 0)), "xt"), zero), "y")
    b.inst(StoreGlobal(gy, y, (ZERO, ZERO), (0, 1)))
    return b.program(warps=warps)
