"""PTX instructions as data: one row for each that is written inline, made into a device function where it is used.

A row gives the template, the operands in the order of their numbers, and where the PTX ISA manual describes it. The
constraint of an operand follows from its type.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from tilus.codegen.cuda import cpp
from tilus.ir.atoms import MMA_ATOMS, MmaAtom
from tilus.ir.target import DEPENDENT_LAUNCH

PREFIX = "ptx_"
_CONSTRAINTS = {
    "u32": "r", "i32": "r", "bool": "r", "u64": "l", "i64": "l", "float": "f", "double": "d",
    "void*": "l", "const void*": "l",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Operand:
    """An operand of a row: one value, or `count` registers of an array.

    Attributes
    ----------
    name, type : str
    count : int
        0 for a single value.
    updated : bool
        An output that keeps its old value where the instruction does not write it.
    """

    name: str
    type: str = "u32"
    count: int = 0
    updated: bool = False


@dataclass(frozen=True, slots=True)
class Ptx:
    """One instruction.

    Attributes
    ----------
    name : str
        Of the device function, without the prefix.
    template : str
        PTX text; `%n` is the n-th register of the output, then of the inputs.
    output : Operand or None
        A single value is returned, an array is the first argument.
    inputs : tuple of Operand
    section : str
        Of the PTX ISA manual.
    capability : int
        Ten times the least compute capability.
    memory : bool
        Reads or writes memory: stays in order with other such instructions.
    warp : bool
        Needs all lanes of the warp: must not move into a branch.
    """

    name: str
    template: str
    output: Operand | None
    inputs: tuple[Operand, ...]
    section: str
    capability: int = 80
    memory: bool = False
    warp: bool = False

    @property
    def function(self) -> str:
        """Name of the device function."""
        return PREFIX + self.name


def device_function(row: Ptx) -> cpp.Function:
    """Return the device function that runs one instruction."""
    out, params, outputs = row.output, [], []
    if out is not None:
        sign = "+" if out.updated else "="
        outputs = [(sign + _CONSTRAINTS[out.type], x) for x in _registers(out)]
        if out.count:
            params.append(f"{out.type}* {out.name}")
    params += [f"const {x.type}* {x.name}" if x.count else f"{x.type} {x.name}" for x in row.inputs]
    inputs = [(_CONSTRAINTS[x.type], _argument(x, register)) for x in row.inputs for register in _registers(x)]
    asm = cpp.Asm(row.template, tuple(outputs), tuple(inputs), row.memory, row.memory or row.warp)
    body: tuple[cpp.Stmt, ...] = (asm,)
    result = "void"
    if out is not None and not out.count:
        result = out.type
        body = (cpp.Declare(out.type, out.name), asm, cpp.Jump("return", cpp.Name(out.name)))
    return cpp.Function(row.function, result, tuple(params), body)


def _registers(operand: Operand) -> list[cpp.Expr]:
    name = cpp.Name(operand.name)
    return [name[i] for i in range(operand.count)] if operand.count else [name]


def _argument(operand: Operand, register: cpp.Expr) -> cpp.Expr:
    return cpp.convert("u32", register) if operand.type == "bool" else register


# --- helpers to write rows ------------------------------------------------------------------------------------------

_VECTORS = {8: ("u8", 1), 16: ("u16", 1), 32: ("b32", 1), 64: ("v2.b32", 2), 128: ("v4.b32", 4)}
_WHERE = Operand("condition", "bool")
_GUARD = "setp.ne.u32 p, %{}, 0; @p "


def _list(start: int, count: int) -> str:
    """Return `{%0, %1}`, or `%0` for a single register."""
    text = ", ".join(f"%{start + i}" for i in range(count))
    return f"{{{text}}}" if count > 1 else text


def _guarded(text: str, condition: int) -> str:
    return f"{{ .reg .pred p; {_GUARD.format(condition)}{text} }}"


def _loads_and_stores() -> Iterator[Ptx]:
    for nbits, (kind, count) in _VECTORS.items():
        out, data = Operand("d", count=count), Operand("s", count=count)
        address, pointer, target = Operand("address"), Operand("p", "const void*"), Operand("p", "void*")
        load, store = f"ld.global.{kind} {_list(0, count)}, [%{count}];", f"st.global.{kind} [%0], {_list(1, count)};"
        yield Ptx(f"ld_global_b{nbits}", load, out, (pointer,), "ld", memory=True)
        kept = Operand("d", count=count, updated=True)
        guarded = _guarded(load, count + 1)
        yield Ptx(f"ld_global_b{nbits}_if", guarded, kept, (pointer, _WHERE), "ld", memory=True)
        yield Ptx(f"st_global_b{nbits}", store, None, (target, data), "st", memory=True)
        guarded = _guarded(store, count + 1)
        yield Ptx(f"st_global_b{nbits}_if", guarded, None, (target, data, _WHERE), "st", memory=True)
        load, store = f"ld.shared.{kind} {_list(0, count)}, [%{count}];", f"st.shared.{kind} [%0], {_list(1, count)};"
        yield Ptx(f"ld_shared_b{nbits}", load, out, (address,), "ld", memory=True)
        yield Ptx(f"st_shared_b{nbits}", store, None, (address, data), "st", memory=True)
        guarded = _guarded(store, count + 1)
        yield Ptx(f"st_shared_b{nbits}_if", guarded, None, (address, data, _WHERE), "st", memory=True)


def _matrix_loads() -> Iterator[Ptx]:
    for count in (1, 2, 4):
        for suffix, trans in (("", ""), ("_trans", ".trans")):
            text = (
                f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{_list(0, count).strip('{}')}}}, [%{count}];"
            )
            out = Operand("d", count=count)
            yield Ptx(
                f"ldmatrix_x{count}{suffix}", text, out, (Operand("address"),), "ldmatrix", memory=True, warp=True
            )


def _async_copies() -> Iterator[Ptx]:
    # The last operand is how many bytes are read; the rest is written as zeros. .cg (16 bytes only) bypasses L1.
    operands = (Operand("address"), Operand("p", "const void*"), Operand("bytes"))
    for size in (4, 8, 16):
        cache = "cg" if size == 16 else "ca"
        text = f"cp.async.{cache}.shared.global [%0], [%1], {size}, %2;"
        yield Ptx(f"cp_async_{size}", text, None, operands, "cp.async", memory=True)
    yield Ptx("cp_async_commit", "cp.async.commit_group;", None, (), "cp.async.commit_group", memory=True)


def _barriers() -> Iterator[Ptx]:
    """In memory: for stages of copies, by threads or in bulk."""
    barrier, section = Operand("barrier"), "Parallel synchronization and communication instructions: mbarrier"
    test = "{ .reg .pred p; mbarrier.WAIT.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
    for name, capability in (("test_wait", 80), ("try_wait", 90)):
        text, inputs = test.replace("WAIT", name), (barrier, Operand("parity"))
        yield Ptx(f"mbarrier_{name}", text, Operand("d"), inputs, section, capability, memory=True)
    for name, text, operands, capability in (
        ("init", "mbarrier.init.shared::cta.b64 [%0], %1;", (barrier, Operand("arrivals")), 80),
        ("arrive", "{ .reg .b64 s; mbarrier.arrive.shared::cta.b64 s, [%0]; }", (barrier,), 80),
        ("expect", "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;", (barrier, Operand("bytes")), 90),
    ):
        yield Ptx(f"mbarrier_{name}", text, None, operands, section, capability, memory=True)
    text = "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];"
    yield Ptx("cp_async_arrive", text, None, (barrier,), "cp.async.mbarrier.arrive", memory=True)
    yield Ptx("fence_mbarrier_init", "fence.mbarrier_init.release.cluster;", None, (), "fence", 90, memory=True)
    yield Ptx("fence_proxy_async", "fence.proxy.async.shared::cta;", None, (), "fence", 90, memory=True)
    text = "{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }"
    section = "Parallel synchronization and communication instructions: elect.sync"
    yield Ptx("elect", text, Operand("d"), (), section, 90, memory=True, warp=True)


def _bulk_copies() -> Iterator[Ptx]:
    barrier = Operand("barrier")
    text = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
    inputs = (Operand("address"), Operand("p", "const void*"), Operand("bytes"), barrier)
    yield Ptx("cp_async_bulk", text, None, inputs, "cp.async.bulk", 90, memory=True)
    text = text.replace("bytes [", "bytes.L2::cache_hint [").replace(";", ", %4;")
    yield Ptx("cp_async_bulk_hint", text, None, (*inputs, Operand("policy", "u64")), "cp.async.bulk", 90, memory=True)
    for name in ("evict_first", "evict_unchanged"):
        text = f"createpolicy.fractional.L2::{name}.b64 %0, 1.0;"
        yield Ptx(f"policy_{name}", text, Operand("d", "u64"), (), "createpolicy", 80)
    text, piece = "cp.async.bulk.prefetch.L2.global [%0], %1;", (Operand("p", "const void*"), Operand("bytes"))
    yield Ptx("prefetch_bulk", text, None, piece, "cp.async.bulk.prefetch", 90, memory=True)


def _clusters() -> Iterator[Ptx]:
    section = "Parallel synchronization and communication instructions: barrier.cluster"
    for name, verb in (("arrive", "arrive.release"), ("wait", "wait.acquire")):
        yield Ptx(f"cluster_{name}", f"barrier.cluster.{verb}.aligned;", None, (), section, 90, memory=True, warp=True)
    text, inputs = "mapa.shared::cluster.u32 %0, %1, %2;", (Operand("address"), Operand("rank"))
    yield Ptx("mapa", text, Operand("d"), inputs, "mapa", 90)
    for nbits in (32, 64, 128):
        count = nbits // 32
        text = f"ld.shared::cluster{'' if count == 1 else f'.v{count}'}.b32 {_list(0, count)}, [%{count}];"
        out = Operand("d", count=count)
        yield Ptx(f"ld_cluster_b{nbits}", text, out, (Operand("address"),), "ld", 90, memory=True)


def _dependent_launches() -> Iterator[Ptx]:
    for name, verb in (("grid_dependency_wait", "wait"), ("launch_dependents", "launch_dependents")):
        yield Ptx(name, f"griddepcontrol.{verb};", None, (), "griddepcontrol", DEPENDENT_LAUNCH, memory=True)


@lru_cache(maxsize=64)
def barrier(threads: int) -> Ptx:
    """Return the row that waits for the threads of a block below a number; barrier 0 is that of all."""
    section = "Parallel synchronization and communication instructions: bar"
    return Ptx(f"barrier_{threads}", f"bar.sync 1, {threads};", None, (), section, memory=True, warp=True)


@lru_cache(maxsize=64)
def wait_group(pending: int) -> Ptx:
    """Return the row that waits until at most `pending` groups of copies are under way."""
    text = f"cp.async.wait_group {pending};"
    return Ptx(f"cp_async_wait_{pending}", text, None, (), "cp.async.wait_group", memory=True)


def _words(nbits: int, elements: int) -> int:
    return nbits * elements // 32


@lru_cache(maxsize=64)
def mma(atom: MmaAtom) -> Ptx:
    """Return the row of a matrix product; the accumulators are updated in place."""
    sizes = [
        _words(t.nbits, layout.local_size)
        for t, layout in ((atom.dtype, atom.a), (atom.dtype, atom.b), (atom.acc, atom.c))
    ]
    a, b, c = sizes
    regs = [_list(0, c), _list(c, a), _list(c + a, b), _list(0, c)]
    m, n, k = atom.shape
    name = f"mma_m{m}n{n}k{k}_{atom.acc}_{atom.dtype}"
    inputs = (Operand("a", count=a), Operand("b", count=b))
    text = f"{atom.name} {', '.join(regs)};"
    section = "Matrix multiply-accumulate operation using mma instruction"
    return Ptx(name, text, Operand("d", count=c, updated=True), inputs, section, atom.capability, warp=True)


def _simple(name: str, mnemonic: str, types: str, section: str, capability: int = 80, result: str = "u32") -> Ptx:
    """Return a row `mnemonic result, operands` with one value as its result; `types` names the operands' types."""
    inputs = tuple(Operand(f"{'abc'[i]}", t) for i, t in enumerate(types.split()))
    regs = ", ".join(f"%{i}" for i in range(len(inputs) + 1))
    return Ptx(name, f"{mnemonic} {regs};", Operand("d", result), inputs, section, capability)


