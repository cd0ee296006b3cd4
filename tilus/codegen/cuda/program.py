"""A lowered program as the text of one CUDA kernel."""

from __future__ import annotations

from math import prod

from tilus.codegen.cuda import bank_tables, cpp, ring
from tilus.codegen.cuda.casts import cast_call
from tilus.codegen.cuda.context import Context, place_behind, register
from tilus.codegen.cuda.cpp import Expr, Name
from tilus.codegen.cuda.emit_global import selected_of
from tilus.codegen.cuda.fusion import find_fusions
from tilus.codegen.cuda.registry import EMITTERS
from tilus.codegen.cuda.scalars import not_negative_variables, scalar
from tilus.codegen.cuda.scopes import Place, declarations
from tilus.codegen.cuda.shared_tile import storage
from tilus.codegen.cuda.source import CudaSource, prelude
from tilus.codegen.cuda.types import c_type, signed
from tilus.codegen.cuda.values import decode
from tilus.codegen.cuda.words import words_of
from tilus.dtypes import DataType
from tilus.errors import CodegenError, TilusError, assert_never
from tilus.ir.expr import Const, Tensor, Var, dtype_of
from tilus.ir.instructions import INSTRUCTIONS, CopyAsync
from tilus.ir.node import children
from tilus.ir.producer import consumer_of, find_pipeline, producer_of
from tilus.ir.program import Program
from tilus.ir.stmt import Assign, Break, Continue, For, If, InstStmt, Let, Stmt, While, inst_stmts
from tilus.ir.target import Target
from tilus.ir.types import PointerType, RegisterType, SharedType

_SHARED_ALIGNMENT = 1024
# How scalars are passed; types that are not here come as their code, in bytes.
_PARAMETERS = {
    "bool": "bool", "i8": "signed char", "u8": "u8", "i16": "short", "u16": "unsigned short", "i32": "i32",
    "u32": "u32", "i64": "i64", "u64": "u64", "f32": "float", "tf32": "float", "f64": "double",
}  # fmt: skip
_CODES = {8: "u8", 16: "unsigned short"}


def emit(program: Program, target: Target) -> CudaSource:
    """Return CUDA C++ for a lowered program.

    Parameters
    ----------
    program : Program
        What `passes.pipeline.lower(program, target)` returned.
    target : Target
        A CUDA target.

    Raises
    ------
    CodegenError
        If the program is not lowered, or has something that the target cannot do.
    """
    if program.num_threads is None or program.shared_bytes is None or target.kind != "cuda":
        raise CodegenError(
            f"{program.name!r} is not lowered for a CUDA target (the target is {target.name})",
            loc=program.loc,
            hint="call passes.pipeline.lower(program, target) first",
        )
    ctx = Context(target, program.num_threads, program.shared_bytes)
    ctx.not_negative = not_negative_variables(program)
    ctx.cluster = prod(program.cluster)
    name = ctx.names.fresh(program.name)
    with ctx.body() as body:
        params = [_parameter(ctx, p.var) for p in program.params]
        _body(ctx, program)
    return _source(ctx, program, name, params, body)


def _body(ctx: Context, program: Program) -> None:
    """Write all statements: of a program with a producer what each kind of warp does."""
    pipeline = find_pipeline(program, ctx.target)
    if pipeline is None:
        _Writer(ctx, program).write()
        return
    atoms = {selected_of(s).atom for s in inst_stmts(program) if isinstance(s.inst, CopyAsync)}
    ctx.ring = ring.Ring(pipeline.stages, ctx.num_threads, deals="cp.async" in atoms)
    with ctx.body() as consumer:
        _Writer(ctx, consumer_of(program, pipeline)).write()
    ctx.is_producer = True
    with ctx.body() as producer:
        _Writer(ctx, producer_of(program, pipeline)).write()
        ring.end(ctx, ctx.ring)
    ctx.emit(cpp.If(ctx.ring.is_consumer, tuple(consumer), tuple(producer)))


