"""Lowering keeps the meaning: programs run on the reference machine before and after every pass, on random input.

The machine also checks what the lowered program claims: widths, bounds, races between barriers, replicas that agree.
Inputs are small integers, so that sums in any order are exact and results must be equal, not close.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.agreement.machines import examples
from tests.passes.programs import ZERO, chained, matmul, matrix, quantized, softmax, vector_add
from tilus import vm
from tilus.dtypes import f16, f32
from tilus.ir.builder import Builder, op
from tilus.ir.expr import Expr, Tensor, const
from tilus.ir.instructions import (
    AllocShared,
    Cast,
    CommitGroup,
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
    WaitGroup,
)
from tilus.ir.printer import to_text
from tilus.ir.program import Program
from tilus.ir.target import TARGETS
from tilus.ir.types import SharedType
from tilus.layouts import column_local, local, spatial
from tilus.passes.pipeline import lower
from tilus.passes.tensors import register_type

Arrays = list[np.ndarray[Any, Any] | int]


def random_arrays(shapes: list[tuple[tuple[int, ...], str]], seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return [rng.integers(-3, 4, shape).astype(kind) for shape, kind in shapes]


def outputs(program: Program, args: Arrays) -> list[np.ndarray[Any, Any]]:
    """Run a program on copies of its arguments and return the arrays afterwards."""
    copies = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
    vm.run(program, copies)
    return [a for a in copies if isinstance(a, np.ndarray)]


def check(program: Program, args: Arrays, target: str) -> list[np.ndarray[Any, Any]]:
    """Run a program after each pass; all results must be those of the program as written."""
    expected = outputs(program, args)
    given = [a for a in args if isinstance(a, np.ndarray)]
    assert any((a != b).any() for a, b in zip(expected, given, strict=True)), "the program wrote nothing"
    previous = [program]

    def hook(step: str, after: Program) -> None:
        if after is not previous[-1]:
            for wanted, got in zip(expected, outputs(after, args), strict=True):
                np.testing.assert_array_equal(got, wanted, err_msg=f"after {step}")
        previous.append(after)

    lower(program, TARGETS[target], hook=hook)
    return expected


ALL = pytest.mark.parametrize("target", ["sm_80", "cpu", "vm"])


@ALL
@pytest.mark.parametrize("n", [1, 1000, 2048, 3000])
def test_vector_add(n: int, target: str) -> None:
    args = [*random_arrays([((n,), "f4")] * 3), n]
    *_, z = check(vector_add(), args, target)
    np.testing.assert_array_equal(z, args[0] + args[1])


@ALL
def test_vector_add_with_wide_accesses(target: str) -> None:
    check(vector_add(16), [*random_arrays([((3008,), "f4")] * 3), 3008], target)


@ALL
@pytest.mark.parametrize("rows", [1, 8])
def test_softmax(rows: int, target: str) -> None:
    m, n = 11, 200
    program = softmax(rows=rows)
    (x,) = random_arrays([((m, n), "f2")])
    args = [m, n, x, np.zeros((m, n), np.float16)]
    wanted = np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(axis=1, keepdims=True)

    def close(after: Program) -> None:
        got = outputs(after, args)[1].astype(np.float64)
        np.testing.assert_allclose(got, wanted, rtol=2**-10, atol=2**-20)

    close(program)
    close(lower(program, TARGETS[target]))


@ALL
@pytest.mark.parametrize("shape", [(32, 32, 32), (40, 24, 72), (8, 8, 0)])
def test_pipelined_matmul(shape: tuple[int, int, int], target: str) -> None:
    m, n, k = shape
    a, b = random_arrays([((m, k), "f2"), ((k, n), "f2")])
    args = [m, n, k, a, b, np.full((m, n), 7, np.float16)]
    *_, c = check(matmul(32, 32, 16), args, target)
    np.testing.assert_array_equal(c, (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float16))


@ALL
def test_ragged_matmul(target: str) -> None:
    m, n, k = 17, 5, 33
    a, b = random_arrays([((m, k), "f2"), ((k, n), "f2")])
    *_, c = check(matmul(16, 8, 16, multiple=1, warps=2), [m, n, k, a, b, np.full((m, n), 7, np.float16)], target)
    np.testing.assert_array_equal(c, (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float16))


@ALL
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("dtype", [f16, f32])
def test_chained_products(dtype: Any, same: bool, target: str) -> None:
    n = 32
    kind = "f2" if dtype == f16 else "f4"
    a, b = random_arrays([((n, n), kind)] * 2)
    a, b = np.sign(a).astype(kind), np.sign(b).astype(kind)
    *_, c = check(chained(n, dtype, same), [a, b, np.full((n, n), 7, kind)], target)
    first = a.astype(np.float64) @ (a if same else b)
    np.testing.assert_array_equal(c, (first @ b).astype(kind))


FRAGMENTS = {
    "sm_80": (spatial(128) * local(8), local(1, 2) * spatial(4, 1) * column_local(2, 2) * spatial(8, 4) * local(1, 2)),
    "cpu": (spatial(8) * local(32), local(4, 16) * spatial(1, 8)),
}


@pytest.mark.parametrize("target", FRAGMENTS)
def test_packed_weights(target: str) -> None:
    bytes_layout, fragment = FRAGMENTS[target]
    program = quantized(bytes_layout, fragment, warps=4 if target == "sm_80" else 1)
    packed = np.random.default_rng(1).integers(0, 256, bytes_layout.shape, dtype=np.uint8)
    (x,) = random_arrays([((8, fragment.shape[1]), "f2")])
    *_, y = check(program, [packed, x, np.zeros((fragment.shape[0], 8), np.float32)], target)
    weights = np.zeros(fragment.shape)
    for thread in range(fragment.num_threads):
        for i in range(fragment.local_size):
            byte = packed[bytes_layout(thread, i // 2)[0]]
            weights[fragment(thread, i)] = byte >> 4 if i % 2 else byte & 15
    np.testing.assert_array_equal(y, weights @ x.T.astype(np.float64))


# --- random programs ------------------------------------------------------------------------------------------------


@dataclass
class Generator:
    """Draws a program over f32 tiles whose values stay small integers."""

    draw: st.DrawFn
    builder: Builder = field(default_factory=lambda: Builder("random"))
    tiles: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        _, self.source = matrix(self.builder, "x", f32, const(40), const(24))
        self.out = self.builder.pointer("y", f32, 16)
        self.written = 0

    def shape(self, tile: Tensor) -> tuple[int, ...]:
        return register_type(tile).shape

    def pick(self) -> Tensor:
        return self.draw(st.sampled_from(self.tiles))

    def load(self) -> Tensor:
        shape = self.draw(st.sampled_from([(8, 8), (16, 8), (8, 16), (16, 16), (1, 16), (16, 1)]))
        offset = const(self.draw(st.sampled_from([0, 3, 8, 30]))), const(self.draw(st.sampled_from([0, 2, 8, 20])))
        return self.builder.inst(LoadGlobal(self.source, offset, shape, (0, 1)), "loaded")

    def clipped(self, x: Tensor) -> Tensor:
        low = self.builder.inst(Elementwise("max", (x, const(-4.0, f32))))
        return self.builder.inst(Elementwise("min", (low, const(4.0, f32))), "clipped")

    def elementwise(self) -> Tensor:
        x = self.pick()
        alike = [t for t in self.tiles if self.fits(self.shape(t), self.shape(x))]
        y: Tensor | Expr = self.draw(st.sampled_from([*alike, const(2.0, f32)]))
        return self.clipped(self.builder.inst(Elementwise(self.draw(st.sampled_from(["add", "sub", "max"])), (x, y))))

    def fits(self, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return len(a) == len(b) and all(m in (1, n) or n == 1 for m, n in zip(a, b, strict=True))

    def reshaped(self) -> Tensor:
        x = self.pick()
        rows, columns = self.shape(x)
        match self.draw(st.sampled_from(["transpose", "reshape", "slice", "reduce"])):
            case "transpose":
                return self.builder.inst(Transpose(x, (1, 0)), "turned")
            case "reshape":
                p = self.draw(st.sampled_from([p for p in (1, 2, 4, 8, 16) if rows * columns % p == 0]))
                return self.builder.inst(Reshape(x, (p, rows * columns // p)), "reshaped")
            case "slice":
                shape = tuple(self.draw(st.integers(1, n)) for n in (rows, columns))
                offset = tuple(self.draw(st.integers(0, n - m)) for n, m in zip((rows, columns), shape, strict=True))
                return self.builder.inst(Slice(x, offset, shape), "part")
            case _:
                dim = self.draw(st.integers(0, 1))
                how = self.draw(st.sampled_from(["sum", "max", "min"]))
                return self.clipped(self.builder.inst(Reduce(x, how, dim, True), "reduced"))

    def product(self) -> Tensor:
        a = self.pick()
        m, k = self.shape(a)
        fitting = [t for t in self.tiles if self.shape(t)[0] == k]
        b = self.draw(st.sampled_from(fitting)) if fitting else self.builder.inst(Transpose(a, (1, 0)), "at")
        acc = self.builder.inst(Full(const(1.0, f32), (m, self.shape(b)[1])), "acc")
        if self.draw(st.booleans()):
            a, b = (self.builder.inst(Cast(x, f16), "half") for x in (a, b))
        return self.clipped(self.builder.inst(Dot(a, b, acc), "product"))

    def fragments(self) -> Tensor:
        """Return a product that tensor cores can do, of what was loaded or computed or has come through shared memory."""
        m, n = self.draw(st.sampled_from([16, 32])), self.draw(st.sampled_from([8, 16]))
        a, b = self.halves(m, 16), self.halves(16, n)
        acc = self.builder.inst(Full(const(1.0, f32), (m, n)), "acc")
        return self.clipped(self.builder.inst(Dot(a, b, acc), "mma"))

    def halves(self, rows: int, columns: int) -> Tensor:
        """Return an f16 tile: of one that is there if its shape fits, or from memory, by way of shared memory or not."""
        fitting = [t for t in self.tiles if self.shape(t) == (rows, columns)]
        if fitting and self.draw(st.booleans()):
            return self.builder.inst(Cast(self.draw(st.sampled_from(fitting)), f16), "half")
        loaded = self.builder.inst(LoadGlobal(self.source, (ZERO, ZERO), (rows, columns), (0, 1)), "loaded")
        x = self.builder.inst(Cast(loaded, f16), "half")
        if self.draw(st.booleans()):
            return x
        s = self.builder.inst(AllocShared(f16, (rows, columns)), "s")
        self.builder.inst(Sync())
        self.builder.inst(StoreShared(s, x, (ZERO, ZERO), (0, 1)))
        self.builder.inst(Sync())
        return self.builder.inst(LoadShared(s, (ZERO, ZERO), (rows, columns), (0, 1)), "back")

    def trip(self) -> Tensor:
        x = self.pick()
        kind = self.draw(st.sampled_from([f32, f16]))
        if kind == f16:
            x = self.builder.inst(Cast(x, f16), "half")
        s = self.builder.inst(AllocShared(kind, self.shape(x)), "s")
        self.builder.inst(Sync())  # in a loop, the last turn's readers are done
        self.builder.inst(StoreShared(s, x, (ZERO, ZERO), (0, 1)))
        self.builder.inst(Sync())
        return self.part_of(s)

    def staged(self) -> Tensor:
        shape = self.draw(st.sampled_from([(16, 16), (16, 8), (32, 16)]))
        stages = self.draw(st.integers(1, 2))
        source = const(self.draw(st.sampled_from([0, 8, 30]))), const(self.draw(st.sampled_from([0, 1, 4, 16])))
        s = self.builder.inst(AllocShared(f32, (stages, *shape)), "stages")
        self.builder.inst(Sync())
        for stage in range(stages):
            self.builder.inst(CopyAsync(s, self.source, (const(stage), ZERO, ZERO), source, shape, (1, 2), (0, 1)))
        self.builder.inst(CommitGroup())
        self.builder.inst(WaitGroup(0))
        self.builder.inst(Sync())
        stage = const(self.draw(st.integers(0, stages - 1)))
        return self.builder.inst(LoadShared(s, (stage, ZERO, ZERO), shape, (1, 2)), "landed")

    def part_of(self, s: Tensor) -> Tensor:
        """Load a part of a shared tensor; sometimes the left operand of a product with itself, for ldmatrix."""
        kind = s.type
        assert isinstance(kind, SharedType)
        rows, columns = kind.shape
        shape = (rows, self.draw(st.sampled_from([n for n in (1, 8, columns) if n <= columns])))
        offset = const(
            self.draw(st.sampled_from([n for n in (0, 1, 8, columns - shape[1]) if n + shape[1] <= columns]))
        )
        x = self.builder.inst(LoadShared(s, (ZERO, offset), shape, (0, 1)), "back")
        if kind.dtype == f32:
            return x
        if self.draw(st.booleans()):
            return self.builder.inst(Cast(x, f32), "wide")
        acc = self.builder.inst(Full(const(0.0, f32), (rows, rows)), "acc")
        turned = self.builder.inst(Transpose(x, (1, 0)), "turned")
        return self.clipped(self.builder.inst(Dot(x, turned, acc), "square"))

    def loop(self) -> Tensor:
        acc = self.builder.inst(Copy(self.pick()), "acc")
        known = len(self.tiles)
        with self.builder.for_("i", 0, self.draw(st.integers(0, 3))):
            for _ in range(2):
                self.tiles.append(self.step())
            alike = [t for t in self.tiles if self.fits(self.shape(t), self.shape(acc)) and t is not acc]
            same = [t for t in alike if np.broadcast_shapes(self.shape(t), self.shape(acc)) == self.shape(acc)]
            if same:
                total = self.builder.inst(Elementwise("add", (acc, self.draw(st.sampled_from(same)))))
                self.builder.inst(Copy(self.clipped(total)), out=acc)
        del self.tiles[known:]
        return acc

    def step(self) -> Tensor:
        steps = [self.load, self.elementwise, self.reshaped, self.product, self.trip, self.staged, self.fragments]
        return self.draw(st.sampled_from(steps))()

    def store(self, tile: Tensor) -> None:
        shape = self.shape(tile)
        strides = const(shape[1]), const(1)
        offset = self.written
        rows = const(offset // shape[1] + shape[0] + 1)
        view = self.builder.inst(GlobalView(self.out, (rows, strides[0]), strides), "view")
        row = -(-offset // shape[1])
        self.builder.inst(StoreGlobal(view, tile, (const(row), ZERO), (0, 1)))
        self.written = (row + shape[0]) * shape[1]


@dataclass(frozen=True)
class Drawn:
    """A program, and how many elements it writes; shown as text."""

    program: Program
    written: int

    def __repr__(self) -> str:
        return f"\n{to_text(self.program)}\n"


@st.composite
def random_programs(draw: st.DrawFn) -> Drawn:
    g = Generator(draw)
    g.tiles += [g.load(), g.load()]
    for _ in range(draw(st.integers(1, 5))):
        g.tiles.append(g.loop() if draw(st.integers(0, 3)) == 0 else g.step())
    for tile in g.tiles[-3:]:
        g.store(tile)
    return Drawn(g.builder.program(warps=draw(st.sampled_from([1, 2, 4]))), g.written)


@examples(1)
@given(random_programs(), st.sampled_from(["sm_80", "cpu"]), st.integers(0, 3))
def test_random_programs(drawn: Drawn, target: str, seed: int) -> None:
    (x,) = random_arrays([((40, 24), "f4")], seed)
    check(drawn.program, [x, np.full(drawn.written, 99, np.float32)], target)


def test_the_comparison_can_fail() -> None:
    """A conversion that is left out, and an operator that is another one, are noticed."""
    program = chained(32, f16)
    a, b = random_arrays([((32, 32), "f2")] * 2)
    args: Arrays = [a, b, np.full((32, 32), 7, np.float16)]
    wrong = Builder("wrong")
    _, gx = matrix(wrong, "a", f16, const(32), const(32))
    for name in "bc":
        matrix(wrong, name, f16, const(32), const(32))
    tile = wrong.inst(LoadGlobal(gx, (ZERO, op("add", ZERO, 1)), (32, 32), (0, 1)))
    wrong.inst(StoreGlobal(gx, tile, (ZERO, ZERO), (0, 1)))
    assert not np.array_equal(outputs(program, args)[2], outputs(wrong.program(), args)[2])