def _half_arithmetic() -> Iterator[Ptx]:
    two, three = "u32 u32", "u32 u32 u32"
    for op in ("add", "sub", "mul"):
        yield _simple(f"{op}_f16x2", f"{op}.f16x2", two, f"Half precision floating point instructions: {op}")
    section = "Half precision floating point instructions: "
    for kind in ("f16x2", "bf16x2"):
        yield _simple(f"fma_{kind}", f"fma.rn.{kind}", three, section + "fma")
        for op in ("min", "max"):
            yield _simple(f"{op}_{kind}", f"{op}.NaN.{kind}", two, section + op)
    for op in ("min", "max"):
        yield _simple(f"{op}_f32", f"{op}.NaN.f32", "float float", f"Floating point instructions: {op}", result="float")


# A 16-bit register takes part in a conversion only as such: it is cut out of, or put into, a 32-bit one.
_LOW, _HIGH = "{ .reg .b16 t, u; mov.b32 {t, u}, %1; ", "{ .reg .b16 t; "


def _conversions() -> Iterator[Ptx]:
    section = "Data movement and conversion instructions: cvt"
    for kind in ("f16", "bf16"):
        # The first operand becomes the upper half.
        yield _simple(f"cvt_{kind}x2_f32", f"cvt.rn.{kind}x2.f32", "float float", section)
    for half, register in (("low", "t"), ("high", "u")):
        text = f"{_LOW}cvt.f32.f16 %0, {register}; }}"
        yield Ptx(f"cvt_f32_f16_{half}", text, Operand("d", "float"), (Operand("a"),), section)
    sources = {"f32": "float", "f64": "double", "s32": "i32", "u32": "u32", "s64": "i64", "u64": "u64"}
    for ptx_type, c_type in sources.items():
        text = f"{_HIGH}cvt.rn.f16.{ptx_type} t, %1; mov.b32 %0, {{t, 0}}; }}"
        yield Ptx(f"cvt_f16_{ptx_type}", text, Operand("d"), (Operand("a", c_type),), section)
    text = f"{_HIGH}cvt.rn.bf16.f32 t, %1; mov.b32 %0, {{t, 0}}; }}"
    yield Ptx("cvt_bf16_f32", text, Operand("d"), (Operand("a", "float"),), section)
    for kind in ("e4m3", "e5m2"):
        for half, register in (("low", "t"), ("high", "u")):
            text = f"{_LOW}cvt.rn.f16x2.{kind}x2 %0, {register}; }}"
            yield Ptx(f"cvt_f16x2_{kind}x2_{half}", text, Operand("d"), (Operand("a"),), section, 89)


