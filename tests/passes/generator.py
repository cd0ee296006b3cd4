"""Random programs of larger tiles: products that tensor cores do, staged copies, layouts, masks.

Tiles are f32 that stay small integers, so that sums in any order are exact: what differs is wrong. The two blocks read
other elements and write disjoint parts of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.passes.programs import ZERO
from tilus.dtypes import DataType, bf16, dtype, f16, f32, i8, i32, u8
from tilus.ir.builder import Builder, op
from tilus.ir.expr import BlockId, Expr, Tensor, Var, const
from tilus.ir.instructions import (
    AllocShared,
    Cast,
    CommitGroup,
    ConvertLayout,
    Copy,
    CopyAsync,
    Dot,
    Elementwise,
    Full,
    GlobalView,
    LoadGlobal,
    LoadShared,
    Reduce,
    Reshape,
    Slice,
    StoreGlobal,
    StoreShared,
    Sync,
    Transpose,
    View,
    WaitGroup,
)
from tilus.ir.program import Program
from tilus.ir.target import TARGETS, Target
from tilus.ir.types import SharedType
from tilus.layouts import RegisterLayout, Replicated, column_local, local, register_layout, spatial
from tilus.passes.tensors import register_type

BLOCKS = 2
ROWS, COLUMNS = 40, 24  # of the inputs: no multiples of 16, so that tiles stick out
CODES = 1 << 13  # bytes
HALF = 1 << 13  # elements of the output that a block may write
SOURCES = (f32, f16, bf16, i8)
CODED = tuple(map(dtype, ("u1", "u2", "i3", "u4", "i4", "u5", "i6", "u8")))


def layouts(draw: st.DrawFn, shape: Sequence[int], threads: int, *, replicas: bool = True) -> RegisterLayout:
    """Draw a layout of a shape: prime modes in any order, threads that hold the same where modes do not fill them."""
    modes = [(dim, p) for dim, extent in enumerate(shape) for p in primes(extent)]
    order, left = draw(st.permutations(range(len(modes)))), threads
    over: list[int | Replicated] = []
    for mode in order:
        if left % modes[mode][1] == 0 and (not replicas or draw(st.integers(0, 3))):
            over.append(mode)
            left //= modes[mode][1]
    inside = [mode for mode in order if mode not in over]
    if left > 1:
        over.insert(draw(st.integers(0, len(over))), Replicated(left))
    return register_layout(shape, [size for _, size in modes], over, inside)


def primes(n: int) -> tuple[int, ...]:
    for p in range(2, n + 1):
        if n % p == 0:
            return (p, *primes(n // p))
    return ()


@dataclass
class Generator:
    """Draws a program."""

    draw: st.DrawFn
    machine: Target
    portable: bool = False  # names no layouts
    builder: Builder = field(default_factory=lambda: Builder("random"))
    tiles: list[Tensor] = field(default_factory=list)
    written: int = 0

    def __post_init__(self) -> None:
        self.warps = self.pick([1, 2, 4])
        self.threads = self.machine.num_threads(self.warps)
        align = self.pick([4, 16])
        pointers = {d: self.builder.pointer(f"in_{d}", d, align) for d in (*SOURCES, u8)}
        self.out = self.builder.pointer("y", f32, align)
        extents: list[Expr] = [self.builder.scalar("m", i32, 8), self.builder.scalar("n", i32, self.pick([1, 8]))]
        if self.pick([True, False]):
            extents = [const(ROWS), const(COLUMNS)]
        self.views = {d: self.view(pointers[d], *extents) for d in SOURCES}
        self.codes = self.builder.inst(GlobalView(pointers[u8], (const(CODES),), (const(1),)), "codes")

    def view(self, pointer: Var, rows: Expr, columns: Expr) -> Tensor:
        return self.builder.inst(GlobalView(pointer, (rows, columns), (columns, const(1))), "view")

    # --- drawing ----------------------------------------------------------------------------------------------------

    def pick(self, values: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(values))

    def tile(self) -> Tensor:
        return self.pick(self.tiles)

    def shape(self, tile: Tensor) -> tuple[int, ...]:
        return register_type(tile).shape

    def layout(self, shape: Sequence[int]) -> RegisterLayout | None:
        """Return a layout that the program names, or nothing: most programs leave it to the compiler."""
        wanted = not self.portable and self.pick([False, False, True])
        return layouts(self.draw, shape, self.threads) if wanted else None

    def offset(self, *choices: Sequence[int]) -> tuple[Expr, ...]:
        """Return offsets, the same in both blocks or not."""
        firsts = [const(self.pick(c)) for c in choices]
        return tuple(op("add", op("mul", BlockId(0), const(8)), f) if self.pick([False, True]) else f for f in firsts)

    # --- steps ------------------------------------------------------------------------------------------------------

    def load(self) -> Tensor:
        shape = self.pick([(8, 8), (16, 8), (8, 16), (16, 16), (1, 16), (16, 1)])
        kind = self.pick([f32, f32, f16, i8])
        offset = self.offset([0, 3, 8, 30, -5], [0, 2, 8, 20, -1])
        layout = self.layout(shape)
        x = self.builder.inst(LoadGlobal(self.views[kind], offset, shape, (0, 1)), "loaded", layout=layout)
        return x if kind == f32 else self.builder.inst(Cast(x, f32), "wide")

    def clipped(self, x: Tensor) -> Tensor:
        low = self.builder.inst(Elementwise("max", (x, const(-4.0, f32))))
        return self.builder.inst(Elementwise("min", (low, const(4.0, f32))), "clipped")

    def elementwise(self) -> Tensor:
        x = self.tile()
        alike = [t for t in self.tiles if self.fits(self.shape(t), self.shape(x))]
        y: Tensor | Expr = self.pick([*alike, const(2.0, f32)])
        return self.clipped(self.builder.inst(Elementwise(self.pick(["add", "sub", "max"]), (x, y))))

    def where(self) -> Tensor:
        x = self.tile()
        cond = self.builder.inst(Elementwise(self.pick(["lt", "le", "eq"]), (x, const(1.0, f32))), "cond")
        return self.builder.inst(Elementwise("where", (cond, x, const(-1.0, f32))), "chosen")

    def fits(self, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return len(a) == len(b) and all(m in (1, n) or n == 1 for m, n in zip(a, b, strict=True))

    def converted(self) -> Tensor:
        x = self.tile()
        return self.builder.inst(ConvertLayout(x, layouts(self.draw, self.shape(x), self.threads)), "converted")

    def reshaped(self) -> Tensor:
        x = self.tile()
        rows, columns = self.shape(x)
        match self.pick(["transpose", "reshape", "slice", "reduce"]):
            case "transpose":
                return self.builder.inst(Transpose(x, (1, 0)), "turned")
            case "reshape":
                p = self.pick([p for p in (1, 2, 4, 8, 16) if rows * columns % p == 0])
                return self.builder.inst(Reshape(x, (p, rows * columns // p)), "reshaped")
            case "slice":
                shape = tuple(self.draw(st.integers(1, n)) for n in (rows, columns))
                offset = tuple(self.draw(st.integers(0, n - m)) for n, m in zip((rows, columns), shape, strict=True))
                return self.builder.inst(Slice(x, offset, shape), "part")
            case _:
                dim = self.draw(st.integers(0, 1))
                return self.clipped(
                    self.builder.inst(Reduce(x, self.pick(["sum", "max", "min"]), dim, True), "reduced")
                )

    def product(self) -> Tensor:
        a = self.tile()
        k = self.shape(a)[1]
        fitting = [t for t in self.tiles if self.shape(t)[0] == k]
        b = self.pick(fitting) if fitting else self.builder.inst(Transpose(a, (1, 0)), "at")
        return self.dot(a, b, self.pick([f32, f16, bf16, i8]))

    def dot(self, a: Tensor, b: Tensor, kind: DataType) -> Tensor:
        """Return a product in a type; sums of i8 are i32."""
        wide = i32 if kind == i8 else f32
        acc = self.builder.inst(Full(const(1, wide), (self.shape(a)[0], self.shape(b)[1])), "acc")
        a, b = (x if register_type(x).dtype == kind else self.builder.inst(Cast(x, kind), "narrow") for x in (a, b))
        product = self.builder.inst(Dot(a, b, acc), "product")
        return self.clipped(product if wide == f32 else self.builder.inst(Cast(product, f32), "wide"))

    def fragments(self) -> Tensor:
        """Return a product that tensor cores can do, of what was loaded or computed or has come through shared memory."""
        m, n, kind = self.pick([16, 32]), self.pick([8, 16]), self.pick([f16, bf16])
        return self.dot(self.halves(m, 16, kind), self.halves(16, n, kind), kind)

    def halves(self, rows: int, columns: int, kind: DataType) -> Tensor:
        """Return a tile of 16 bits: of one that is there if its shape fits, or from memory, through shared memory or not."""
        fitting = [t for t in self.tiles if self.shape(t) == (rows, columns)]
        if fitting and self.pick([True, False]):
            return self.builder.inst(Cast(self.pick(fitting), kind), "half")
        source = self.pick([kind, f32])
        x = self.builder.inst(LoadGlobal(self.views[source], (ZERO, ZERO), (rows, columns), (0, 1)), "loaded")
        if source != kind:
            x = self.builder.inst(Cast(x, kind), "half")
        if self.pick([True, False]):
            return x
        s = self.builder.inst(AllocShared(kind, (rows, columns)), "s")
        self.builder.inst(Sync())
        self.builder.inst(StoreShared(s, x, (ZERO, ZERO), (0, 1)))
        self.builder.inst(Sync())
        return self.builder.inst(LoadShared(s, (ZERO, ZERO), (rows, columns), (0, 1)), "back")

    def coded(self) -> Tensor:
        """Return a product with codes: bytes in any layout, viewed in the layout of a fragment or another."""
        kind, to = self.pick(CODED), self.pick([f16, bf16])
        fragment = local(1, 2) * spatial(self.warps, 1) * column_local(2, 2) * spatial(8, 4) * local(1, 2)
        if self.machine.kind == "cpu" or self.pick([False, False, True]):
            fragment = layouts(self.draw, (self.threads // 2, 4), self.threads, replicas=False) * local(1, 8)
        vector = local(fragment.local_size * kind.nbits // 8)
        nbytes = self.threads * vector.local_size
        layout = self.pick([spatial(self.threads) * vector, vector * spatial(self.threads)])
        packed = self.builder.inst(
            LoadGlobal(self.codes, self.offset([0, 16]), (nbytes,), (0,)), "bytes", layout=layout
        )
        weight = self.builder.inst(Cast(self.builder.inst(View(packed, kind, fragment), "codes"), to), "weight")
        x = self.builder.inst(LoadGlobal(self.views[to], (ZERO, ZERO), (fragment.shape[1], 8), (0, 1)), "x")
        return self.dot(weight, x, to)

    def trip(self) -> Tensor:
        x = self.tile()
        kind = self.pick([f32, f16, i8])
        if kind != f32:
            x = self.builder.inst(Cast(x, kind), "narrow")
        s = self.builder.inst(AllocShared(kind, self.shape(x)), "s")
        self.builder.inst(Sync())  # in a loop, the last turn's readers are done
        self.builder.inst(StoreShared(s, x, (ZERO, ZERO), (0, 1)))
        self.builder.inst(Sync())
        return self.part_of(s)

    def staged(self) -> Tensor:
        shape, kind = self.pick([(16, 16), (16, 8), (32, 16)]), self.pick(SOURCES)
        stages = self.draw(st.integers(1, 2))
        source = self.offset([0, 8, 30], [0, 1, 4, 16])
        s = self.builder.inst(AllocShared(kind, (stages, *shape)), "stages")
        self.builder.inst(Sync())
        for stage in range(stages):
            self.builder.inst(CopyAsync(s, self.views[kind], (const(stage), ZERO, ZERO), source, shape, (1, 2), (0, 1)))
        self.builder.inst(CommitGroup())
        self.builder.inst(WaitGroup(0))
        self.builder.inst(Sync())
        stage = const(self.draw(st.integers(0, stages - 1)))
        x = self.builder.inst(LoadShared(s, (stage, ZERO, ZERO), shape, (1, 2)), "landed")
        return x if kind == f32 else self.builder.inst(Cast(x, f32), "wide")

    def pipelined(self) -> Tensor:
        """Return a product whose operands come in stages, some ahead of the one that is multiplied."""
        kind, stages = self.pick([f16, bf16, f32, i8]), self.draw(st.integers(2, 4))
        m, n, k = self.pick([16, 32]), self.pick([8, 16]), self.pick([8, 16])
        tiles = {"a": (m, k), "b": (k, n)}
        shared = {x: self.builder.inst(AllocShared(kind, (stages, *shape)), x) for x, shape in tiles.items()}
        self.builder.inst(Sync())

        def fetch(number: Expr) -> None:
            stage, at = op("mod", number, stages), op("mul", number, k)
            for x, source in (("a", (ZERO, at)), ("b", (at, ZERO))):
                self.builder.inst(
                    CopyAsync(shared[x], self.views[kind], (stage, ZERO, ZERO), source, tiles[x], (1, 2), (0, 1))
                )
            self.builder.inst(CommitGroup())

        for stage in range(stages - 1):
            fetch(const(stage))
        wide = i32 if kind == i8 else f32
        acc = self.builder.inst(Full(const(0, wide), (m, n)), "acc")
        with self.builder.for_("t", 0, self.draw(st.integers(1, 5)), unroll=self.pick([False, True])) as t:
            self.builder.inst(WaitGroup(stages - 2))
            self.builder.inst(Sync())
            fetch(op("add", t, stages - 1))
            stage = op("mod", t, stages)
            a, b = (
                self.builder.inst(LoadShared(shared[x], (stage, ZERO, ZERO), tiles[x], (1, 2)), x) for x in ("a", "b")
            )
            self.builder.inst(Dot(a, b, acc), out=acc)
        self.builder.inst(WaitGroup(0))
        return self.clipped(acc if wide == f32 else self.builder.inst(Cast(acc, f32), "wide"))

    def part_of(self, s: Tensor) -> Tensor:
        """Load a part of a shared tensor; sometimes the left operand of a product with itself, for ldmatrix."""
        kind = s.type
        assert isinstance(kind, SharedType)
        rows, columns = kind.shape
        shape = (rows, self.pick([n for n in (1, 8, columns) if n <= columns]))
        offset = const(self.pick([n for n in (0, 1, 8, columns - shape[1]) if n + shape[1] <= columns]))
        x = self.builder.inst(LoadShared(s, (ZERO, offset), shape, (0, 1)), "back", layout=self.layout(shape))
        if kind.dtype == f32:
            return x
        if self.pick([True, False]):
            return self.builder.inst(Cast(x, f32), "wide")
        return self.dot(x, self.builder.inst(Transpose(x, (1, 0)), "turned"), kind.dtype)

    def loop(self) -> Tensor:
        acc = self.builder.inst(Copy(self.tile()), "acc")
        known = len(self.tiles)
        with self.builder.for_("i", 0, self.draw(st.integers(0, 3)), unroll=self.pick([False, True])):
            for _ in range(2):
                self.tiles.append(self.step())
            alike = [t for t in self.tiles if self.fits(self.shape(t), self.shape(acc)) and t is not acc]
            same = [t for t in alike if np.broadcast_shapes(self.shape(t), self.shape(acc)) == self.shape(acc)]
            if same:
                total = self.builder.inst(Elementwise("add", (acc, self.pick(same))))
                self.builder.inst(Copy(self.clipped(total)), out=acc)
        del self.tiles[known:]
        return acc

    def step(self) -> Tensor:
        steps = [self.load, self.elementwise, self.where, self.reshaped, self.product, self.trip]
        steps += [self.staged, self.fragments, self.pipelined]
        steps += [] if self.portable else [self.converted, self.coded]
        return self.pick(steps)()

    def store(self, tile: Tensor) -> None:
        """Store a tile at a place of its own, in a view that may end before the tile does."""
        rows, columns = self.shape(tile)
        row = -(-self.written // columns)
        if (row + rows) * columns > HALF:
            return
        self.written = (row + rows) * columns
        shape = const(BLOCKS), const(row + rows - self.pick([0, 0, 1])), const(columns)
        view = self.builder.inst(GlobalView(self.out, shape, (const(HALF), const(columns), const(1))), "part")
        self.builder.inst(StoreGlobal(view, tile, (BlockId(0), const(row), ZERO), (1, 2)))


@st.composite
def tile_programs(draw: st.DrawFn, machine: Target = TARGETS["sm_80"], *, portable: bool = False) -> Program:
    """A program that runs without fault on `tile_arguments()`.

    Layouts in it are of the threads of a machine; with `portable` it names none.
    """
    g = Generator(draw, machine, portable)
    g.tiles += [g.load(), g.load()]
    for _ in range(draw(st.integers(1, 5))):
        g.tiles.append(g.loop() if draw(st.integers(0, 3)) == 0 else g.step())
    for tile in g.tiles[-3:]:
        g.store(tile)
    return g.builder.program(grid=(const(BLOCKS),), warps=g.warps)


def tile_arguments(seed: int = 0) -> list[Any]:
    """Buffers for the parameters of `tile_programs()`."""
    rng = np.random.default_rng(seed)
    made: list[Any] = [rng.integers(-3, 4, (ROWS, COLUMNS)).astype(d.numpy_dtype) for d in SOURCES]
    return [*made, rng.integers(0, 256, CODES, dtype=np.uint8), np.full(BLOCKS * HALF, 99, np.float32), ROWS, COLUMNS]
