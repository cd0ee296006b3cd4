"""Emitters of instructions on memory, of copies, and of those that report to the host."""

from __future__ import annotations

from tilus.codegen.llvm import casts
from tilus.codegen.llvm.builder import Builder, Value, constant
from tilus.codegen.llvm.context import Context, register
from tilus.codegen.llvm.expr import condition, index, scalar
from tilus.codegen.llvm.in_place import defer_load
from tilus.codegen.llvm.memory import (
    copy_tile,
    global_place,
    load_element,
    memory_type,
    read_tile,
    shared_place,
    tile_loop,
    write_tile,
)
from tilus.codegen.llvm.types import storage
from tilus.dtypes import DataType
from tilus.errors import CodegenError
from tilus.ir.expr import Tensor, Var, dtype_of
from tilus.ir.instructions import (
    AllocShared,
    Assert,
    AtomicAdd,
    CopyAsync,
    GlobalView,
    Instruction,
    LoadElement,
    LoadGlobal,
    LoadShared,
    Print,
    StoreGlobal,
    StoreShared,
)
from tilus.ir.stmt import InstStmt
from tilus.layouts import locate_table


def global_view(c: Context, s: InstStmt, out: Tensor, inst: GlobalView) -> None:
    """Remember the definition; views are values, not code."""
    c.views[out] = inst


def alloc_shared(c: Context, s: InstStmt, out: Tensor, inst: AllocShared) -> None:
    """Remember the place in the block's scratch memory."""
    c.shared[out] = inst


def _unmasked(s: InstStmt) -> tuple[int, ...]:
    return s.selected.unmasked if s.selected else ()


def load_global(c: Context, s: InstStmt, out: Tensor, inst: LoadGlobal) -> None:
    """Load a tile of a view."""
    place = global_place(c, inst.view, inst.offset, inst.dims, _unmasked(s))
    other = stored(place.dtype, inst.other)
    if not defer_load(c, place, out, inst.shape, other):
        read_tile(c, place, out, inst.shape, other)


def stored(dtype: DataType, value: float) -> Value:
    """Return a constant as it is stored: by its code for types that LLVM does not know."""
    kind = storage(dtype)
    return constant(kind, int(dtype.encode(value)) if kind.startswith("i") and not dtype.is_boolean else value)


def store_global(c: Context, s: InstStmt, out: None, inst: StoreGlobal) -> None:
    """Store a tile to a view."""
    write_tile(c, global_place(c, inst.view, inst.offset, inst.dims, _unmasked(s)), inst.tile)


def load_shared(c: Context, s: InstStmt, out: Tensor, inst: LoadShared) -> None:
    """Load a tile of a shared tensor."""
    place = shared_place(c, inst.src, inst.offset, inst.dims)
    other = stored(place.dtype, 0)
    if not defer_load(c, place, out, inst.shape, other):
        read_tile(c, place, out, inst.shape, other)


def store_shared(c: Context, s: InstStmt, out: None, inst: StoreShared) -> None:
    """Store a tile to a shared tensor."""
    write_tile(c, shared_place(c, inst.dst, inst.offset, inst.dims), inst.tile)


def copy_async(c: Context, s: InstStmt, out: None, inst: CopyAsync) -> None:
    """Copy at once: a CPU has nothing to overlap with."""
    source = global_place(c, inst.src, inst.src_offset, inst.src_dims, _unmasked(s))
    copy_tile(c, source, shared_place(c, inst.dst, inst.dst_offset, inst.dst_dims), inst.shape)


def load_scalar(c: Context, s: InstStmt, out: Var, inst: LoadElement) -> None:
    """Load one element as a scalar."""
    dtype = out.type.dtype
    pointer = c.b.load("ptr", c.scalars[inst.ptr])
    if out not in c.scalars:
        c.scalars[out] = c.b.alloca(storage(dtype), out.name)
    c.b.store(load_element(c.b, dtype, pointer, index(c, inst.index)), c.scalars[out])


def nothing(c: Context, s: InstStmt, out: None, inst: Instruction) -> None:
    """Write nothing: a block is one warp of SIMD lanes in lockstep, and copies are done at once."""


def no_cluster(c: Context, s: InstStmt, out: Tensor, inst: Instruction) -> None:
    """Refuse: blocks run one after another."""
    raise CodegenError("a CPU has no clusters of blocks", loc=inst.loc)


