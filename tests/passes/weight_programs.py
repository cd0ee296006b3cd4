"""Random programs around weights: what `absorb_casts` takes apart, and everything near it that it must not.

Codes become weights by casts, copies, slices, constants and zero points; weights make products, which are scaled, added
up and stored. All of it stands in loops and branches, anything may be defined again, and anything may have a second
use. Numbers are small and the activations few, so that partial sums are exact in f32 whatever their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tilus.casts import best_unpacking
from tilus.dtypes import DataType, bf16, dtype, f16, f32, i32, u8, u32
from tilus.ir.builder import Builder, op
from tilus.ir.expr import Expr, Tensor, const
from tilus.ir.instructions import (
    Cast,
    Copy,
    Dot,
    Elementwise,
    Full,
    GlobalView,
    Instruction,
    LoadGlobal,
    Slice,
    StoreGlobal,
    View,
    result_type,
)
from tilus.ir.printer import to_text
from tilus.ir.program import Program
from tilus.layouts import BitLayout, local
from tilus.runtime.weights.packing import FRAGMENT, PackLayout

ROWS, COLUMNS = 16, 8
TILES = 2  # of words and of zero points in memory: definitions and turns of loops choose among them
OUTPUTS = 12
LIMIT = 2.0**12  # sums are clipped to it
NAMES = (
    "u1",
    "u2",
    "u3",
    "u4",
    "i4",
    "u5",
    "i7",
    "u8",
    "u8",
    "i8",
    "f4e2m1",
    "f6e3m2",
    "t2",
    "nf4",
)  # u8 alone is subnormal in f16
ODD = {  # orders that no search found: codes in pieces, in lanes of a byte, of the sign that they have
    "u4": BitLayout(4, 16, "abcdabcdabcdabcd"),
    "u2": BitLayout(2, 8, "ddccbbaa"),
    "i4": BitLayout(4, 16, "ddddccccbbbbaaaa"),
    "u8": BitLayout(8, 16, "babababababababa"),
    "i8": BitLayout(8, 16, "bbbbbbbbaaaaaaaa"),
    "nf4": BitLayout(4, 16, "ddddccccbbbbaaaa"),
}


@cache
def packs_of(name: str) -> list[PackLayout]:
    """Return tiles of 16 rows in the orders for casts to f16 and bf16, and in odd ones; the smallest two of each."""
    kind, packs = dtype(name), []
    found = [best_unpacking(kind, dtype(to)) for to in ("f16", "bf16")]
    for bits in (*(f.bits for f in found if f), *([ODD[name]] if name in ODD else [])):
        sizes = [
            k for k in (32, 64, 128, 256) if not k // 2 % (bits.num_slots * bits.lanes) and not k * kind.nbits % 256
        ]
        for k in sizes[:2]:
            units = k // 2 // (bits.num_slots * bits.lanes)
            packs.append(PackLayout(kind, local(1, k // 16) * FRAGMENT, 4, bits.repeated(units)))
    return packs


class Draft:
    """Draws a program. A pool holds what is defined at this point; its method makes one more, or one anew."""

    def __init__(self, draw: st.DrawFn, pack: PackLayout, to: DataType) -> None:
        self.draw, self.pack, self.to, self.builder = draw, pack, to, Builder("random")
        self.k, self.places, self.done, self.spent = pack.tile[1], [const(0), const(1)], set(), set[Tensor]()
        words = pack.words.shape
        x = self.view("px", to, (self.k, COLUMNS))
        self.packed = self.view("pw", u32, (TILES * words[0], *words[1:]))
        self.column = self.view("pz", u8, (ROWS, TILES))
        self.out = self.view("py", f32, (OUTPUTS * ROWS, COLUMNS))
        self.flag = self.builder.scalar("flag")
        self.x = self.builder.inst(LoadGlobal(x, (const(0), const(0)), (self.k, COLUMNS), (0, 1)), "x")
        self.zero = self.builder.inst(Full(const(0.0, f32), (ROWS, COLUMNS)), "zero")
        pools = (self.words, self.codes, self.weights, self.bytes, self.point, self.scale, self.product, self.sum)
        self.pools: dict[Any, list[Tensor]] = {pool: [] for pool in pools}
        self.pools[self.sum].append(self.builder.inst(Copy(self.zero), "sum"))

    def view(self, name: str, kind: DataType, shape: tuple[int, ...]) -> Tensor:
        strides = (const(int(np.prod(shape[i + 1 :]))) for i in range(len(shape)))
        return self.builder.inst(GlobalView(self.builder.pointer(name, kind), tuple(map(const, shape)), tuple(strides)))

    # --- drawing ----------------------------------------------------------------------------------------------------

    def pick(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def chance(self, one_in: int) -> bool:
        return self.draw(st.integers(1, one_in)) == one_in

    def at_most_once(self, what: str) -> bool:
        """Whether something that makes numbers large is done now: one more time they would not be exact."""
        fresh = what not in self.done and self.chance(3)
        self.done |= {what} if fresh else set()
        return fresh

    def of(self, pool: Any) -> Tensor:
        if not self.usable(pool):
            pool()
        return self.pick(*self.usable(pool))

    def usable(self, pool: Any) -> list[Tensor]:
        return [tile for tile in self.pools[pool] if tile not in self.spent]

    def put(self, pool: Any, inst: Instruction, layout: Any = None) -> None:
        kind, made = result_type(inst), self.pools[pool]
        same = [t for t in self.usable(pool) if (t.type.dtype, t.type.shape) == (kind.dtype, kind.shape)]
        same = [t for t in same if kind.layout in (None, t.type.layout)]
        if same and self.chance(6):
            self.builder.inst(inst, out=self.pick(*same))
        else:
            made.append(self.builder.inst(inst, pool.__name__, layout=layout))

    def slice(self, x: Tensor) -> Slice:
        k = x.type.shape[1]
        start = self.pick(*range(0, k, 8))
        return Slice(x, (0, start), (ROWS, self.pick(*range(8, k - start + 1, 8))))

    # --- pools ------------------------------------------------------------------------------------------------------

    def words(self) -> None:
        shape = self.pack.words.shape
        offset = (op("mul", self.pick(*self.places), shape[0]), const(0), const(0))
        self.put(self.words, LoadGlobal(self.packed, offset, shape, (0, 1, 2)), self.pack.words)

    def codes(self) -> None:
        kinds = ("view", "view", "copy", "slice", *(["add"] if self.pack.dtype.is_integer else []))
        kind = self.pick(*kinds) if self.pools[self.codes] else "view"
        if kind == "view":
            view = View(self.of(self.words), self.pack.dtype, self.pack.fragment, self.pack.bits)
            return self.put(self.codes, view)
        x = self.of(self.codes)
        added = Elementwise("add", (x, const(1, self.pack.dtype)))
        return self.put(self.codes, {"copy": Copy(x), "slice": self.slice(x), "add": added}[kind])

    def weights(self) -> None:
        kinds = ("cast", "cast", "copy", "slice", "constant", "constant", "point", "point", "scaled")
        kind = self.pick(*kinds) if self.pools[self.weights] else "cast"
        if kind == "cast":
            codes = self.of(self.codes)
            through = self.builder.inst(Cast(codes, self.pick(f16, bf16, f32, i32))) if self.chance(6) else codes
            return self.put(self.weights, Cast(through, self.to))
        x, how = self.of(self.weights), self.pick("sub", "sub", "add")
        if kind == "constant":
            large = (1500.0, -1000.0, 4001.0, 200.0) if self.at_most_once("large") else (8.0, -4.0, 0.5)
            return self.put(self.weights, Elementwise(how, (x, const(self.pick(*large), self.to))))
        if kind == "point" or (kind == "scaled" and self.at_most_once("scaled")):
            return self.put(self.weights, Elementwise("mul" if kind == "scaled" else how, (x, self.of(self.point))))
        return self.put(self.weights, self.slice(x) if kind == "slice" else Copy(x))

    def bytes(self) -> None:
        self.put(self.bytes, LoadGlobal(self.column, (const(0), self.pick(*self.places)), (ROWS, 1), (0, 1)))

    def point(self) -> None:
        plain = self.chance(4)
        self.put(self.point, Full(const(0.25, self.to), (ROWS, 1)) if plain else Cast(self.of(self.bytes), self.to))

    def scale(self) -> None:
        shape = self.pick((ROWS, 1), (1, COLUMNS), (ROWS, COLUMNS))
        self.put(self.scale, Cast(self.of(self.bytes), f32) if self.chance(2) else Full(const(2.0, f32), shape))

    def product(self) -> None:
        w = self.of(self.weights)
        k = w.type.shape[1]
        start = self.pick(*range(0, self.k - k + 1, 8))
        x = self.x if k == self.k else self.builder.inst(Slice(self.x, (start, 0), (k, COLUMNS)))
        c = self.pick(self.zero, self.zero, self.of(self.sum), *self.usable(self.product))
        self.put(self.product, Dot(w, x, c))

    def sum(self) -> None:
        """Define a sum, or multiply a product in its place."""
        y, kind = self.of(self.product), self.pick("scaled", "scaled", "added", self.weights, self.codes)
        if kind == "scaled":
            scale = self.pick(self.of(self.scale), self.of(self.scale), const(0.5, f32))
            inst = Elementwise("mul", self.pick((y, scale), (y, scale), (scale, y)))
            if self.chance(2):
                self.spent.add(y)  # its only use, then, may be that it is scaled
            if self.at_most_once("in place"):
                self.builder.inst(inst, out=y)
                return
        else:
            if kind != "added":
                part = self.builder.inst(Slice(self.of(kind), (0, 0), (ROWS, COLUMNS)))
                y = self.builder.inst(Cast(part, f32))
            inst = Elementwise("add", (self.of(self.sum), y))
        raw = self.builder.inst(inst)
        low = self.builder.inst(Elementwise("max", (raw, const(-LIMIT, f32))))
        self.put(self.sum, Elementwise("min", (low, const(LIMIT, f32))))

    # --- programs ---------------------------------------------------------------------------------------------------

    def body(self, depth: int) -> None:
        for _ in range(self.draw(st.integers(2, 5))):
            kinds = ["loop", "branch"] if depth else []
            kind = self.pick(
                self.words, self.codes, self.weights, self.product, self.product, self.sum, self.sum, *kinds
            )
            if kind == "loop":
                with self.builder.for_("i", 0, TILES) as i, self.scope(i):
                    self.body(depth - 1)
            elif kind == "branch":
                index = self.pick(self.flag, *self.places)
                with self.builder.if_(op("lt", index, 1)), self.scope():
                    self.body(depth - 1)
            else:
                kind()

    @contextmanager
    def scope(self, *places: Expr) -> Iterator[None]:
        """What is defined inside may not be defined behind."""
        sizes = {pool: len(made) for pool, made in self.pools.items()}
        self.places += places
        yield
        if self.chance(2):
            self.sum()
        del self.places[len(self.places) - len(places) :]
        for pool, size in sizes.items():
            del self.pools[pool][size:]

    def program(self) -> Program:
        self.body(2)
        self.product()
        results = [*reversed(self.usable(self.product)), *self.pools[self.sum]][:OUTPUTS]
        for i, tile in enumerate(results):
            self.builder.inst(StoreGlobal(self.out, tile, (const(i * ROWS), const(0)), (0, 1)))
        return self.builder.program(grid=(const(1),), warps=1)


class Case:
    """A program, the order of its weights, the type of its activations, and the seed of its arguments."""

    def __init__(self, program: Program, pack: PackLayout, to: DataType, seed: int) -> None:
        self.program, self.pack, self.to, self.seed = program, pack, to, seed

    def __repr__(self) -> str:
        return f"seed {self.seed}\n{to_text(self.program)}"

    def arguments(self) -> list[Any]:
        """Return arrays of small numbers: 8 activations of a column are not 0, codes are whole quarters."""
        rng, kind, (rows, k) = np.random.default_rng(self.seed), self.pack.dtype, self.pack.tile
        values = kind.decode(np.arange(kind.num_codes))
        usable = np.flatnonzero((np.abs(values) <= 256) & (values * 4 == np.round(values * 4)))
        words = [self.pack.pack(rng.choice(usable, (rows, k)).astype(np.uint8)) for _ in range(TILES)]
        x = rng.permuted(np.repeat([[1.0, -1.0, 0.0]], COLUMNS, 0).repeat([4, 4, k - 8], 1), axis=1).T
        points = rng.integers(0, 4, (ROWS, TILES)).astype(np.uint8)
        y = np.zeros((OUTPUTS * ROWS, COLUMNS), np.float32)
        coded = np.ascontiguousarray(self.to.encode(x)).view(self.to.numpy_dtype)
        return [coded, np.concatenate(words), points, y, self.seed % 2]


@st.composite
def weight_programs(draw: st.DrawFn) -> Case:
    """Draw a program and what it is run on."""
    pack = draw(st.sampled_from(packs_of(draw(st.sampled_from(NAMES)))))
    to = draw(st.sampled_from((f16, bf16)))
    return Case(Draft(draw, pack, to).program(), pack, to, draw(st.integers(0, 3)))