def _source(ctx: Context, program: Program, name: str, params: list[str], body: list[cpp.Stmt]) -> CudaSource:
    """Return the whole text, around the body of the kernel."""
    shared = ctx.scratch_offset + ctx.scratch_bytes if ctx.scratch_bytes else program.shared_bytes or 0
    tables = place_behind(shared)
    shared = tables + bank_tables.nbytes(ctx) if ctx.bank_tables else shared
    barriers = place_behind(shared)
    shared = barriers + ctx.ring.nbytes if ctx.ring else shared
    if shared > ctx.target.max_shared_bytes:
        raise CodegenError(
            f"{program.name!r} needs {shared} bytes of shared memory with the scratch space of its reductions, "
            f"{ctx.target.name} has {ctx.target.max_shared_bytes}",
            loc=program.loc,
            hint="use smaller tiles or fewer pipeline stages",
        )
    head: list[cpp.Stmt] = [cpp.Declare("u32", "tid", Name("threadIdx.x"), constant=True)]
    if shared:
        head.append(cpp.Declare("u32", "smem", ctx.ptx("shared_address", Name("smem_bytes")), constant=True))
    head += bank_tables.fill(ctx, tables)
    head += ring.begin(ctx, ctx.ring, barriers) if ctx.ring else []
    lines = prelude(ctx)
    cluster = f"__cluster_dims__{(*program.cluster, 1, 1)[:3]} " if program.cluster else ""
    lines.add(f'extern "C" __global__ void {cluster}__launch_bounds__({ctx.block_threads}) {name}(')
    lines.add(f"    {', '.join(params)}) {{")
    if shared:
        lines.add(f"extern __shared__ __align__({_SHARED_ALIGNMENT}) u8 smem_bytes[];", 1)
    lines.body([*head, *ctx.head(), *body], 1)
    lines.add("}")
    windows = tuple((line, w.start, w.stop) if w else (line, 0, shared) for line, w in lines.windows)
    text = "\n".join(lines.lines) + "\n"
    return CudaSource(text, name, shared, ctx.block_threads, tuple(lines.places), windows, ctx.dependent)


def _parameter(ctx: Context, var: Var) -> str:
    name = ctx.declare(var)
    if isinstance(var.type, PointerType):
        return f"u8* {name}"
    dtype = var.type.dtype
    if dtype.name in _PARAMETERS:
        return f"{_PARAMETERS[dtype.name]} {name}"
    code = ctx.names.fresh(f"{name}_code")
    value = decode(ctx, dtype, cpp.convert("u32", Name(code)))
    ctx.emit(cpp.Declare(c_type(dtype), name, value, constant=True))
    return f"{_CODES[-(-dtype.nbits // 8) * 8]} {code}"


