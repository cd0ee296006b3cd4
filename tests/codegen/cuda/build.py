"""Small programs around one or a few instructions, and data for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.random_data import generator
from tilus.dtypes import DataType, Float
from tilus.ir.builder import Builder
from tilus.ir.expr import Tensor, const
from tilus.ir.instructions import GlobalView, LoadGlobal, StoreGlobal
from tilus.ir.program import Program
from tilus.layouts import RegisterLayout, Replicated, register_layout

RNG = generator(7)


def as_buffer(kind: DataType, codes: np.ndarray) -> np.ndarray:
    """Return the array that a pointer to `kind` takes."""
    codes = np.asarray(codes, kind.code_dtype)
    return kind.pack(codes) if kind.nbits < 8 else codes.reshape(-1).view(kind.numpy_dtype or kind.code_dtype)


def codes_of(kind: DataType, shape: Sequence[int], *, specials: bool = True) -> np.ndarray:
    """Return random codes; without `specials` finite numbers near 1, and no zero."""
    if kind.is_boolean:
        return RNG.integers(0, 2, shape).astype(np.uint8)
    if kind.is_float and (kind.nbits > 8 or not specials):
        values = RNG.standard_normal(shape) * 4
        if specials:
            values = np.where(RNG.random(shape) < 0.05, RNG.choice([0.0, -0.0, np.inf, -np.inf, np.nan], shape), values)
        elif isinstance(kind, Float):
            values = np.where(np.abs(values) < 0.5, 0.75, values)
        return np.asarray(kind.encode(np.abs(values) if kind.name == "e8m0" else values), kind.code_dtype)
    high = min(kind.num_codes, 1 << 62)
    return RNG.integers(0 if specials else 1, high, shape).astype(kind.code_dtype)


class Bench(Builder):
    """A builder with inputs and outputs in buffers of their own."""

    def __init__(self, warps: int = 1) -> None:
        super().__init__("bench")
        self.warps = warps
        self.args: list[Any] = []

    def whole(self, name: str, kind: DataType, shape: Sequence[int]) -> tuple[Tensor, tuple, tuple]:
        """Return a row-major view of a new buffer, and offset and dims of an access to all of it."""
        strides = [int(np.prod(shape[d + 1 :])) for d in range(len(shape))]
        pointer = self.pointer(name, kind, 16)
        view = self.inst(GlobalView(pointer, tuple(map(const, shape)), tuple(map(const, strides))), f"g_{name}")
        return view, tuple(const(0) for _ in shape), tuple(range(len(shape)))

    def input(self, kind: DataType, codes: np.ndarray, layout: RegisterLayout | None = None, name: str = "x") -> Tensor:
        """Load a whole buffer of codes."""
        view, offset, dims = self.whole(f"{name}{len(self.args)}", kind, codes.shape)
        self.args.append(as_buffer(kind, codes))
        return self.inst(LoadGlobal(view, offset, codes.shape, dims), f"t{len(self.args)}", layout=layout)

    def output(self, tile: Tensor) -> None:
        """Store a tile to a new buffer, which holds ones before."""
        kind, shape = tile.type.dtype, tile.type.shape
        view, offset, dims = self.whole(f"y{len(self.args)}", kind, shape)
        size = -(-int(np.prod(shape)) * kind.nbits // 8)
        ones = np.full(size, 255, np.uint8)
        self.args.append(ones if kind.nbits < 8 else ones.view(kind.numpy_dtype or kind.code_dtype))
        self.inst(StoreGlobal(view, tile, offset, dims))

    def done(self, grid: Sequence[Any] = (1,)) -> Program:
        """Return the program."""
        return self.program(grid=grid, warps=self.warps)


Build = Callable[..., Any]


def random_layout(shape: Sequence[int], threads: int, rng: np.random.Generator) -> RegisterLayout:
    """Return a layout in which any prime factor of any extent may go to threads or locals, in any order."""
    modes, names = [], []
    for dim, extent in enumerate(shape):
        for prime in (2, 3, 5, 7):
            while extent % prime == 0:
                names.append((dim, len(modes)))
                modes.append((dim, prime))
                extent //= prime
    rest, chosen, kept = threads, [], []
    for number in rng.permutation(len(modes)):
        size = modes[number][1]
        if rest % size == 0 and rng.random() < 0.8:
            rest //= size
            chosen.append(int(number))
        else:
            kept.append(int(number))
    thread_modes: list[Any] = list(chosen)
    for prime in (2, 3):
        while rest % prime == 0 and rest > 1:
            rest //= prime
            thread_modes.insert(int(rng.integers(0, len(thread_modes) + 1)), Replicated(prime))
    assert rest == 1
    return register_layout(shape, [size for _, size in modes], thread_modes, kept)
