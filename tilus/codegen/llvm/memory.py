"""Tiles in memory: global views, shared tensors, copies between them.

A tile that lies inside its view is read and written in place: as whole vectors where the lanes hold neighbours, by one
load and a broadcast where they are replicas, lane by lane otherwise. A tile that crosses the border, or whose elements
have no address (narrow types, swizzled shared tensors), goes through a small dense copy on the stack, made by a loop
that tests every element. Both ways meet before the vectors are formed, so that code is there once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from math import prod
from typing import TypeAlias

import numpy as np

from tilus.codegen.llvm.builder import Builder, Value, constant, vector
from tilus.codegen.llvm.context import Context, register
from tilus.codegen.llvm.expr import index
from tilus.codegen.llvm.lanes import Table, transposed
from tilus.codegen.llvm.loops import counted
from tilus.codegen.llvm.types import is_packed, storage
from tilus.dtypes import DataType
from tilus.ir.expr import Const, Expr, Tensor
from tilus.layouts import SharedLayout, index_table

Stride: TypeAlias = "int | Value"
Address: TypeAlias = "Callable[[Sequence[Value]], Value]"


def memory_type(dtype: DataType) -> str:
    """Return the LLVM type of an element in memory; booleans take a byte."""
    return "i8" if dtype.is_boolean else storage(dtype)


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor in memory with the corner of a tile.

    Attributes
    ----------
    pointer : Value
    dtype : DataType
    offset, extents : list of Value
        Corner of the tile and size of the tensor, i64, for every dimension.
    strides : list of int or Value, or None
        Elements between neighbours; None where the address is no linear map.
    address : callable
        Element number of an index.
    dims : tuple of int
        Dimension that each tile dimension runs along.
    proved : frozenset of int
        Dimensions in which the tile is known to lie inside.
    """

    pointer: Value
    dtype: DataType
    offset: Sequence[Value]
    extents: Sequence[Value]
    strides: Sequence[Stride] | None
    address: Address
    dims: tuple[int, ...]
    proved: frozenset[int]

    @property
    def direct(self) -> bool:
        """Whether elements have addresses that are linear in the index."""
        return self.strides is not None and not is_packed(self.dtype)


def times(b: Builder, a: Value, stride: Stride) -> Value:
    """Return a * stride."""
    return a if stride == 1 else b.op("mul", a, stride)


def linear(b: Builder, indices: Sequence[Value], strides: Sequence[Stride]) -> Value:
    """Return the sum of indices times strides, an i64."""
    total: Value | None = None
    for i, s in zip(indices, strides, strict=True):
        term = times(b, i, s)
        total = term if total is None else b.op("add", total, term)
    return total if total is not None else constant("i64", 0)


def global_place(
    c: Context, view: Tensor, offset: Sequence[Expr], dims: tuple[int, ...], unmasked: Sequence[int]
) -> Place:
    """Return the place of a tile of a global view."""
    inst = c.views[view]
    strides: list[Stride] = [int(s.value) if isinstance(s, Const) else index(c, s) for s in inst.strides]
    extents = [index(c, e) for e in inst.shape]
    corner = [index(c, o) for o in offset]
    pointer = c.b.load("ptr", c.scalars[inst.ptr])
    return Place(
        pointer, view.type.dtype, corner, extents, strides, lambda i: linear(c.b, i, strides), dims, frozenset(unmasked)
    )  # fmt: skip


def shared_place(c: Context, t: Tensor, offset: Sequence[Expr], dims: tuple[int, ...]) -> Place:
    """Return the place of a tile of a shared tensor, which lies inside by the rules of the language."""
    inst, layout = c.shared[t], t.type.layout  # type: ignore[union-attr]
    assert isinstance(layout, SharedLayout)
    assert inst.byte_offset is not None
    pointer = c.b.gep("i8", Value("ptr", "%scratch"), inst.byte_offset)
    groups = layout.grouped_modes
    plain = layout.swizzle is None and all(len(g) <= 1 for g in groups)
    strides = [g[0].stride if g else 0 for g in groups] if plain else None
    extents = [constant("i64", n) for n in layout.shape]
    corner = [index(c, o) for o in offset]
    inside = frozenset(range(len(groups)))
    return Place(
        pointer, inst.dtype, corner, extents, strides, lambda i: shared_address(c.b, layout, i), dims, inside
    )  # fmt: skip