def _atomics() -> Iterator[Ptx]:
    pointer = Operand("p", "void*")
    kinds = {"f32": ("f32", "float"), "f64": ("f64", "double"), "u32": ("u32", "u32"), "u64": ("u64", "u64")}
    for name, (suffix, c_type) in kinds.items():
        text = f"red.global.add.{suffix} [%0], %1;"
        yield Ptx(f"red_add_{name}", text, None, (pointer, Operand("a", c_type)), "red", memory=True)
    for name, capability in (("f16", 80), ("bf16", 90)):
        text = f"{{ .reg .b16 t, u; mov.b32 {{t, u}}, %1; red.global.add.noftz.{name} [%0], t; }}"
        yield Ptx(f"red_add_{name}", text, None, (pointer, Operand("a")), "red", capability, memory=True)
    for op in ("and", "or"):
        text = f"red.global.{op}.b32 [%0], %1;"
        yield Ptx(f"red_{op}_b32", text, None, (pointer, Operand("a")), "red", memory=True)
    text = (
        "{ .reg .b16 t, u, v; mov.b32 {t, u}, %2; mov.b32 {u, v}, %3; atom.global.cas.b16 t, [%1], t, u; "
        "mov.b32 %0, {t, 0}; }"
    )
    inputs = (pointer, Operand("a"), Operand("b"))
    yield Ptx("cas_b16", text, Operand("d"), inputs, "atom", memory=True)


