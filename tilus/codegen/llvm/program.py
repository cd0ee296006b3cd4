"""A lowered program as one LLVM function that runs a range of thread blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tilus.codegen.llvm import bits, effects, products, registers
from tilus.codegen.llvm.builder import Builder, Value, constant
from tilus.codegen.llvm.context import Context
from tilus.codegen.llvm.deferral import deferred_tensors, single_definitions
from tilus.codegen.llvm.expr import condition, scalar
from tilus.codegen.llvm.partial import partial_tensors
from tilus.codegen.llvm.types import storage
from tilus.errors import CodegenError, assert_never
from tilus.ir import instructions as I
from tilus.ir.program import Program
from tilus.ir.stmt import Assign, Break, Continue, For, If, InstStmt, Let, Stmt, While
from tilus.ir.target import Target
from tilus.ir.types import PointerType

SLOT = 8  # bytes of an argument
Emitter = Callable[[Context, Any, Any, Any], None]


def _plain(emit: Callable[[Context, Any, Any], None]) -> Emitter:
    """Adapt an emitter that does not look at the statement."""
    return lambda c, s, out, inst: emit(c, out, inst)


EMITTERS: dict[type[I.Instruction], Emitter] = {
    I.GlobalView: effects.global_view,
    I.LoadGlobal: effects.load_global,
    I.StoreGlobal: effects.store_global,
    I.AtomicAdd: effects.atomic_add,
    I.LoadElement: effects.load_scalar,
    I.AllocShared: effects.alloc_shared,
    I.LoadShared: effects.load_shared,
    I.StoreShared: effects.store_shared,
    I.CopyAsync: effects.copy_async,
    I.CommitGroup: effects.nothing,
    I.WaitGroup: effects.nothing,
    I.Sync: effects.nothing,
    I.Prefetch: effects.nothing,
    I.GridDependencyWait: effects.nothing,
    I.LaunchDependents: effects.nothing,
    I.ClusterSum: effects.no_cluster,
    I.Print: effects.print_,
    I.Assert: effects.assert_,
    I.Full: _plain(registers.full),
    I.Arange: _plain(registers.arange),
    I.Copy: _plain(registers.copy),
    I.Cast: _plain(registers.cast),
    I.View: _plain(bits.view),
    I.Unpack: _plain(bits.unpack),
    I.ConvertLayout: _plain(registers.convert_layout),
    I.Elementwise: _plain(registers.elementwise),
    I.Reduce: _plain(registers.reduce),
    I.Transpose: _plain(registers.transpose),
    I.Reshape: _plain(registers.reshape),
    I.Slice: _plain(registers.slice_),
    I.Dot: _plain(products.dot),
}


@dataclass(frozen=True, slots=True)
class LlvmSource:
    """LLVM IR of a kernel: `void kernel(ptr args, i64 first, i64 last, ptr scratch, ptr fault)`.

    Attributes
    ----------
    text : str
    kernel_name : str
    scratch_bytes : int
        Shared memory of a block.
    messages : tuple of str
        Messages of `assert_`: the kernel writes the number of the failed one (from 1) and the block into `fault`.
    """

    text: str
    kernel_name: str
    scratch_bytes: int
    messages: tuple[str, ...]


def emit(program: Program, target: Target, features: Iterable[str] = ()) -> LlvmSource:
    """Return LLVM IR for a program lowered for the cpu target.

    Parameters
    ----------
    program : Program
    target : Target
    features : iterable of str
        What LLVM says that the CPU has, such as `avx2`: instructions that LLVM would not find by itself are used.
    """
    if program.num_threads is None or program.shared_bytes is None:
        raise CodegenError(f"{program.name!r} is not lowered", hint="call passes.pipeline.lower(program, target) first")
    parts = partial_tensors(program)
    c = Context(
        Builder(program.num_threads, frozenset(features)),
        parts=parts,
        deferrable=deferred_tensors(program) - parts.keys(),
        single=single_definitions(program),
    )
    _prologue(c, program)
    _blocks(c, program)
    return LlvmSource(_module(c, program.name), program.name, program.shared_bytes, tuple(c.messages))


def _slot(c: Context, number: int) -> Value:
    return c.b.gep("i8", Value("ptr", "%args"), number * SLOT)


def _prologue(c: Context, program: Program) -> None:
    """Load the arguments into variables."""
    for number, param in enumerate(program.params):
        kind = param.var.type
        type_ = "ptr" if isinstance(kind, PointerType) else storage(kind.dtype)
        c.scalars[param.var] = c.b.alloca(type_, param.var.name)
        c.b.store(c.b.load(type_, _slot(c, number)), c.scalars[param.var])


def _blocks(c: Context, program: Program) -> None:
    """Loop over the blocks of the range; block ids count axis 0 fastest."""
    b, count = c.b, len(program.params)
    extents = [b.load("i64", _slot(c, count + axis)) for axis in range(3)]
    b.entry.append("  %block = alloca i64")
    block = Value("ptr", "%block")
    b.store(Value("i64", "%first"), block)
    b.branch("blocks.test")
    b.label("blocks.test")
    number = b.load("i64", block)
    b.branch_if(b.compare("icmp slt", number, Value("i64", "%last")), "blocks.body", "blocks.end")
    b.label("blocks.body")
    rest = number
    for axis in range(2):
        c.block_ids.append(b.convert("trunc", b.op("urem", rest, extents[axis]), "i32"))
        rest = b.op("udiv", rest, extents[axis])
    c.block_ids.append(b.convert("trunc", rest, "i32"))
    body(c, program.body)
    b.store(b.op("add", number, 1), block)
    b.branch("blocks.test")
    b.label("blocks.end")
    b.line("ret void")


def body(c: Context, statements: tuple[Stmt, ...]) -> None:
    """Write statements in order."""
    for s in statements:
        statement(c, s)


def statement(c: Context, s: Stmt) -> None:
    """Write one statement."""
    match s:
        case InstStmt(out=out, inst=inst):
            EMITTERS[type(inst)](c, s, out, inst)
        case Let(var=var, value=value):
            if var not in c.scalars:
                c.scalars[var] = c.b.alloca(storage(var.type.dtype), var.name)
            c.b.store(scalar(c, value), c.scalars[var])
        case Assign(var=var, value=value):
            c.b.store(scalar(c, value), c.scalars[var])
        case If():
            _if(c, s)
        case For():
            _for(c, s)
        case While():
            _while(c, s)
        case Continue():
            _jump(c, c.loops[-1][0])
        case Break():
            _jump(c, c.loops[-1][1])
        case _:
            assert_never(s)


def _jump(c: Context, label: str) -> None:
    c.b.branch(label)
    c.b.label(c.b.fresh("after"))


def _if(c: Context, s: If) -> None:
    b, name = c.b, c.b.fresh("if")
    b.branch_if(condition(c, s.cond), f"{name}.then", f"{name}.else")
    for label, statements in (("then", s.then), ("else", s.orelse)):
        b.label(f"{name}.{label}")
        body(c, statements)
        b.branch(f"{name}.end")
    b.label(f"{name}.end")


def _for(c: Context, s: For) -> None:
    b, name = c.b, c.b.fresh("for")
    dtype = s.var.type.dtype
    counter = c.scalars[s.var] = b.alloca(storage(dtype), s.var.name)
    b.store(scalar(c, s.start), counter)
    stop = scalar(c, s.stop)
    b.branch(f"{name}.test")
    b.label(f"{name}.test")
    predicate = ("slt" if s.step > 0 else "sgt") if dtype.is_signed else ("ult" if s.step > 0 else "ugt")
    b.branch_if(b.compare(f"icmp {predicate}", b.load(storage(dtype), counter), stop), f"{name}.body", f"{name}.end")
    b.label(f"{name}.body")
    c.loops.append((f"{name}.next", f"{name}.end"))
    body(c, s.body)
    c.loops.pop()
    b.branch(f"{name}.next")
    b.label(f"{name}.next")
    b.store(b.op("add", b.load(storage(dtype), counter), constant(storage(dtype), s.step)), counter)
    b.branch(f"{name}.test")
    b.label(f"{name}.end")


def _while(c: Context, s: While) -> None:
    b, name = c.b, c.b.fresh("while")
    b.branch(f"{name}.test")
    b.label(f"{name}.test")
    b.branch_if(condition(c, s.cond), f"{name}.body", f"{name}.end")
    b.label(f"{name}.body")
    c.loops.append((f"{name}.test", f"{name}.end"))
    body(c, s.body)
    c.loops.pop()
    b.branch(f"{name}.test")
    b.label(f"{name}.end")


def _module(c: Context, name: str) -> str:
    """Put the pieces of a module together."""
    tables = [f"@{n} = private unnamed_addr constant {text}" for n, text in c.b.globals_.items()]
    header = f"define void @{name}(ptr noalias %args, i64 %first, i64 %last, ptr noalias %scratch, ptr %fault) {{"
    function = [header, "entry:", *c.b.entry, "  br label %start", "start:", *c.b.lines, "}"]
    return "\n".join([*tables, *c.b.declarations.values(), *function, *c.b.nodes]) + "\n"