def shared_address(b: Builder, layout: SharedLayout, indices: Sequence[Value]) -> Value:
    """Return the element offset of an index: digits times strides, then the swizzle's exclusive or."""
    total = constant("i64", 0)
    for i, group in zip(indices, layout.grouped_modes, strict=True):
        rest = i
        for mode in reversed(group):
            total = b.op("add", total, b.op("mul", b.op("urem", rest, mode.size), mode.stride))
            rest = b.op("udiv", rest, mode.size)
    if layout.swizzle is not None:
        s = layout.swizzle
        bits = b.op("and", b.op("lshr", total, s.base + s.shift), (1 << s.bits) - 1)
        total = b.op("xor", total, b.op("shl", bits, s.base))
    return total


@contextmanager
def nest(b: Builder, shape: Sequence[int], *, rare: bool = False) -> Iterator[list[Value]]:
    """Loop over every index of a shape around what is written inside."""
    with ExitStack() as stack:
        yield [stack.enter_context(b.loop(constant("i64", n), rare=rare)) for n in shape]


def _at(b: Builder, place: Place, tile_index: Sequence[Value]) -> list[Value]:
    """Return the index into the tensor for an index into the tile."""
    full = list(place.offset)
    for d, i in zip(place.dims, tile_index, strict=True):
        full[d] = b.op("add", full[d], i)
    return full


def inside(b: Builder, place: Place, low: Sequence[Value], last: Sequence[Value]) -> Value:
    """Test that indices from `low` to `last` lie inside in every dimension that is not proved."""
    result = constant("i1", True)
    for d, extent in enumerate(place.extents):
        if d not in place.proved:
            result = b.op("and", result, b.compare("icmp sge", low[d], 0))
            result = b.op("and", result, b.compare("icmp slt", last[d], extent))
    return result


def load_element(b: Builder, dtype: DataType, pointer: Value, number: Value) -> Value:
    """Load one element, as it is stored in registers."""
    if not is_packed(dtype):
        return from_memory(b, dtype, b.load(memory_type(dtype), b.gep(memory_type(dtype), pointer, number)))
    first, shift, second, crosses = _bit_address(b, dtype, pointer, number)
    # The second byte is read only where the code reaches into it: it may lie past the end of the buffer.
    low = b.convert("zext", b.load("i8", first), "i32")
    high = b.convert("zext", b.load("i8", b.select(crosses, second, first)), "i32")
    both = b.op("or", low, b.op("shl", high, 8))
    return b.op("and", b.op("lshr", both, shift), (1 << dtype.nbits) - 1)


def store_element(b: Builder, dtype: DataType, pointer: Value, number: Value, value: Value) -> None:
    """Store one element. Narrow ones are merged into their bytes atomically: other blocks may write the same bytes."""
    if not is_packed(dtype):
        b.store(to_memory(b, dtype, value), b.gep(memory_type(dtype), pointer, number))
        return
    first, shift, second, crosses = _bit_address(b, dtype, pointer, number)
    bits, mask = b.op("shl", value, shift), b.op("shl", constant("i32", (1 << dtype.nbits) - 1), shift)
    _merge(b, first, bits, mask)
    with b.when(crosses):
        _merge(b, second, b.op("lshr", bits, 8), b.op("lshr", mask, 8))


def _bit_address(b: Builder, dtype: DataType, pointer: Value, number: Value) -> tuple[Value, Value, Value, Value]:
    bit = b.op("mul", number, dtype.nbits)
    first = b.gep("i8", pointer, b.op("lshr", bit, 3))
    shift = b.convert("trunc", b.op("and", bit, 7), "i32")
    crosses = b.compare("icmp ugt", b.op("add", shift, dtype.nbits), 8)
    return first, shift, b.gep("i8", first, 1), crosses


