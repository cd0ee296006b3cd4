"""Emitters of the instructions on global memory."""

from __future__ import annotations

from tilus.codegen.cuda import cpp, vectors
from tilus.codegen.cuda.context import Context, View, layout_of, register
from tilus.codegen.cuda.cpp import Call, Expr, Name, Stmt, call
from tilus.codegen.cuda.global_tile import GlobalTile
from tilus.codegen.cuda.placement import is_first_replica, local_indices, thread_terms
from tilus.codegen.cuda.scalars import scalar, wide
from tilus.codegen.cuda.values import bits_float, decode
from tilus.codegen.cuda.words import element, words_of
from tilus.dtypes import DataType
from tilus.errors import CodegenError
from tilus.ir import instructions as I
from tilus.ir.expr import Tensor, Var, dtype_of
from tilus.ir.stmt import InstStmt, Selected
from tilus.ir.types import PointerType

_BYTE = 8


def selected_of(stmt: InstStmt) -> Selected:
    """Return what was selected for a statement."""
    if stmt.selected is None:
        raise CodegenError(
            f"no hardware instruction is selected for {type(stmt.inst).__name__}",
            loc=stmt.inst.loc,
            hint="lower the program first: passes.pipeline.lower(program, target)",
        )
    return stmt.selected


def global_view(ctx: Context, stmt: InstStmt, out: Tensor, inst: I.GlobalView) -> None:
    """Name the extents and strides of a view; there is no code otherwise."""
    name = ctx.declare(out)
    extents: list[Expr] = []
    strides: list[Expr] = []
    for d, (extent, stride) in enumerate(zip(inst.shape, inst.strides, strict=True)):
        kind = "u64" if dtype_of(extent).nbits == 64 else "u32"
        extents.append(ctx.constant(kind, f"{name}_n{d}", scalar(ctx, extent)))
        strides.append(ctx.constant("i64", f"{name}_s{d}", wide(ctx, stride)))
    is_wide = tuple(dtype_of(extent).nbits == 64 for extent in inst.shape)
    ctx.views[out] = View(inst.ptr, tuple(extents), tuple(strides), is_wide)


def load_global(ctx: Context, stmt: InstStmt, out: Tensor, inst: I.LoadGlobal) -> None:
    """Load a tile, vector by vector."""
    kind, layout, selected = register(out), layout_of(out), selected_of(stmt)
    tile = GlobalTile(ctx, inst.view, inst.offset, inst.dims, thread_terms(ctx, layout), selected.unmasked)
    indices, nbits = local_indices(layout), kind.dtype.nbits
    array = ctx.name(out)

    def fetch(i: int, bits: int, words: Expr) -> None:
        condition = tile.inside(indices[i])
        if bits % _BYTE:
            with ctx.where(condition):
                value = call(_load_bits(ctx), tile.pointer, tile.bit(indices[i]), bits)
                ctx.emit(cpp.Set(words[0], value))
        elif condition == cpp.TRUE:
            ctx.do(f"ld_global_b{bits}", words, tile.address(indices[i]))
        elif condition != cpp.FALSE:
            ctx.do(f"ld_global_b{bits}_if", words, tile.address(indices[i]), condition)

    other = int(kind.dtype.encode(inst.other)) if tile.is_masked else None
    vectors.load(ctx, array, nbits, layout.local_size, selected.width, fetch, other)


def _load_bits(ctx: Context) -> str:
    """Return the function that loads at most 8 bits that begin anywhere in a byte."""
    at, value, n, v = Name("at"), Name("value"), Name("n"), Name("v")
    body: tuple[Stmt, ...] = (
        cpp.Declare("const u8*", "at", Name("p") + (Name("bit") >> 3)),
        cpp.Declare("u32", "shift", cpp.convert("u32", Name("bit")) & 7, constant=True),
        cpp.Declare("u32", "v", extent=2),
        cpp.Set(v[1], cpp.ZERO),
        cpp.Do(ctx.ptx("ld_global_b8", v, at)),
        cpp.Do(ctx.ptx("ld_global_b8_if", v + 1, at + 1, cpp.Binary(">", Name("shift") + n, cpp.Int(_BYTE)))),
        cpp.Declare("u32", "value", (v[0] | (v[1] << _BYTE)) >> Name("shift"), constant=True),
        cpp.Jump("return", value & ((cpp.Name("1u") << n) - 1)),
    )
    return ctx.add_function(cpp.Function("load_bits", "u32", ("const u8* p", "i64 bit", "u32 n"), body))


def _store_bits(ctx: Context) -> str:
    """Return the function that stores at most 8 bits without touching their neighbours, which other threads store.

    Every bit belongs to one thread, so clearing and setting need not be one step; the aligned words that hold a byte of
    a buffer are the buffer's own, because memory is given out in larger pieces.
    """
    at, shift, bits = Name("at"), Name("shift"), Name("bits")
    word = cpp.convert("void*", cpp.binary("&", at, cpp.Unary("~", Name("3ull"))))
    after = cpp.convert("void*", cpp.binary("&", at, cpp.Unary("~", Name("3ull"))) + 4)
    mask = Name("mask")

    def change(where: Expr, first: int) -> tuple[Call, Call]:
        part = [cpp.convert("u32", x >> first) for x in (mask, bits)]
        return ctx.ptx("red_and_b32", where, cpp.Unary("~", part[0])), ctx.ptx("red_or_b32", where, part[1])

    low, high = change(word, 0), change(after, 32)
    body: tuple[Stmt, ...] = (
        cpp.Declare("u64", "at", cpp.convert("u64", Name("p")) + (Name("bit") >> 3), constant=True),
        cpp.Declare("u32", "shift", (cpp.convert("u32", at) & 3) * _BYTE + (cpp.convert("u32", Name("bit")) & 7)),
        cpp.Declare("u64", "mask", ((Name("1ull") << Name("n")) - 1) << shift, constant=True),
        cpp.Declare("u64", "bits", cpp.binary("&", cpp.convert("u64", Name("value")) << shift, mask), constant=True),
        *(cpp.Do(c) for c in low),
        cpp.If(cpp.binary("!=", mask >> 32, 0), tuple(cpp.Do(c) for c in high)),
    )
    params = ("u8* p", "i64 bit", "u32 n", "u32 value")
    return ctx.add_function(cpp.Function("store_bits", "void", params, body))


