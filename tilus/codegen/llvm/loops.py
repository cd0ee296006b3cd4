"""Loops over the registers of large tiles.

A tile of many vectors is an array in memory (see `Context.in_memory`), and instructions on it are loops: unrolled, a
product of 64 x 64 x 32 would be thousands of instructions, and LLVM takes seconds for that. A loop counts through the
digits of the local number of the result, so the local numbers of operands are sums of digits times strides, wherever
a layout puts them; where one is not, the instruction is unrolled after all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from tilus.codegen.llvm import casts
from tilus.codegen.llvm.builder import Builder, Value, constant
from tilus.codegen.llvm.context import Context, register
from tilus.codegen.llvm.lanes import Table, moved, sources
from tilus.codegen.llvm.types import is_packed
from tilus.ir.expr import Tensor
from tilus.layouts import RegisterLayout
from tilus.layouts.bits import WORD

CHAINS = 8  # an addition takes 4 cycles, and two may begin in each


@dataclass(frozen=True, slots=True)
class Affine:
    """A number that is `base` plus a stride for every step of every counter."""

    base: int
    strides: tuple[int, ...]

    def at(self, b: Builder, counters: Sequence[Value]) -> Value:
        """Return the number for counters, an i64."""
        total = constant("i64", self.base)
        for counter, stride in zip(counters, self.strides, strict=True):
            if stride:
                total = b.op("add", total, b.op("mul", counter, stride))
        return total


def affine(numbers: Table, sizes: Sequence[int]) -> Affine | None:
    """Return numbers, one for every value of counters of these sizes, as a sum; None if they are none."""
    grid = numbers.reshape(tuple(sizes))
    base = int(grid[(0,) * grid.ndim])
    strides = tuple(int(grid.take(1, axis=d).flat[0]) - base if n > 1 else 0 for d, n in enumerate(sizes))
    steps = np.indices(grid.shape)
    total = base + sum((s * step for s, step in zip(strides, steps, strict=True)), np.zeros(grid.shape, np.int64))
    return Affine(base, strides) if (total == grid).all() else None


def sizes_of(layout: RegisterLayout) -> list[int]:
    """Return the sizes of the digits of a layout's local number."""
    return [d.size for d in layout.local_digits]


@contextmanager
def counted(b: Builder, sizes: Sequence[int]) -> Iterator[list[Value]]:
    """Count through digits around what is written inside."""
    with ExitStack() as stack:
        yield [stack.enter_context(b.loop(constant("i64", n), rare=True)) for n in sizes]