class _Writer:
    """Writes the statements of a program."""

    def __init__(self, ctx: Context, program: Program) -> None:
        self.ctx, self.program = ctx, program
        self.declared = declarations(program)
        self.fusions = find_fusions(program)
        self.assigned = _assigned(program.body)

    def write(self) -> None:
        """Write them."""
        self._body(self.program.body, ())

    def _body(self, body: tuple[Stmt, ...], prefix: Place, branch: int = 0) -> None:
        for number, stmt in enumerate(body):
            place = (*prefix, (branch, number))
            self._mark(stmt)
            self._declare(place, stmt)
            try:
                self._statement(stmt, place)
            except TilusError as error:
                if error.loc is None:
                    error.loc = stmt.loc or (stmt.inst.loc if isinstance(stmt, InstStmt) else None)
                raise

    def _mark(self, stmt: Stmt) -> None:
        """Say what a line is, and remember where it comes from."""
        loc = stmt.loc
        text = ""
        if isinstance(stmt, InstStmt):
            loc = stmt.inst.loc or loc
            text = _remark(self.ctx, stmt)
        if text or loc is not None:
            self.ctx.emit(cpp.Comment(text, loc, self._window(stmt)))

    def _window(self, stmt: Stmt) -> range | None:
        """Return the bytes of the shared tensor that a statement accesses; None if it is not one that does."""
        operands = children(stmt.inst) if isinstance(stmt, InstStmt) else ()
        tensors = [n for n in operands if isinstance(n, Tensor) and isinstance(n.type, SharedType)]
        if len(tensors) != 1:
            return None
        start = self.ctx.shared_offsets[tensors[0]]
        return range(start, start + storage(tensors[0]))

    def _declare(self, place: Place, stmt: Stmt) -> None:
        """Declare what belongs before a statement; a scalar's first value is its declaration."""
        for var in self.declared.get(place, ()):
            name = self.ctx.declare(var)
            if isinstance(var.type, RegisterType):
                self.ctx.emit(cpp.Declare("u32", name, extent=max(words_of(register(var)), 1)))
            elif isinstance(var, Var) and not (isinstance(stmt, Let) and stmt.var is var):
                self.ctx.emit(cpp.Declare(c_type(dtype_of(var)), name))

    def _statement(self, stmt: Stmt, place: Place) -> None:
        ctx = self.ctx
        match stmt:
            case InstStmt():
                self._instruction(stmt)
            case Let(var=var, value=value):
                self._let(var, scalar(ctx, value), place)
            case Assign(var=var, value=value):
                ctx.emit(cpp.Set(ctx.name(var), scalar(ctx, value)))
            case If(cond=cond, then=then, orelse=orelse):
                branches = [self._collect(b, place, i) for i, b in enumerate((then, orelse))]
                ctx.emit(cpp.If(scalar(ctx, cond), *branches))
            case For():
                self._for(stmt, place)
            case While(cond=cond, body=body):
                with ctx.loop():
                    ctx.emit(cpp.While(scalar(ctx, cond), self._collect(body, place, 0)))
            case Break():
                ctx.emit(cpp.Jump("break"))
            case Continue():
                ctx.emit(cpp.Jump("continue"))
            case _:
                assert_never(stmt)

    def _instruction(self, stmt: InstStmt) -> None:
        if id(stmt) in self.fusions.absorbed:
            self.ctx.emit(cpp.Comment("done by the addition that follows"))
        elif id(stmt) in self.fusions.offsets and isinstance(stmt.out, Tensor):
            self.ctx.emit(cast_call(self.ctx, stmt.out, *self.fusions.offsets[id(stmt)]))
        else:
            EMITTERS[type(stmt.inst)](self.ctx, stmt, stmt.out, stmt.inst)

    def _collect(self, body: tuple[Stmt, ...], place: Place, branch: int) -> tuple[cpp.Stmt, ...]:
        with self.ctx.body() as statements:
            self._body(body, place, branch)
        return tuple(statements)

    def _let(self, var: Var, value: Expr, place: Place) -> None:
        if var in self.declared.get(place, ()):
            self.ctx.emit(cpp.Declare(c_type(dtype_of(var)), self.ctx.declare(var), value))
        else:
            self.ctx.emit(cpp.Set(self.ctx.name(var), value))

    def _for(self, stmt: For, place: Place) -> None:
        """Count. The bound is read once, before the loop."""
        ctx, dtype = self.ctx, dtype_of(stmt.var)
        start, stop = (signed(dtype, scalar(ctx, x)) if not isinstance(x, Const) else cpp.Int(int(x.value))
                       for x in (stmt.start, stmt.stop))  # fmt: skip
        kind = _counter(dtype)
        name = ctx.declare(stmt.var)
        with ctx.block():
            if not isinstance(stmt.stop, Const) and not (isinstance(stmt.stop, Var) and stmt.stop not in self.assigned):
                stop = ctx.constant(kind, f"{name}_stop", cpp.convert(kind, stop))
            with ctx.loop():
                body = self._collect(stmt.body, place, 0)
            ctx.emit(cpp.For(kind, name, start, stop, stmt.step, body, stmt.unroll))


def _counter(dtype: DataType) -> str:
    return f"{'i' if dtype.is_signed else 'u'}{max(dtype.nbits, 32)}"


def _assigned(body: tuple[Stmt, ...]) -> set[Var]:
    """Return the variables that are given new values somewhere."""
    found: set[Var] = set()
    for stmt in body:
        match stmt:
            case Assign(var=var):
                found.add(var)
            case If(then=then, orelse=orelse):
                found |= _assigned(then) | _assigned(orelse)
            case For(body=inner) | While(body=inner):
                found |= _assigned(inner)
            case _:
                pass
    return found


def _remark(ctx: Context, stmt: InstStmt) -> str:
    name = INSTRUCTIONS[type(stmt.inst)].name
    left = f"{ctx.declare(stmt.out)} = " if stmt.out is not None else ""
    if stmt.selected is None:
        return f"{left}{name}"
    note = f" ({stmt.selected.note})" if stmt.selected.note else ""
    return f"{left}{name}: {stmt.selected.atom}{note}"
