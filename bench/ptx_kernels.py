"""Kernels for the instructions that read memory or other lanes: warps, memory, matrices, asynchronous copies.

Each thread has words that go in and words that come out. Where there is memory, global or shared, its bytes go in and
come out too, and each thread may have an address in it. Elements of matrices are small integers, so that every order
and rounding of sums gives the same bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np

WARP, WARPGROUP = 32, 128
MEMORY = 1 << 14  # bytes

Words = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Kernel:
    """A kernel for one form of an instruction.

    Attributes
    ----------
    name : str
        The instruction, with what tells its forms apart.
    body : str
        Inline assembly: `$o0`, `$i0`, ... are the thread's words, `$at` its address.
    words : array
        Words that go in, shape (threads, words); of 32 or 64 bits.
    outputs : int
        Words that come out, of each thread.
    space : str
        `global` or `shared`, where `memory` lies; nothing where there is none.
    memory : array of uint8
    shared : int
        Bytes of it that lie in shared memory, if not all do.
    stride : int
        Bytes from one thread's address to the next.
    capability : int
    constants : sequence of str
        Further operands, as C expressions: `$c0`, ...
    setup : str
        C++ before the assembly.
    blocks : int
        Which make one cluster.
    """

    name: str
    body: str
    words: Words = field(default_factory=lambda: np.zeros((WARP, 0), np.uint32))
    outputs: int = 0
    space: str = ""
    memory: Words = field(default_factory=lambda: np.zeros(0, np.uint8))
    stride: int = 0
    capability: int = 0
    constants: Sequence[str] = ()
    setup: str = ""
    blocks: int = 1
    shared: int = 0

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return len(self.words)

    def source(self, name: str) -> str:
        """Return CUDA C++."""
        c_type, letter = ("unsigned long long", "l") if self.words.itemsize == 8 else ("unsigned", "r")
        ins, outs = self.words.shape[1], self.outputs
        numbers = {f"o{i}": i for i in range(outs)} | {f"i{i}": outs + i for i in range(ins)}
        numbers["at"] = outs + ins
        numbers |= {f"c{i}": outs + ins + 1 + i for i in range(len(self.constants))}
        body = re.sub(r"\$(\w+)", lambda m: f"%{numbers[m[1]]}", self.body)
        operands = [f'"{letter}"(in[t * {ins} + {i}])' for i in range(ins)]
        operands.append(self._address())
        operands += [f'"{"l" if "(u64)" in c else "r"}"({c})' for c in self.constants]
        results = ", ".join(f'"={letter}"(o{i})' for i in range(outs))
        declared = "".join(f"{c_type} o{i}; " for i in range(outs))
        stores = "".join(f"out[u * {outs} + {i}] = o{i}; " for i in range(outs))
        cluster = f"__cluster_dims__({self.blocks}, 1, 1) " if self.blocks > 1 else ""
        return (
            f'extern "C" __global__ void {cluster}{name}(const {c_type}* in, {c_type}* out, unsigned char* mem) {{\n'
            f"  typedef unsigned long long u64; int t = threadIdx.x, u = t + blockIdx.x * {self.threads}; {declared}\n"
            f"{self._copied(True)}  {self.setup}\n"
            f'  asm volatile("{body}" : {results} : {", ".join(operands)} : "memory");\n'
            f"  {stores}\n{self._copied(False)}}}\n"
        )

    def _address(self) -> str:
        if self.space == "shared":
            return f'"r"((unsigned)__cvta_generic_to_shared(s) + t * {self.stride})'
        return f'"l"((u64)(mem + t * {self.stride}))'

    def _copied(self, into: bool) -> str:
        """Return the copy of the memory to shared memory, or back."""
        if self.space != "shared":
            return ""
        size = self.shared or self.memory.size
        base = f"mem + blockIdx.x * {size}"
        each = f"for (int i = t * 16; i < {size}; i += {self.threads} * 16)"
        if into:
            return (
                f"  __shared__ __align__(1024) unsigned char s[{size}];\n"
                f"  {each} *(uint4*)(s + i) = *(uint4*)({base} + i);\n  __syncthreads();\n"
            )
        wait = '  asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory");\n'
        return (
            "  __syncthreads();\n" if self.blocks == 1 else wait
        ) + f"  for (int i = t * 16; i < {size}; i += {self.threads} * 16) *(uint4*)({base} + i) = *(uint4*)(s + i);\n"


def random(seed: int, *shape: int, bits: int = 32) -> Words:
    """Return random words."""
    return np.random.default_rng([seed, *shape]).integers(0, 1 << bits, shape, dtype=f"u{bits // 8}")


def filled(size: int = MEMORY, seed: int = 0) -> Words:
    """Return random bytes."""
    return random(seed, size, bits=8)


# --- warps ------------------------------------------------------------------------------------------------------------


def _warps() -> Iterator[Kernel]:
    data = np.stack([random(1, WARP), random(2, WARP) % 34], axis=1)
    flags = np.stack([random(3, WARP) % 2, np.ones(WARP, np.uint32)], axis=1)
    yield from _shuffles(data)
    for mode, column in product(("all", "any", "uni"), (0, 1)):
        text = _pred(f"vote.sync.{mode}.pred q, p, -1;", column)
        yield Kernel(f"vote.sync.{mode}.pred {column}", text, flags, 1)
    text = "{ .reg .pred p; setp.ne.u32 p, $i0, 0; vote.sync.ballot.b32 $o0, p, -1; }"
    yield Kernel("vote.sync.ballot.b32", text, flags, 1)
    yield Kernel("activemask.b32", "activemask.b32 $o0;", flags, 1)
    text = "{ .reg .pred p; elect.sync $o0|p, -1; selp.u32 $o1, 1, 0, p; }"
    yield Kernel("elect.sync", text, flags, 2, capability=90)
    for bits in (32, 64):
        few = random(5, WARP, 1, bits=bits) % 5 << (bits - 8)
        yield Kernel(f"match.any.sync.b{bits}", _matched(f"match.any.sync.b{bits} m, $i0, -1;", bits), few, 1)
        for name, values in (("different", few), ("equal", few * 0 + few.dtype.type(7))):
            text = f"match.all.sync.b{bits} m|p, $i0, -1; selp.u32 m, m, 0xdead, p;"
            yield Kernel(f"match.all.sync.b{bits} {name}", _matched(text, bits), values, 1)
    name = "movmatrix.sync.aligned.m8n8.trans.b16"
    yield Kernel(name, f"{name} $o0, $i0;", data[:, :1], 1)
    yield from _reductions(data[:, :1], np.tile(flags, (2, 1)))


def _shuffles(data: Words) -> Iterator[Kernel]:
    for mode, limit in product(("up", "down", "bfly", "idx"), (0x1F, 0x181F, 0x1C03)):
        words = data.copy()
        words[:, 1] %= 34 if mode == "idx" else 16
        clamp = limit & 0x1F00 if mode == "up" else limit
        text = f"{{ .reg .pred p; shfl.sync.{mode}.b32 $o0|p, $i0, $i1, {clamp}, -1; selp.u32 $o1, 1, 0, p; }}"
        yield Kernel(f"shfl.sync.{mode}.b32 {limit:#x}", text, words, 2)


def _reductions(data: Words, flags: Words) -> Iterator[Kernel]:
    for form in ("add.u32", "min.u32", "max.u32", "add.s32", "min.s32", "max.s32", "and.b32", "or.b32", "xor.b32"):
        yield Kernel(f"redux.sync.{form}", f"redux.sync.{form} $o0, $i0, -1;", data, 1)
    floats = np.random.default_rng(6).normal(size=(WARP, 1)).astype(np.float32).view(np.uint32)
    for form in ("min", "max", "min.abs", "max.NaN"):
        yield Kernel(f"redux.sync.{form}.f32", f"redux.sync.{form}.f32 $o0, $i0, -1;", floats, 1, capability=100)
    for root, aligned in (("bar", ""), ("barrier", ".aligned"), ("barrier", "")):
        scope = "" if root == "bar" else ".cta"
        form = f"{root}{scope}.red.popc{aligned}.u32"
        yield Kernel(form, f"{{ .reg .pred p; setp.ne.u32 p, $i0, 0; {form} $o0, 1, p; }}", flags, 1)
        for op in ("and", "or"):
            form = f"{root}{scope}.red.{op}{aligned}.pred"
            yield Kernel(form, _pred(f"{form} q, 1, p;", 0), flags, 1)


def _pred(text: str, column: int) -> str:
    return f"{{ .reg .pred p, q; setp.ne.u32 p, $i{column}, 0; {text} selp.u32 $o0, 1, 0, q; }}"


def _matched(text: str, bits: int) -> str:
    out = "mov.b32 $o0, m;" if bits == 32 else "cvt.u64.u32 $o0, m;"
    return f"{{ .reg .pred p; .reg .b32 m; {text} {out} }}"


# --- memory -----------------------------------------------------------------------------------------------------------

_LOADED = ("b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64")


def _memory() -> Iterator[Kernel]:
    for space, kind in product(("global", "shared"), _LOADED):
        size = int(kind[1:]) // 8
        register = "b64" if size == 8 else "b32"
        bits = 64 if size == 8 else 32
        floats = kind if kind[0] == "f" else register
        text = f"{{ .reg .{floats} a; ld.{space}.{kind} a, [$at]; mov.{register} $o0, a; }}"
        words = random(1, WARP, 1, bits=bits)
        yield Kernel(f"ld.{space}.{kind}", text, words, 1, space, filled(1024), size)
        text = f"{{ .reg .{floats} a; mov.{register} a, $i0; st.{space}.{kind} [$at], a; }}"
        yield Kernel(f"st.{space}.{kind}", text, words, 0, space, filled(1024), size)
    for space, (kind, count) in product(("global", "shared"), (("b32", 2), ("b32", 4), ("b64", 2), ("f32", 4))):
        size = int(kind[1:]) // 8
        letter = "b" if kind[0] == "b" else "f"
        names = [f"a{i}" for i in range(count)]
        vector = "{" + ", ".join(names) + "}"
        declared = f".reg .{letter}{8 * size} {', '.join(names)};"
        moves = [f"mov.b{8 * size} $o{i}, {n};" for i, n in enumerate(names)]
        moves_in = [f"mov.b{8 * size} {n}, $i{i};" for i, n in enumerate(names)]
        words = random(2, WARP, count, bits=8 * size)
        text = f"{{ {declared} ld.{space}.v{count}.{kind} {vector}, [$at]; {' '.join(moves)} }}"
        yield Kernel(f"ld.{space}.v{count}.{kind}", text, words, count, space, filled(1024), size * count)
        text = f"{{ {declared} {' '.join(moves_in)} st.{space}.v{count}.{kind} [$at], {vector}; }}"
        yield Kernel(f"st.{space}.v{count}.{kind}", text, words, 0, space, filled(1024), size * count)
    yield Kernel("ld.global.nc.b32", "ld.global.nc.b32 $o0, [$at];", random(1, WARP, 1), 1, "global", filled(1024), 4)
    yield Kernel("ldu.global.b32", "ldu.global.b32 $o0, [$at];", random(1, WARP, 1), 1, "global", filled(1024), 0)
    yield from _copies()


def _copies() -> Iterator[Kernel]:
    sizes = random(8, WARP, 1) % 20
    for cache_, nbytes in (("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16)):
        kept = np.minimum(sizes, nbytes).astype(np.uint32)
        text = (
            f"cp.async.{cache_}.shared.global [$at], [$c0], {nbytes}, $i0; cp.async.commit_group; "
            "cp.async.wait_group 0;"
        )
        source = f"(u64)(mem + t * {nbytes} + 4096)"
        yield Kernel(f"cp.async.{cache_} {nbytes}", text, kept, 0, "shared", filled(8192), nbytes, constants=(source,))


_ATOMIC = [
    *(f"{op}.{kind}" for op in ("add", "min", "max") for kind in ("u32", "s32", "u64")), "min.s64", "max.s64",
    *(f"{op}.b{bits}" for op in ("and", "or", "xor", "exch", "cas") for bits in (32, 64)), "inc.u32", "dec.u32",
    "add.f32", "add.f64", "add.noftz.f16x2",
]  # fmt: skip


def _atomic() -> Iterator[Kernel]:
    for space, form in product(("global", "shared"), _ATOMIC):
        bits = 64 if form.endswith("64") else 32
        yield from _atomic_of(space, form, bits)
    for form in ("add.noftz.f16", "add.noftz.bf16", "add.noftz.bf16x2"):
        yield from _atomic_of("global", form, 32, 90 if "bf16" in form else 0)
    text = "{ .reg .b16 a, b, c; cvt.u16.u32 a, $i0; cvt.u16.u32 b, $i1; "
    text += "atom.global.cas.b16 c, [$at], a, b; cvt.u32.u16 $o0, c; }"
    memory = filled(1024)
    expected = np.stack([memory[: 2 * WARP].view(np.uint16) ^ (np.arange(WARP) % 2), random(9, WARP) % 65536], 1)
    yield Kernel("atom.global.cas.b16", text, expected.astype(np.uint32), 1, "global", memory, 2)
    for op, count in product(("red", "atom"), (2, 4)):
        values = "{" + ", ".join(f"a{i}" for i in range(count)) + "}"
        moves = " ".join(f"mov.b32 a{i}, $i{i};" for i in range(count))
        names = ", ".join(f"a{i}" for i in range(count))
        old = "{" + ", ".join(f"b{i}" for i in range(count)) + "}, " if op == "atom" else ""
        back = " ".join(f"mov.b32 $o{i}, b{i};" for i in range(count)) if op == "atom" else ""
        declared = f".reg .f32 {names}, {names.replace('a', 'b')};"
        text = f"{{ {declared} {moves} {op}.global.add.v{count}.f32 {old}[$at], {values}; {back} }}"
        floats = np.random.default_rng(3).integers(-9, 9, (WARP, count)).astype(np.float32).view(np.uint32)
        memory = np.random.default_rng(4).integers(-9, 9, 256).astype(np.float32).view(np.uint8)
        yield Kernel(
            f"{op}.global.add.v{count}.f32",
            text,
            floats,
            count * (op == "atom"),
            "global",
            memory,
            4 * count,
            capability=90,
        )


def _atomic_of(space: str, form: str, bits: int, capability: int = 0) -> Iterator[Kernel]:
    """Yield an operation at addresses of the threads' own, whose old values are known, and one on which all meet."""
    op, *_, kind = form.split(".")
    words, memory = random(1, WARP, 2, bits=bits), filled(1024)
    small = np.random.default_rng(2).integers(-9, 9, (WARP, 2))
    numeric = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64}.get(
        kind.removesuffix("x2")
    )
    if numeric is not None:
        size = np.dtype(numeric).itemsize
        memory = np.random.default_rng(3).integers(-9, 9, 1024 // size).astype(numeric).view(np.uint8)
        values = (
            np.repeat(small, bits // 8 // size if kind.endswith("x2") else 1, axis=1).astype(numeric).view(f"u{size}")
        )
        words = (
            values if size == bits // 8 else values.view(f"u{bits // 8}") if kind.endswith("x2") else values
        ).astype(f"u{bits // 8}")
    if op == "cas":
        words[::2, 0] = memory[: WARP * bits // 8].view(words.dtype)[::2]
    if op in ("inc", "dec"):
        words %= 4
    step = 2 if kind in ("f16", "bf16") else bits // 8
    pick = "$i0, $i1" if op == "cas" else "$i0"
    if step == 2:
        atom = f"{{ .reg .b16 a, b; cvt.u16.u32 a, $i0; atom.{space}.{form} b, [$at], a; cvt.u32.u16 $o0, b; }}"
        red = f"{{ .reg .b16 a; cvt.u16.u32 a, $i0; red.{space}.{form} [$at], a; }}"
    else:
        atom, red = f"atom.{space}.{form} $o0, [$at], {pick};", f"red.{space}.{form} [$at], $i0;"
    yield Kernel(f"atom.{space}.{form}", atom, words, 1, space, memory, step, capability)
    if op not in ("exch", "cas"):
        yield Kernel(f"red.{space}.{form}", red, words, 0, space, memory, 0, capability)


# --- matrices ---------------------------------------------------------------------------------------------------------

NBITS = {
    "f16": 16,
    "bf16": 16,
    "tf32": 32,
    "e4m3": 8,
    "e5m2": 8,
    "s8": 8,
    "u8": 8,
    "s4": 4,
    "u4": 4,
    "b1": 1,
    "f64": 64,
    "f32": 32,
    "s32": 32,
}
NUMPY: dict[str, Any] = {
    "f16": np.float16, "bf16": ml_dtypes.bfloat16, "tf32": np.float32, "f32": np.float32, "f64": np.float64,
    "e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "s8": np.int8, "u8": np.uint8, "s32": np.int32,
}  # fmt: skip


def elements(kind: str, nbytes: int, seed: int) -> Words:
    """Return bytes that hold small integers of a type: whatever lies where is one."""
    if kind in ("s4", "u4", "b1"):
        return filled(nbytes, seed)
    low = 0 if kind[0] == "u" else -3
    values = np.random.default_rng([seed, nbytes]).integers(low, 4, nbytes * 8 // NBITS[kind])
    return np.ascontiguousarray(values.astype(NUMPY[kind])).view(np.uint8)


# Shapes by types: D A B C, and the capability.
_PRODUCTS: tuple[tuple[str, str, int], ...] = (
    ("m16n8k8 m16n8k16", "f16.f16.f16.f16", 80), ("m16n8k8 m16n8k16", "f32.f16.f16.f32", 80),
    ("m16n8k8 m16n8k16", "f32.bf16.bf16.f32", 80), ("m16n8k4 m16n8k8", "f32.tf32.tf32.f32", 80),
    ("m16n8k16 m16n8k32 m8n8k16", "s32.s8.s8.s32", 80), ("m16n8k32", "s32.u8.u8.s32", 80),
    ("m16n8k32", "s32.s8.u8.s32", 80), ("m16n8k32 m16n8k64 m8n8k32", "s32.s4.s4.s32", 80),
    ("m16n8k64", "s32.u4.s4.s32", 80), ("m8n8k4", "f64.f64.f64.f64", 80),
    ("m16n8k4 m16n8k8 m16n8k16", "f64.f64.f64.f64", 90), ("m16n8k32", "f32.e4m3.e4m3.f32", 89),
    ("m16n8k32", "f32.e5m2.e4m3.f32", 89),
)  # fmt: skip


def _matrices() -> Iterator[Kernel]:
    for shapes, types, capability in _PRODUCTS:
        for shape in shapes.split():
            yield _product(shape, types, capability)
    yield _product("m16n8k32", "s32.s8.s8.s32", 80, satfinite=True)
    for shape, logic in product(("m16n8k128", "m16n8k256", "m8n8k128"), ("xor", "and")):
        yield _product(shape, "s32.b1.b1.s32", 80, logic=logic)
    for count, trans in product((1, 2, 4), ("", ".trans")):
        names = ", ".join(f"$o{i}" for i in range(count))
        form = f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16"
        yield Kernel(form, f"{form} {{{names}}}, [$at];", random(1, WARP, 1), count, "shared", filled(1024), 32)
        names = names.replace("o", "i")
        form = f"stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16"
        yield Kernel(form, f"{form} [$at], {{{names}}};", random(2, WARP, count), 0, "shared", filled(1024), 32, 90)


def _product(shape: str, types: str, capability: int, *, satfinite: bool = False, logic: str = "") -> Kernel:
    m, n, k = map(int, re.findall(r"\d+", shape))
    d, a, b, c = types.split(".")
    word = 64 if a == "f64" else 32
    counts = [m * k * NBITS[a] // (WARP * word), n * k * NBITS[b] // (WARP * word), m * n * NBITS[c] // (WARP * word)]
    parts = [elements(t, WARP * count * word // 8, i).view(f"u{word // 8}").reshape(WARP, count)
             for i, (t, count) in enumerate(zip((a, b, c), counts, strict=True))]  # fmt: skip
    if satfinite:
        parts[2] = np.where(random(5, *parts[2].shape) % 2, 0x7FFFFFFC, 0x80000004).astype(np.uint32)
    at = np.cumsum([0, *counts])
    register = {"f64": "f64", "f32": "f32", "s32": "b32", "f16": "b32"}[d]
    outs = m * n * NBITS[d] // (WARP * word)
    vectors = [
        "{" + ", ".join(f"{name}{i}" for i in range(count)) + "}"
        for name, count in zip("dabc", (outs, *counts), strict=True)
    ]
    source = "f64" if a == "f64" else "b32"
    lines = [f".reg .{register} " + ", ".join(f"d{i}" for i in range(outs)) + ";"]
    lines += [f".reg .{kind} {', '.join(f'{name}{i}' for i in range(count))};"
              for name, count, kind in zip("abc", counts, (source, source, register), strict=True)]  # fmt: skip
    lines += [f"mov.b{word} {name}{i}, $i{at[j] + i};" for j, name in enumerate("abc") for i in range(counts[j])]
    suffix = f".{logic}.popc" if logic else ""
    form = f"mma.sync.aligned.{shape}.row.col{'.satfinite' * satfinite}.{types}{suffix}"
    lines.append(f"{form} {', '.join(vectors)};")
    lines += [f"mov.b{word} $o{i}, d{i};" for i in range(outs)]
    return Kernel(form, "{ " + " ".join(lines) + " }", np.concatenate(parts, axis=1), outs, capability=capability)


@cache
def kernels() -> tuple[Kernel, ...]:
    """Return all of these kernels."""
    return (*_warps(), *_memory(), *_atomic(), *_matrices())