@dataclass(frozen=True, slots=True)
class Operand:
    """Elements of a tensor, one for every lane and local of a result: (lane, local) in the tensor's own layout."""

    tensor: Tensor
    lane: Table
    local: Table

    def counted(self, sizes: Sequence[int]) -> Affine | None:
        """Return the local number by the result's digits, if every lane reads its own register, the same in all."""
        places = self.own(range(self.local.shape[1]))
        return affine(np.array(places), sizes) if places else None

    def own(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Return the local numbers that go with some of the result, if in every lane they are its own; else nothing."""
        lane, local = self.lane[:, numbers], self.local[:, numbers]
        uniform = (lane == np.arange(len(lane))[:, None]).all() and (local == local[0]).all()
        return tuple(local[0].tolist()) if uniform else ()


def operand(tensor: Tensor, wanted: Table) -> Operand:
    """Return the elements of a tensor at wanted indices, (lanes, locals, rank of the tensor)."""
    return Operand(tensor, *sources(register(tensor)[1], wanted))


def define(
    c: Context,
    out: Tensor,
    operands: Sequence[Operand],
    body: Callable[..., Value],
    on_groups: Callable[..., Value | None] = lambda count, *words: None,
) -> None:
    """Define every element of `out`, as it is stored, by a function of stored elements.

    Where `out` holds parts of sums, operands that do are read as such. `on_groups` is the same function of words of
    `count` elements each (see `fields`), or returns None where there is none.
    """
    parts = out in c.parts
    read = [c.read(o.tensor, parts=parts) for o in operands]

    def element(number: int) -> Value:
        return body(
            *(moved(c.b, r, o.lane[:, number], o.local[:, number]) for r, o in zip(read, operands, strict=True))
        )

    if out in c.deferrable and out not in c.deferred:
        c.defer(
            out,
            element,
            lambda: _make(c, out, operands, element, body),
            group=lambda numbers: _group(c, operands, numbers, on_groups),
        )
    else:
        _make(c, out, operands, element, body)


def _group(
    c: Context, operands: Sequence[Operand], numbers: tuple[int, ...], on_groups: Callable[..., Value | None]
) -> Value | None:
    """Return a word of several elements, if all lanes have them in registers of their own, the same in all."""
    places = [o.own(numbers) for o in operands]
    if not all(places) or any(o.tensor.type.dtype.nbits > WORD // len(numbers) for o in operands):
        return None
    return on_groups(len(numbers), *(c.group(o.tensor, p) for o, p in zip(operands, places, strict=True)))


def _make(
    c: Context,
    out: Tensor,
    operands: Sequence[Operand],
    element: Callable[[int], Value],
    body: Callable[..., Value],
) -> None:
    """Make all elements: in a loop, where that can be, else one by one."""
    found = _loop_of(c, out, operands)
    if found is None:
        numbers = range(register(out)[1].local_size)
        if is_packed(out.type.dtype) or any(o.tensor is out for o in operands):  # all are read before any is written
            c.write(out, [element(i) for i in numbers])
        else:
            for i in numbers:
                c.put(out, i, element(i))
        return
    own, maps = found
    parts = out in c.parts
    c.make(*(o.tensor for o in operands))
    with counted(c.b, sizes_of(register(out)[1])) as counters:
        values = [c.get(o.tensor, m.at(c.b, counters), parts=parts) for o, m in zip(operands, maps, strict=True)]
        c.put(out, own.at(c.b, counters), body(*values))


def _loop_of(c: Context, out: Tensor, operands: Sequence[Operand]) -> tuple[Affine, list[Affine]] | None:
    """Return the local numbers of the result and its operands in a loop, or None if there is to be none."""
    sizes = sizes_of(register(out)[1])
    own = affine(np.arange(register(out)[1].local_size), sizes)
    if own is None or not c.in_memory(out):
        return None
    maps = []
    for o in operands:
        # Elements narrower than a byte have no address. A result that is its own operand must not be written where it
        # is still to be read.
        found = None if is_packed(o.tensor.type.dtype) else o.counted(sizes)
        if found is None or (o.tensor is out and found != own):
            return None
        maps.append(found)
    return own, maps


def fold(values: Sequence[Value], combine: Callable[[Value, Value], Value]) -> Value:
    """Combine values pairwise, as a tree: shorter chains and smaller rounding errors."""
    level = list(values)
    while len(level) > 1:
        pairs = [combine(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + (level[-1:] if len(level) % 2 else [])
    return level[0]


def fold_in_loops(
    c: Context,
    out: Tensor,
    x: Tensor,
    members: Table,
    combine: Callable[[Value, Value], Value],
    finish: Callable[[Value], Value],
) -> bool:
    """Combine registers of a large tile into those of `out`; whether that was possible.

    `members[j]` are the local numbers of `x` that make the local j of `out`. Several chains run side by side: one
    would wait for each of its results.
    """
    b, dtype, sizes = c.b, x.type.dtype, sizes_of(register(out)[1])
    count = members.shape[1]
    chains = max(n for n in range(1, CHAINS + 1) if count % n == 0)
    numbers = affine(members, (*sizes, count // chains, chains))
    own = affine(np.arange(len(members)), sizes)
    if not c.in_memory(x) or numbers is None or own is None or is_packed(out.type.dtype) or out is x:
        return False
    c.make(x)

    def value(counters: Sequence[Value], turn: Value, chain: int) -> Value:
        number = numbers.at(b, [*counters, turn, constant("i64", chain)])
        return casts.decode(b, dtype, c.get(x, number))

    with counted(b, sizes) as counters:
        first = [value(counters, constant("i64", 0), i) for i in range(chains)]
        slots = [b.alloca(v.type, "chain") for v in first]
        for slot, v in zip(slots, first, strict=True):
            b.store(v, slot)
        with counted(b, [count // chains - 1]) as (turn,):
            following = b.op("add", turn, 1)
            for i, slot in enumerate(slots):
                b.store(combine(b.load(first[i].type, slot), value(counters, following, i)), slot)
        c.put(
            out,
            own.at(b, counters),
            finish(fold([b.load(v.type, s) for v, s in zip(first, slots, strict=True)], combine)),
        )
    return True