def _merge(b: Builder, pointer: Value, bits: Value, mask: Value) -> None:
    keep = b.convert("trunc", b.op("xor", mask, -1), "i8")
    b.value("i8", f"atomicrmw and {pointer}, {keep} monotonic")
    b.value("i8", f"atomicrmw or {pointer}, {b.convert('trunc', bits, 'i8')} monotonic")


def from_memory(b: Builder, dtype: DataType, x: Value) -> Value:
    """Turn what memory holds into what registers hold: booleans from bytes."""
    return b.compare("icmp ne", x, 0) if dtype.is_boolean else x


def to_memory(b: Builder, dtype: DataType, x: Value) -> Value:
    """Turn what registers hold into what memory holds."""
    return b.convert("zext", x, x.type.replace("i1", "i8")) if dtype.is_boolean else x


def dense_strides(place: Place, shape: Sequence[int]) -> list[int]:
    """Return strides of the dense copy; the dimension that is contiguous in memory stays so."""
    order = sorted(range(len(shape)), key=lambda i: place.strides is not None and place.strides[place.dims[i]] == 1)
    strides, step = [0] * len(shape), 1
    for i in reversed(order):
        strides[i], step = step, step * shape[i]
    return strides


def run_of(place: Place, shape: Sequence[int]) -> int | None:
    """Return the dimension of a tile along which neighbours are neighbours in memory; None if there is none."""
    if not place.direct or place.dtype.is_boolean:
        return None
    assert place.strides is not None
    runs = [i for i, d in enumerate(place.dims) if place.strides[d] == 1 and shape[i] > 1]
    return runs[0] if len(runs) == 1 else None