def _others() -> Iterator[Ptx]:
    # As a function of CUDA it takes 3 bits of each nibble; the fourth spreads the sign of the byte.
    # Two constants in one operation: the compiler, left alone, takes two operations with one constant each.
    for name, table in (("and_or", 0xEA), ("and_xor", 0x6A)):
        section = "Logic and shift instructions: lop3"
        operands = tuple(Operand(x) for x in "abc")
        yield Ptx(name, f"lop3.b32 %0, %1, %2, %3, 0x{table:x};", Operand("d"), operands, section)
    yield _simple("mad", "mad.lo.u32", "u32 u32 u32", "Integer arithmetic instructions: mad")
    yield _simple("prmt", "prmt.b32", "u32 u32 u32", "Data movement and conversion instructions: prmt")
    text = "{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }"
    yield Ptx("shared_address", text, Operand("d"), (Operand("p", "const void*"),), "cvta")


def _table(*groups: Iterable[Ptx]) -> dict[str, Ptx]:
    return {row.name: row for group in groups for row in group}


TABLE = _table(
    _loads_and_stores(),
    _matrix_loads(),
    _async_copies(),
    _barriers(),
    _bulk_copies(),
    _clusters(),
    _dependent_launches(),
    _half_arithmetic(),
    _conversions(),
    _atomics(),
    _others(),
    (mma(atom) for atom in MMA_ATOMS),
)