def store_global(ctx: Context, stmt: InstStmt, out: None, inst: I.StoreGlobal) -> None:
    """Store a tile, vector by vector; of replicas the first does it."""
    kind, layout, selected = register(inst.tile), layout_of(inst.tile), selected_of(stmt)
    tile = GlobalTile(ctx, inst.view, inst.offset, inst.dims, thread_terms(ctx, layout), selected.unmasked)
    indices, first = local_indices(layout), is_first_replica(ctx, layout)

    def send(i: int, bits: int, words: Expr) -> None:
        condition = cpp.all_of([first, tile.inside(indices[i])])
        if bits % _BYTE:
            with ctx.where(condition):
                ctx.emit(cpp.Do(call(_store_bits(ctx), tile.pointer, tile.bit(indices[i]), bits, words[0])))
        elif condition == cpp.TRUE:
            ctx.do(f"st_global_b{bits}", tile.address(indices[i]), words)
        elif condition != cpp.FALSE:
            ctx.do(f"st_global_b{bits}_if", tile.address(indices[i]), words, condition)

    vectors.store(ctx, ctx.name(inst.tile), kind.dtype.nbits, layout.local_size, selected.width, send)


def atomic_add(ctx: Context, stmt: InstStmt, out: None, inst: I.AtomicAdd) -> None:
    """Add element by element; of replicas the first does it."""
    kind, layout, selected = register(inst.tile), layout_of(inst.tile), selected_of(stmt)
    tile = GlobalTile(ctx, inst.view, inst.offset, inst.dims, thread_terms(ctx, layout), selected.unmasked)
    first, array, words = is_first_replica(ctx, layout), ctx.name(inst.tile), words_of(kind)
    for i, index in enumerate(local_indices(layout)):
        with ctx.where(cpp.all_of([first, tile.inside(index)])):
            code = element(array, words, i, kind.dtype.nbits)
            ctx.emit(cpp.Do(_add(ctx, kind.dtype, tile.address(index), code)))


def _add(ctx: Context, dtype: DataType, pointer: Expr, code: Expr) -> Call:
    match dtype.name:
        case "f32":
            return ctx.ptx("red_add_f32", pointer, bits_float(code))
        case "f64":
            return ctx.ptx("red_add_f64", pointer, decode(ctx, dtype, code))
        case "i32" | "u32" | "i64" | "u64":
            return ctx.ptx(f"red_add_u{dtype.nbits}", pointer, code)
        case "f16":
            return ctx.ptx("red_add_f16", pointer, code)
        case "bf16":
            return ctx.ptx("red_add_bf16", pointer, code) if ctx.has("red_add_bf16") else _swap_bf16(ctx, pointer, code)
        case _:
            raise CodegenError(
                f"no atomic addition of {dtype} on {ctx.target.name}",
                hint="cast the tile and the memory to f32, f16, bf16 or a 32- or 64-bit integer",
            )


def _swap_bf16(ctx: Context, pointer: Expr, code: Expr) -> Call:
    """Add by compare and swap: the instruction came with compute capability 9.0."""
    old, seen, p = Name("old"), Name("seen"), Name("p")
    total = cpp.Binary("+", bits_float(old << 16), bits_float(Name("a") << 16))
    swap = ctx.ptx("cas_b16", p, old, ctx.ptx("cvt_bf16_f32", total))
    body: tuple[Stmt, ...] = (
        cpp.Declare("u32", "old"),
        cpp.Declare("u32", "seen", extent=1),
        cpp.Set(seen[0], ctx.ptx("cas_b16", p, cpp.ZERO, cpp.ZERO)),  # a load would race with the others' swaps
        cpp.While(
            cpp.TRUE,
            (
                cpp.Set(old, seen[0]),
                cpp.Set(seen[0], swap),
                cpp.If(cpp.binary("==", seen[0], old), (cpp.Jump("break"),)),
            ),
        ),
    )
    name = ctx.add_function(cpp.Function("add_bf16", "void", ("void* p", "u32 a"), body))
    return call(name, pointer, code)


def load_element(ctx: Context, stmt: InstStmt, out: Var, inst: I.LoadElement) -> None:
    """Load one element as a scalar, in every thread."""
    assert isinstance(inst.ptr.type, PointerType)
    dtype, pointer = inst.ptr.type.dtype, ctx.name(inst.ptr)
    if not dtype.is_bit_packed:
        raise CodegenError(f"single elements of {dtype} cannot be loaded: they are no stream of bits", loc=inst.loc)
    position = wide(ctx, inst.index) * dtype.nbits
    if dtype.nbits % _BYTE:
        code: Expr = call(_load_bits(ctx), pointer, position, dtype.nbits)
    else:
        words = max(dtype.nbits // 32, 1)
        array = ctx.array("part", words)
        ctx.do(f"ld_global_b{dtype.nbits}", array, pointer + wide(ctx, inst.index) * (dtype.nbits // _BYTE))
        code = element(array, words, 0, dtype.nbits) if dtype.nbits >= 32 else array[0]
    ctx.emit(cpp.Set(ctx.name(out), decode(ctx, dtype, code)))