@contextmanager
def _row_ends(
    c: Context, place: Place, shape: Sequence[int], copy: Value, strides: Sequence[int], run: int
) -> Iterator[tuple[Value, Value, Value, Value]]:
    """Loop over the rows of a tile: (row of the copy, its part that lies inside, the same in memory, bytes of it)."""
    b, element, d = c.b, memory_type(place.dtype), place.dims[run]
    zero, extent = constant("i64", 0), constant("i64", shape[run])
    first, end = zero, extent
    if d not in place.proved:
        first = b.call("i64", "smax", b.op("sub", zero, place.offset[d]), zero)
        end = b.call("i64", "smin", b.op("sub", place.extents[d], place.offset[d]), extent)
    count = b.call("i64", "smax", b.op("sub", end, first), zero)
    with nest(b, [1 if i == run else n for i, n in enumerate(shape)], rare=True) as index:
        at = _at(b, place, index)
        there = inside(b, replace(place, proved=place.proved | {d}), at, at)
        row = b.gep(element, copy, linear(b, index, strides))
        memory = b.gep(element, b.gep(element, place.pointer, place.address(at)), first)
        size = b.select(there, b.op("mul", count, place.dtype.nbits // 8), 0)
        yield row, b.gep(element, row, first), memory, size


def _intrinsic(b: Builder, name: str, target: Value, source: Value, size: Value) -> None:
    """Call `llvm.memcpy` or `llvm.memset`."""
    suffix = "p0.p0.i64" if source.type == "ptr" else "p0.i64"
    b.declare("void", f"llvm.{name}.{suffix}", ["ptr", source.type, "i64", "i1"])
    b.line(f"call void @llvm.{name}.{suffix}({target}, {source}, {size}, i1 false)")


def copy_in(c: Context, place: Place, shape: Sequence[int], copy: Value, strides: Sequence[int], other: Value) -> None:
    """Fill a dense copy of a tile; elements outside are `other`."""
    b, dtype = c.b, place.dtype
    element, run = memory_type(dtype), run_of(place, shape)
    if run is not None and other == constant(other.type, 0):
        width = constant("i64", shape[run] * dtype.nbits // 8)
        with _row_ends(c, place, shape, copy, strides, run) as (row, target, source, size):
            _intrinsic(b, "memset", row, Value("i8", "0"), width)
            _intrinsic(b, "memcpy", target, source, size)
        return
    with nest(b, shape, rare=place.direct) as i:
        at = _at(b, place, i)
        slot = b.gep(element, copy, linear(b, i, strides))
        b.store(to_memory(b, dtype, other), slot)
        with b.when(inside(b, place, at, at)):
            b.store(to_memory(b, dtype, load_element(b, dtype, place.pointer, place.address(at))), slot)


def copy_out(c: Context, place: Place, shape: Sequence[int], copy: Value, strides: Sequence[int]) -> None:
    """Store the elements of a dense copy that lie inside."""
    b, dtype = c.b, place.dtype
    run = run_of(place, shape)
    if run is not None:
        with _row_ends(c, place, shape, copy, strides, run) as (_, source, target, size):
            _intrinsic(b, "memcpy", target, source, size)
        return
    with nest(b, shape, rare=place.direct) as i:
        at = _at(b, place, i)
        with b.when(inside(b, place, at, at)):
            value = from_memory(
                b, dtype, b.load(memory_type(dtype), b.gep(memory_type(dtype), copy, linear(b, i, strides)))
            )
            store_element(b, dtype, place.pointer, place.address(at), value)


def settle(b: Builder, whole: Value, values: Sequence[Value], otherwise: Callable[[], Sequence[Value]]) -> list[Value]:
    """Return values if a condition holds, else those that `otherwise` makes; nothing is written for what is known."""
    if whole.name == "true":
        return list(values)
    name = b.fresh("tile")
    slots = [b.alloca(v.type, "settled") for v in values]
    for slot, value in zip(slots, values, strict=True):
        b.store(value, slot)
    b.branch_if(whole, f"{name}.ready", f"{name}.edge")
    b.label(f"{name}.edge")
    for slot, value in zip(slots, otherwise(), strict=True):
        b.store(value, slot)
    b.branch(f"{name}.ready")
    b.label(f"{name}.ready")
    return [b.load(v.type, slot) for v, slot in zip(values, slots, strict=True)]


def as_value(stride: Stride) -> Value:
    """Return a stride as an i64."""
    return stride if isinstance(stride, Value) else constant("i64", stride)


def _meeting(
    c: Context, place: Place, shape: Sequence[int], before: Callable[[Value, Sequence[int]], None]
) -> tuple[Value, list[Stride], Value, Value, list[int]]:
    """Choose between the tile in place and its dense copy: (pointer, strides, whether in place, copy, its strides).

    `before(copy, strides)` fills the copy where it is used for reading.
    """
    b, element = c.b, memory_type(place.dtype)
    dense = dense_strides(place, shape)
    last = [
        b.op("add", o, shape[place.dims.index(d)] - 1) if d in place.dims else o for d, o in enumerate(place.offset)
    ]
    whole = inside(b, place, place.offset, last) if place.direct else constant("i1", False)
    copy = b.alloca(f"[{prod(shape)} x {element}]", "dense", 64)
    if whole.name == "false":
        before(copy, dense)
        return copy, list(dense), whole, copy, dense
    assert place.strides is not None
    origin = b.gep(element, place.pointer, place.address(place.offset))
    own = [place.strides[d] for d in place.dims]
    if whole.name == "true":
        return origin, own, whole, copy, dense

    def fill() -> list[Value]:
        before(copy, dense)
        return [copy, *map(as_value, dense)]

    pointer, *settled = settle(b, whole, [origin, *map(as_value, own)], fill)
    merged = [1 if stride == 1 == step else s for stride, step, s in zip(own, dense, settled, strict=True)]
    return pointer, merged, whole, copy, dense


def read_tile(c: Context, place: Place, out: Tensor, shape: Sequence[int], other: Value, *, defer: bool = True) -> None:
    """Load a tile into a register tensor; elements outside are `other`."""
    _, layout = register(out)

    def fill(copy: Value, strides: Sequence[int]) -> None:
        copy_in(c, place, shape, copy, strides, other)

    pointer, strides, *_ = _meeting(c, place, shape, fill)
    kind, table = memory_type(place.dtype), index_table(layout)

    def element(number: int) -> Value:
        (value,) = gather(c.b, kind, pointer, strides, table[:, number : number + 1])
        return from_memory(c.b, place.dtype, value)

    def now() -> None:
        if not c.in_memory(out):
            c.write(out, [from_memory(c.b, place.dtype, e) for e in gather(c.b, kind, pointer, strides, table)])
            return
        with _registers(c, out, kind, pointer, strides) as (number, base):
            (e,) = gather(c.b, kind, base, strides, table[:, :1])
            c.put(out, number, from_memory(c.b, place.dtype, e))

    if defer and out in c.deferrable:
        c.defer(out, element, now)
    else:
        now()


def write_tile(c: Context, place: Place, tile: Tensor) -> None:
    """Store a register tensor; elements outside are dropped."""
    kind, _ = register(tile)
    pointer, strides, whole, copy, dense = _meeting(c, place, kind.shape, lambda *_: None)
    _write_registers(c, tile, pointer, strides)
    if whole.name != "true":
        with c.b.when(c.b.op("xor", whole, True)):
            copy_out(c, place, kind.shape, copy, dense)


def _write_registers(c: Context, tile: Tensor, pointer: Value, strides: Sequence[Stride]) -> None:
    """Store the vectors of a tile at `pointer`, all of which is there."""
    kind, layout = register(tile)
    element, table = memory_type(kind.dtype), index_table(layout)
    if tile in c.deferred or not c.in_memory(tile):
        scatter(c.b, element, pointer, strides, table, (to_memory(c.b, kind.dtype, e) for e in c.read(tile)))
        return
    with _registers(c, tile, element, pointer, strides) as (number, base):
        value = to_memory(c.b, kind.dtype, c.get(tile, number))
        scatter(c.b, element, base, strides, table[:, :1], [value])


@contextmanager
def _registers(
    c: Context, t: Tensor, element: str, pointer: Value, strides: Sequence[Stride]
) -> Iterator[tuple[Value, Value]]:
    """Loop over the local numbers of a large tile: (number, address of what is in memory for lane 0)."""
    b, digits = c.b, register(t)[1].local_digits
    with counted(b, [d.size for d in digits]) as counters:
        number, place = constant("i64", 0), constant("i64", 0)
        for counter, digit in zip(counters, digits, strict=True):
            assert digit.dim is not None
            number = b.op("add", times(b, number, digit.size), counter)
            place = b.op("add", place, times(b, times(b, counter, digit.stride), strides[digit.dim]))
        yield number, b.gep(element, pointer, place)


def tile_loop(c: Context, place: Place, tile: Tensor, visit: Callable[[Value, Value], None]) -> None:
    """Call `visit(element number, stored element)` in a loop over the elements of a tile that lie inside."""
    kind, _ = register(tile)
    b, element, dense = c.b, memory_type(place.dtype), dense_strides(place, kind.shape)
    copy = b.alloca(f"[{kind.numel} x {element}]", "dense", 64)
    _write_registers(c, tile, copy, list(dense))
    with nest(b, kind.shape) as i:
        at = _at(b, place, i)
        with b.when(inside(b, place, at, at)):
            visit(place.address(at), b.load(element, b.gep(element, copy, linear(b, i, dense))))


def copy_tile(c: Context, source: Place, target: Place, shape: Sequence[int]) -> None:
    """Copy a tile from memory to memory; elements outside the source are zero."""
    b, dtype = c.b, source.dtype
    with nest(b, shape) as i:
        at, to = _at(b, source, i), _at(b, target, i)
        value = b.alloca(storage(dtype), "element")
        b.store(constant(storage(dtype), 0), value)
        with b.when(inside(b, source, at, at)):
            b.store(load_element(b, dtype, source.pointer, source.address(at)), value)
        store_element(b, dtype, target.pointer, target.address(to), b.load(storage(dtype), value))


class _Addresses:
    """Element addresses by constant index: the part along non-unit strides is computed once per combination."""

    def __init__(self, b: Builder, element: str, pointer: Value, strides: Sequence[Stride]) -> None:
        self.b, self.element, self.pointer, self.strides = b, element, pointer, strides
        self.rows: dict[tuple[int, ...], Value] = {}

    def __call__(self, at: Sequence[int]) -> Value:
        fixed = sum(i * s for i, s in zip(at, self.strides, strict=True) if isinstance(s, int))
        key = tuple(0 if isinstance(s, int) else int(i) for i, s in zip(at, self.strides, strict=True))
        if key not in self.rows:
            moving = [(i, s) for i, s in zip(key, self.strides, strict=True) if i]
            total = linear(self.b, [constant("i64", i) for i, _ in moving], [s for _, s in moving])
            self.rows[key] = self.b.gep(self.element, self.pointer, total) if moving else self.pointer
        return self.b.gep(self.element, self.rows[key], int(fixed)) if fixed else self.rows[key]


def _pattern(at: Table, strides: Sequence[Stride]) -> str:
    """Tell how the lanes of one vector lie: `one` address, a `row` of neighbours, or `apart`."""
    steps = at - at[0]
    if not steps.any():
        return "one"
    moving = [d for d in range(at.shape[1]) if steps[:, d].any()]
    unit = len(moving) == 1 and strides[moving[0]] == 1
    return "row" if unit and (steps[:, moving[0]] == range(len(at))).all() else "apart"


def gather(b: Builder, element: str, pointer: Value, strides: Sequence[Stride], table: Table) -> list[Value]:
    """Load one vector for every local: `table[lane, local]` is the index."""
    address = _Addresses(b, element, pointer, strides)
    out = []
    for i in range(table.shape[1]):
        at = table[:, i]
        match _pattern(at, strides):
            case "one":
                out.append(b.splat(b.load(element, address(at[0]))))
            case "row":
                out.append(b.load(vector(len(at), element), address(at[0]), align=1))
            case _:
                value = Value(vector(len(at), element), "poison")
                for lane, where in enumerate(at):
                    value = b.insert(value, b.load(element, address(where)), lane)
                out.append(value)
    return out


def scatter(
    b: Builder, element: str, pointer: Value, strides: Sequence[Stride], table: Table, elements: Iterable[Value]
) -> None:
    """Store one vector for every local; replicas are stored once.

    Where every lane has a row of neighbours, as many as there are lanes, the rows are made into vectors first.
    """
    address, (lanes, count) = _Addresses(b, element, pointer, strides), table.shape[:2]
    left, i = iter(elements), 0
    while i < count:
        if _are_rows(table[:, i : i + lanes], strides):
            for row, where in zip(transposed(b, list(islice(left, lanes))), table[:, i], strict=True):
                b.store(row, address(where), align=1)
            i += lanes
        else:
            _scatter_vector(b, address, table[:, i], strides, next(left))
            i += 1


def _are_rows(table: Table, strides: Sequence[Stride]) -> bool:
    """Whether each lane has its own row of memory, and as many neighbours in it as there are lanes."""
    lanes, count = table.shape[:2]
    unit = [d for d, stride in enumerate(strides) if stride == 1]
    if lanes == 1 or lanes != count or not unit or _pattern(table[:, 0], strides) != "apart":
        return False
    steps = table - table[:, :1]
    return bool((steps[..., unit[-1]] == np.arange(count)).all() and not np.delete(steps, unit[-1], axis=2).any())


def _scatter_vector(b: Builder, address: _Addresses, at: Table, strides: Sequence[Stride], value: Value) -> None:
    match _pattern(at, strides):
        case "one":
            b.store(b.extract(value, 0), address(at[0]))
        case "row":
            b.store(value, address(at[0]), align=1)
        case _:
            first = {tuple(where): lane for lane, where in reversed(list(enumerate(at.tolist())))}
            for where, lane in first.items():
                b.store(b.extract(value, lane), address(where))
