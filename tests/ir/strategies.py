"""Random well-typed programs. They also run: every access is in bounds, initialised and free of races.

`programs()` draws a program with the parameters that `arguments()` makes buffers for. Blocks write disjoint parts of
the output, so that the order in which they run does not matter. What depends on the order of additions or on a library
is left out: operators are rounded once, sums are of integers. So any two machines agree to the last bit.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field, replace

import numpy as np
from hypothesis import strategies as st

from tilus.dtypes import DataType, bf16, boolean, dtype, f16, f32, i8, i32, i64, u4, u8
from tilus.ir.builder import Builder, op
from tilus.ir.expr import BlockId, CastExpr, Expr, Tensor, Var, const, dtype_of
from tilus.ir.instructions import (
    AllocShared,
    Arange,
    Assert,
    AtomicAdd,
    Cast,
    CommitGroup,
    ConvertLayout,
    Copy,
    CopyAsync,
    Dot,
    Elementwise,
    Full,
    GlobalView,
    GridDependencyWait,
    LaunchDependents,
    LoadElement,
    LoadGlobal,
    LoadShared,
    Prefetch,
    Print,
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
from tilus.ir.operators import OPERATORS
from tilus.ir.program import Program
from tilus.ir.stmt import Selected
from tilus.ir.target import TARGETS, Target
from tilus.ir.types import RegisterType
from tilus.layouts import auto_local_spatial, local

SHAPES = ((4, 8), (8, 4), (1, 8), (4, 1), (16,), (4,), (2, 2, 4))
TILE_DTYPES = (f16, f32, bf16, i32, i8, u8, u4, boolean, i64)
SCALAR_DTYPES = (i32, i64, f32, f16, boolean)
BLOCKS = 2
INPUT_SIZE = 256  # elements
OUTPUT_SIZE = 1 << 14  # elements of each output, shared out among the stores of both blocks
INPUTS = (f16, f32, i8, u4)
OUTPUTS = (u8, f16, u4)
FIRST_OUTPUT = len(INPUTS)
VIEWED = tuple(map(dtype, ("u4", "i4", "u2", "i1", "f4e2m1", "f8e4m3", "i8")))
NAMES = st.text(string.ascii_lowercase + "_1", min_size=1, max_size=3) | st.sampled_from(
    ["if", "f32", "inf", "a b", ""]
)


@dataclass
class Scope:
    """What may be used at a point of the program under construction."""

    b: Builder
    inputs: dict[DataType, Var]
    outputs: dict[DataType, Var]
    n: Var
    machine: Target  # whose threads the layouts that a program names have
    warps: int
    portable: bool  # it names no layouts, so that machines of other threads run it too
    tiles: list[Tensor] = field(default_factory=list)
    scalars: list[Var] = field(default_factory=list)
    written: dict[DataType, int] = field(default_factory=dict)  # elements of outputs that each block has used

    def inner(self) -> Scope:
        """What is defined in a branch or loop is unknown after it."""
        return replace(self, tiles=[*self.tiles], scalars=[*self.scalars])

    @property
    def threads(self) -> int:
        return self.machine.num_threads(self.warps)

    def can_add(self, dt: DataType) -> bool:
        """Whether memory of a type can be added to: GPUs do not with bytes."""
        return dt.nbits >= (16 if self.machine.kind == "cuda" else 8)


def literals(dt: DataType) -> st.SearchStrategy[Expr]:
    if dt.is_boolean:
        return st.booleans().map(lambda v: const(v, dt))
    if dt.is_integer:
        return st.integers(max(dt.min_value, -100), min(dt.max_value, 100)).map(lambda v: const(v, dt))
    return st.floats(-8, 8, width=16).map(lambda v: const(v, dt)) | st.just(const(float("inf"), dt))


@st.composite
def expressions(draw, scope: Scope, dt: DataType, depth: int = 2) -> Expr:
    """A scalar expression of a type; no division by what may be zero."""
    leaves = [literals(dt)]
    if known := [v for v in scope.scalars if v.type.dtype == dt]:
        leaves.append(st.sampled_from(known))
    if dt == i32:
        leaves.append(st.just(BlockId(0)))
    if depth == 0 or draw(st.booleans()):
        return draw(st.one_of(leaves))

    def sub(kind: DataType) -> Expr:
        return draw(expressions(scope, kind, depth - 1))

    if dt == boolean:
        name = draw(st.sampled_from(["lt", "le", "eq", "ne", "and", "or", "xor", "not"]))
        kind = boolean if name in ("and", "or", "xor", "not") else draw(st.sampled_from([i32, f32, i64]))
        return op(name, *(sub(kind) for _ in range(OPERATORS[name].arity)))
    choice = draw(st.sampled_from(["binary", "unary", "cast", "where", "divide"]))
    if choice == "cast":
        return CastExpr(dt, sub(draw(st.sampled_from(SCALAR_DTYPES))))
    if choice == "where":
        return op("where", sub(boolean), sub(dt), sub(dt))
    if choice == "unary":
        return op(draw(st.sampled_from(["neg", "abs"])), sub(dt))
    if choice == "divide" and dt.is_integer:
        name = draw(st.sampled_from(["floordiv", "mod", "shl", "shr"]))
        return op(name, sub(dt), const(draw(st.integers(1, 7)), dt))
    names = ["add", "sub", "mul", "min", "max"] + (["and", "or", "xor"] if dt.is_integer else [])
    return op(draw(st.sampled_from(names)), sub(dt), sub(dt))


def _tile(draw, scope: Scope, accept=lambda t: True) -> Tensor:
    """A known tile that will do, or a new one."""
    if known := [t for t in scope.tiles if accept(t)]:
        return draw(st.sampled_from(known))
    full = [(s, d) for s in SHAPES for d in TILE_DTYPES if accept(Tensor("t", RegisterType(d, s)))]
    shape, dt = draw(st.sampled_from(full))
    return _add(draw, scope, Full(draw(literals(dt)), shape))


def _add(draw, scope: Scope, inst) -> Tensor:
    tile = scope.b.inst(inst, draw(NAMES))
    scope.tiles.append(tile)
    return tile


def _number(t: Tensor) -> bool:
    return t.type.dtype != boolean and not t.type.dtype.nbits < 8


def _full(draw, scope: Scope) -> None:
    dt = draw(st.sampled_from(SCALAR_DTYPES))
    _add(draw, scope, Full(draw(expressions(scope, dt)), draw(st.sampled_from(SHAPES))))


def _arange(draw, scope: Scope) -> None:
    shape = draw(st.sampled_from(SHAPES))
    dim = draw(st.integers(0, len(shape) - 1))
    _add(draw, scope, Arange(draw(expressions(scope, draw(st.sampled_from([i32, i64])))), shape, dim))


def _input_view(draw, scope: Scope, rank: int) -> Tensor:
    pointer = draw(st.sampled_from(sorted(scope.inputs.values(), key=lambda v: v.name)))
    extents = draw(st.sampled_from({1: [(256,)], 2: [(16, 16), (7, 30), (8, 32)], 3: [(4, 8, 8), (3, 5, 16)]}[rank]))
    shape = [_extent(draw, scope, e) for e in extents]
    strides: list[Expr] = [const(1)]
    for extent in reversed(shape[1:]):
        strides.insert(0, op("mul", strides[0], extent))
    return scope.b.inst(GlobalView(pointer, tuple(shape), tuple(strides)), "view")


def _extent(draw, scope: Scope, extent: int) -> Expr:
    """An extent as a constant, or as a multiple of the parameter, which is 2 * BLOCKS."""
    known = 2 * BLOCKS
    return const(extent) if extent % known or draw(st.booleans()) else op("mul", scope.n, const(extent // known))


def _offset(draw, low: int, high: int) -> Expr:
    """An offset, the same in all blocks or not."""
    first = const(draw(st.integers(low, high)))
    return first if draw(st.booleans()) else op("add", op("mul", BlockId(0), const(draw(st.integers(-4, 8)))), first)


def _load_global(draw, scope: Scope) -> None:
    shape = draw(st.sampled_from(SHAPES))
    rank = draw(st.integers(len(shape), 3))
    dims = tuple(sorted(draw(st.permutations(range(rank)))[: len(shape)]))
    view = _input_view(draw, scope, rank)
    # Any offset will do: elements outside of the view read as `other`.
    offset = tuple(_offset(draw, -4, 12) for _ in range(rank))
    other = draw(st.sampled_from([0.0, 1.0, 2.0]))
    scope.tiles.append(
        scope.b.inst(LoadGlobal(view, offset, shape, dims, other), draw(NAMES), selected=draw(_SELECTED))
    )


_SELECTED = st.none() | st.builds(
    Selected,
    st.sampled_from(["ldmatrix.x4.trans", "", "two words"]),  # nothing that the machine would check
    st.sampled_from([1, 4]),
    st.sampled_from(["", '16 B: "why"\n', "é"]),
)


def _reserve(scope: Scope, dt: DataType, count: int) -> int | None:
    """Take elements of an output for one store, aligned to 8; None when there are none left."""
    start = scope.written.get(dt, 0)
    if start + count > OUTPUT_SIZE // BLOCKS:
        return None
    scope.written[dt] = start + -(-count // 8) * 8
    return start


def _store_global(draw, scope: Scope) -> None:
    """Store a tile at a place of its own: flat, or as a matrix that leaves its view."""
    tile, dt = _tile(draw, scope), draw(st.sampled_from(OUTPUTS))
    if dt == f16:  # through integers: the bits of NaN are nobody's promise
        tile = scope.b.inst(Cast(tile, i8), "whole")
    if tile.type.dtype != dt:
        tile = scope.b.inst(Cast(tile, dt), "stored")
    make = draw(st.sampled_from([StoreGlobal, AtomicAdd])) if scope.can_add(dt) else StoreGlobal
    if len(tile.type.shape) == 2 and draw(st.booleans()):
        _store_matrix(draw, scope, make, tile)
    elif (start := _reserve(scope, dt, tile.type.numel)) is not None:
        half = OUTPUT_SIZE // BLOCKS
        view = scope.b.inst(GlobalView(scope.outputs[dt], (const(BLOCKS), const(half)), (const(half), const(1))), "out")
        flat = tile if len(tile.type.shape) == 1 else scope.b.inst(Reshape(tile, (tile.type.numel,)), "flat")
        scope.b.inst(make(view, flat, (BlockId(0), const(start)), (1,)))


def _store_matrix(draw, scope: Scope, make, tile: Tensor) -> None:
    """Store a matrix to a view that may end within it; the block's part of the output is its first dimension."""
    dt, (rows, columns) = tile.type.dtype, tile.type.shape
    width = columns + draw(st.sampled_from([0, 1, -1, 3])) if columns > 1 else columns
    start = _reserve(scope, dt, (rows + 1) * width)
    if start is None:
        return
    row, half = -(-start // width), OUTPUT_SIZE // BLOCKS
    scope.written[dt] = max(scope.written[dt], -(-(row + rows) * width // 8) * 8)
    shape = const(BLOCKS), const(row + rows - draw(st.integers(0, 1))), _extent(draw, scope, width)
    view = scope.b.inst(GlobalView(scope.outputs[dt], shape, (const(half), shape[2], const(1))), "matrix")
    offset = BlockId(0), const(row), const(draw(st.sampled_from([0, 0, 1, -2])))
    scope.b.inst(make(view, tile, offset, (1, 2)))


def _load_element(draw, scope: Scope) -> None:
    pointer = draw(st.sampled_from(sorted(scope.inputs.values(), key=lambda v: v.name)))
    index = const(draw(st.integers(0, INPUT_SIZE - 1)), draw(st.sampled_from([i32, i64])))
    scope.scalars.append(scope.b.inst(LoadElement(pointer, index), draw(NAMES)))


def _through_shared(draw, scope: Scope) -> None:
    tile = _tile(draw, scope, lambda t: t.type.dtype.nbits % 8 == 0)
    shape = tile.type.shape
    lead = draw(st.booleans())  # a dimension of buffers in front
    dims = tuple(range(lead, lead + len(shape)))
    offset = (*((const(1),) if lead else ()), *(const(0) for _ in shape))
    shared = scope.b.inst(AllocShared(tile.type.dtype, ((2,) if lead else ()) + shape), draw(NAMES))
    scope.b.inst(StoreShared(shared, tile, offset, dims))
    scope.b.inst(Sync())
    part = tuple(draw(st.sampled_from([n, max(1, n // 2)])) for n in shape)
    inner = tuple(draw(st.sampled_from([0, n - p])) for n, p in zip(shape, part, strict=True))
    offset = (*offset[:lead], *map(const, inner))
    _add(draw, scope, LoadShared(shared, offset, part, dims))
    scope.b.inst(Sync())


def _through_copy_async(draw, scope: Scope) -> None:
    shape = draw(st.sampled_from(SHAPES))
    rank = len(shape)
    view = _input_view(draw, scope, rank)
    if view.type.dtype.nbits < 8:
        return
    shared = scope.b.inst(AllocShared(view.type.dtype, shape), draw(NAMES))
    zero, dims = tuple(const(0) for _ in shape), tuple(range(rank))
    source = tuple(_offset(draw, -4, 12) for _ in shape)
    scope.b.inst(CopyAsync(shared, view, zero, source, shape, dims, dims))
    scope.b.inst(CommitGroup())
    scope.b.inst(WaitGroup(0))
    scope.b.inst(Sync())
    _add(draw, scope, LoadShared(shared, zero, shape, dims))
    scope.b.inst(Sync())


def _cast(draw, scope: Scope) -> None:
    _add(draw, scope, Cast(_tile(draw, scope), draw(st.sampled_from(TILE_DTYPES))))


def _copy(draw, scope: Scope) -> None:
    tile = _tile(draw, scope)
    known = [t for t in scope.tiles if t.type == tile.type]
    if draw(st.booleans()):
        scope.b.inst(Copy(tile), out=draw(st.sampled_from(known)))  # a redefinition
    else:
        _add(draw, scope, Copy(tile))


def _convert_layout(draw, scope: Scope) -> None:
    if scope.portable:
        return
    tile = _tile(draw, scope)
    layout = auto_local_spatial(scope.threads, tile.type.shape)
    _add(draw, scope, ConvertLayout(tile, layout))


def _view(draw, scope: Scope) -> None:
    """Bytes to narrower types, in a layout that is known on both sides."""
    if scope.portable:
        return
    tile = _tile(draw, scope, lambda t: t.type.dtype in (u8, i8))
    layout = auto_local_spatial(scope.threads, tile.type.shape)
    laid = scope.b.inst(ConvertLayout(tile, layout), "laid")
    kind = draw(st.sampled_from(VIEWED))
    several = local(*(1,) * (len(tile.type.shape) - 1), 8 // kind.nbits)
    _add(draw, scope, View(laid, kind, layout * several))


_ANY = ("add", "sub", "mul", "min", "max", "lt", "le", "eq", "ne", "neg", "abs", "where")
_WHOLE = ("and", "or", "xor", "not", "shl", "shr", "floordiv", "mod")
_FLOAT = ("div", "floor", "ceil", "round", "sqrt")


def _elementwise(draw, scope: Scope) -> None:
    a = _tile(draw, scope, _number)
    dt = a.type.dtype
    name = draw(st.sampled_from(_ANY + (_WHOLE if dt.is_integer else _FLOAT)))
    # Operands of a tile's rank broadcast to it, and it to them.
    like = _tile(draw, scope, lambda t: t.type.dtype == dt and _broadcast(t.type.shape, a.type.shape))
    second = draw(st.sampled_from([like, draw(literals(dt))]))
    if name in ("shl", "shr", "floordiv", "mod"):
        second = const(draw(st.integers(1, 7)), dt)
    if name == "where":
        cond = scope.b.inst(Elementwise("lt", (a, like)), "cond")
        args = (cond, a, second)
    else:
        args = draw(st.permutations((a, second))) if name not in ("shl", "shr", "floordiv", "mod") else (a, second)
        args = tuple(args) if OPERATORS[name].arity == 2 else (a,)
    _add(draw, scope, Elementwise(name, args))


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return len(a) == len(b) and all(m == n or 1 in (m, n) for m, n in zip(a, b, strict=True))


def _reduce(draw, scope: Scope) -> None:
    name = draw(st.sampled_from(["max", "min", "sum"]))
    x = _tile(draw, scope, lambda t: _number(t) and len(t.type.shape) > 1)
    if name == "sum" and x.type.dtype.is_float:
        x = _integers(draw, scope, f32, x.type.shape)
    dim = draw(st.integers(0, len(x.type.shape) - 1))
    _add(draw, scope, Reduce(x, name, dim, draw(st.booleans())))


def _shapes(draw, scope: Scope) -> None:
    x = _tile(draw, scope)
    shape = x.type.shape
    match draw(st.sampled_from(["transpose", "reshape", "slice"])):
        case "transpose":
            _add(draw, scope, Transpose(x, tuple(draw(st.permutations(range(len(shape)))))))
        case "reshape":
            _add(draw, scope, Reshape(x, draw(st.sampled_from([(x.type.numel,), (1, *shape)]))))
        case _:
            offset = tuple(draw(st.sampled_from([0, n // 2])) if n > 1 else 0 for n in shape)
            _add(draw, scope, Slice(x, offset, tuple(max(1, n // 2) for n in shape)))


def _dot(draw, scope: Scope) -> None:
    dt, acc = draw(st.sampled_from([(i8, i32), (f16, f32), (bf16, f32)]))
    a, b = (_integers(draw, scope, dt, shape) for shape in ((4, 8), (8, 4)))
    c = scope.b.inst(Full(const(draw(st.integers(-9, 9)), acc), (4, 4)), "c")
    _add(draw, scope, Dot(a, b, c))


def _integers(draw, scope: Scope, dt: DataType, shape: tuple[int, ...]) -> Tensor:
    """A tile of small integers, whose sums are exact in every order."""
    x = _tile(draw, scope, lambda t: t.type.shape == shape)
    small = scope.b.inst(Cast(x, i8), "small")
    return small if dt == i8 else scope.b.inst(Cast(small, dt), "whole")


def _print_and_assert(draw, scope: Scope) -> None:
    tile = _tile(draw, scope)
    value = draw(expressions(scope, f32))
    scope.b.inst(Print(draw(st.sampled_from(["{} and {}", '{{}} "{}"\\ {}\n'])), (tile, value)))
    scope.b.inst(Assert(const(True), draw(st.sampled_from(["never", "it's\n", 'a "quote"']))))


def _ahead(draw, scope: Scope) -> None:
    """Ask for a tile, which may lie anywhere, and let the next kernel start."""
    shape = draw(st.sampled_from(SHAPES))
    view = _input_view(draw, scope, len(shape))
    scope.b.inst(Prefetch(view, tuple(_offset(draw, -4, 40) for _ in shape), shape, tuple(range(len(shape)))))
    scope.b.inst(LaunchDependents())


def _let(draw, scope: Scope) -> None:
    value = draw(expressions(scope, draw(st.sampled_from(SCALAR_DTYPES))))
    if (known := [v for v in scope.scalars if v.type.dtype == dtype_of(value)]) and draw(st.booleans()):
        scope.b.assign(draw(st.sampled_from(known)), value)
    else:
        scope.scalars.append(scope.b.let(draw(NAMES), value))


def _if(draw, scope: Scope) -> None:
    with scope.b.if_(draw(expressions(scope, boolean))):
        _statements(draw, scope.inner(), 2)
    if draw(st.booleans()):
        with scope.b.else_():
            _statements(draw, scope.inner(), 2)


def _for(draw, scope: Scope) -> None:
    start, step = draw(st.integers(-2, 2)), draw(st.sampled_from([1, 2, -1]))
    kind = draw(st.sampled_from([i32, i64]))
    bounds = const(start, kind), const(start + step * draw(st.integers(0, 3)), kind)
    with scope.b.for_(draw(NAMES), *bounds, step, unroll=draw(st.booleans())) as var:
        inner = scope.inner()
        body = draw(st.sampled_from(["plain", "break", "continue"]))
        # The loop variable is only read: it goes through a scalar of its own.
        inner.scalars.append(scope.b.let(draw(NAMES), var))
        _statements(draw, inner, 2)
        if body != "plain":
            with scope.b.if_(draw(expressions(inner, boolean))):
                scope.b.break_() if body == "break" else scope.b.continue_()
            _statements(draw, inner, 1)


def _while(draw, scope: Scope) -> None:
    count = scope.b.let("count", const(draw(st.integers(0, 3))))
    with scope.b.while_(op("lt", 0, count)):
        scope.b.assign(count, op("sub", count, 1))
        _statements(draw, scope.inner(), 2)


_SIMPLE = (
    _full,
    _arange,
    _load_global,
    _store_global,
    _load_element,
    _through_shared,
    _through_copy_async,
    _cast,
    _copy,
    _convert_layout,
    _view,
    _elementwise,
    _reduce,
    _shapes,
    _dot,
    _print_and_assert,
    _ahead,
    _let,
)
_NESTED = (_if, _for, _while)


def _statements(draw, scope: Scope, most: int, kinds=_SIMPLE) -> None:
    for make in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=most)):
        make(draw, scope)


@st.composite
def programs(draw, machine: Target = TARGETS["vm"], *, portable: bool = False) -> Program:
    """A well-typed program that runs without fault on `arguments()`.

    Layouts in it are of the threads of a machine; with `portable` it names none.
    """
    b = Builder(draw(st.sampled_from(["kernel", "k2"])))
    inputs = {d: b.pointer(f"in_{d}", d, draw(st.sampled_from([1, 16]))) for d in INPUTS}
    outputs = {d: b.pointer(f"out_{d}", d, draw(st.sampled_from([2, 16]))) for d in OUTPUTS}
    n = b.scalar("n", i32, draw(st.sampled_from([1, 2, 4])))
    warps = draw(st.sampled_from([1, 2]))
    scope = Scope(b, inputs, outputs, n, machine, warps, portable)
    if draw(st.booleans()):
        b.inst(GridDependencyWait())
    _statements(draw, scope, 8, _SIMPLE + _NESTED)
    _store_global(draw, scope)
    return b.program((op("floordiv", n, 2), *((const(1),) if draw(st.booleans()) else ())), warps, producer=warps == 2)


def arguments(seed: int = 0) -> list[np.ndarray | int]:
    """Buffers for the parameters of `programs()`; outputs hold something, so that what is not written is seen."""
    rng = np.random.default_rng(seed)
    made: list[np.ndarray | int] = []
    for d in INPUTS:
        made.append(_buffer(d, d.encode(rng.integers(-7 if d.is_signed else 0, 8, INPUT_SIZE))))
    made += [_buffer(d, d.encode(np.arange(OUTPUT_SIZE) % 13)) for d in OUTPUTS]
    return [*made, 2 * BLOCKS]


def _buffer(d: DataType, codes: np.ndarray) -> np.ndarray:
    return d.pack(codes) if d.numpy_dtype is None else codes.view(d.numpy_dtype)