def atomic_add(c: Context, s: InstStmt, out: None, inst: AtomicAdd) -> None:
    """Add element by element."""
    place = global_place(c, inst.view, inst.offset, inst.dims, _unmasked(s))
    dtype = place.dtype
    if dtype.nbits < 8 or dtype.is_boolean:
        raise CodegenError(
            f"atomic_add of {dtype} is not possible on the cpu target", hint="use a type of whole bytes", loc=s.loc
        )
    element = memory_type(dtype)
    native = element in ("float", "double") or dtype.is_integer

    def visit(number: Value, value: Value) -> None:
        pointer = c.b.gep(element, place.pointer, number)
        if native:
            opcode = "add" if dtype.is_integer else "fadd"
            c.b.value(element, f"atomicrmw {opcode} {pointer}, {value} monotonic")
        else:
            _compare_and_swap(c.b, dtype, pointer, value)

    tile_loop(c, place, inst.tile, visit)


def _compare_and_swap(b: Builder, dtype: DataType, pointer: Value, value: Value) -> None:
    """Add to an element of a type without an atomic addition, by trying until nobody came between."""
    bits, name = f"i{dtype.nbits}", b.fresh("cas")
    addend, old = casts.decode(b, dtype, value), b.alloca(bits, "old")
    b.store(b.load(bits, pointer), old)
    b.branch(f"{name}.try")
    b.label(f"{name}.try")
    before = b.load(bits, old)
    current = casts.decode(b, dtype, b.convert("bitcast", before, value.type))
    total = b.convert("bitcast", casts.encode(b, dtype, b.op("fadd", current, addend)), bits)
    pair = b.value(f"{{ {bits}, i1 }}", f"cmpxchg {pointer}, {before}, {total} monotonic monotonic")
    b.store(b.value(bits, f"extractvalue {pair}, 0"), old)
    b.branch_if(b.value("i1", f"extractvalue {pair}, 1"), f"{name}.end", f"{name}.try")
    b.label(f"{name}.end")


def assert_(c: Context, s: InstStmt, out: None, inst: Assert) -> None:
    """Record the fault, unless another block was first, and stop this worker."""
    b = c.b
    where = f"{s.loc}: " if s.loc else ""
    c.messages.append(f"{where}assertion failed: {inst.message}")
    with b.when(b.op("xor", condition(c, inst.cond), True)):
        number = b.load("i64", Value("ptr", "%block"))
        pair = b.value("{ i64, i1 }", f"cmpxchg ptr %fault, i64 0, i64 {len(c.messages)} monotonic monotonic")
        with b.when(b.value("i1", f"extractvalue {pair}, 1")):
            b.store(number, b.gep("i64", Value("ptr", "%fault"), 1))
        b.line("ret void")
        b.label(b.fresh("after"))


def print_(c: Context, s: InstStmt, out: None, inst: Print) -> None:
    """Print by the C library, piece by piece; a tile prints its elements in row-major order."""
    pieces = inst.format.replace("{{", "\0").replace("}}", "\1").split("{}")
    texts = [p.replace("\0", "{").replace("\1", "}") for p in pieces]
    for text, arg in zip(texts, (*inst.args, None), strict=True):
        _printf(c.b, text.replace("%", "%%"))
        if isinstance(arg, Tensor):
            _print_tile(c, arg)
        elif arg is not None:
            _print_scalar(c.b, dtype_of(arg), scalar(c, arg))
    _printf(c.b, "\n")
    c.b.declare("i32", "fflush", ["ptr"])
    c.b.value("i32", "call i32 @fflush(ptr null)")


def _print_tile(c: Context, t: Tensor) -> None:
    kind, layout = register(t)
    lanes, places = locate_table(layout)
    values = c.read(t)
    for number, (lane, place) in enumerate(zip(lanes[..., 0].ravel(), places.ravel(), strict=True)):
        _printf(c.b, "[" if number == 0 else ", ")
        _print_scalar(c.b, kind.dtype, c.b.extract(values[place], int(lane)))
    _printf(c.b, "]")


def _print_scalar(b: Builder, dtype: DataType, value: Value) -> None:
    number = casts.decode(b, dtype, value)
    if dtype.is_float or dtype.is_codebook:
        _printf(b, "%g", b.convert("fpext", number, "double"))
    else:
        signed = dtype.is_signed and not dtype.is_boolean
        _printf(b, "%lld" if signed else "%llu", b.convert("sext" if signed else "zext", number, "i64"))


def _printf(b: Builder, text: str, *args: Value) -> None:
    if not text:
        return
    b.declarations["printf"] = "declare i32 @printf(ptr, ...)"
    data = [*text.encode(), 0]
    b.value("i32", f"call i32 (ptr, ...) @printf({', '.join(map(str, [b.table('i8', data), *args]))})")
