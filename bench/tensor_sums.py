"""How tensor cores treat subnormals and how they round sums: kernels to run, and models to rank.

A model says how many products are added at a time (`block`), how many bits are kept below the last one of an f32 that
is as large as the largest term (`extra`, which may be negative; `None`: all), and how each sum is rounded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from ptx_hopper import hopper_kernels
from ptx_kernels import MEMORY, NUMPY, WARP, WARPGROUP, Kernel, kernels
from ptx_vectors import Runner, runs_on

from tilus.runtime.nvrtc import compile_cuda
from tilus.simt.formats import F32, decode, encode
from tilus.simt.mma import accumulator_places, places
from tilus.simt.wgmma import operand_addresses

Array = np.ndarray[Any, Any]

# --- subnormals -------------------------------------------------------------------------------------------------------

_CHAINS = 4  # sums that do not wait for one another
_EXACT_TURNS = 16  # so few that every sum is exact in its type


@dataclass(frozen=True, slots=True)
class Repeated:
    """An instruction `d += a * b` in a loop.

    Attributes
    ----------
    name, step : str
        In the step, `D` stands for the registers of the sum, `A` and `B` for words that hold copies of one number.
    kind, wide : str
        Types of the operands and of the sum.
    terms : int
        Products that a turn adds to each element.
    threads, capability : int
    """

    name: str
    step: str
    kind: str
    wide: str
    terms: int
    threads: int = WARP
    capability: int = 80

    def source(self) -> str:
        """Return CUDA C++: words a, b and the number of turns go in, the sums and the cycles come out."""
        count = 4 if self.wide == "f32" else 1
        letter, c_type = ("f", "float") if self.wide == "f32" else ("r", "unsigned")
        steps = ""
        for chain in range(_CHAINS):
            names = [f"%{i}" for i in range(count)]
            vector = "{" + ", ".join(names) + "}" if count > 1 else names[0]
            text = self.step
            for old, new in (("DESC", f"%{count + 2}"), ("D", vector), ("A", f"%{count}"), ("B", f"%{count + 1}")):
                text = re.sub(rf"\b{old}\b", new, text)
            results = ", ".join(f'"+{letter}"(d[{chain * count + i}])' for i in range(count))
            steps += f'    asm volatile("{text}" : {results} : "r"(a), "r"(b), "l"(desc));\n'
        fence, wait = ("", "")
        if self.threads == WARPGROUP:
            fence = '    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");\n'
            wait = (
                '    asm volatile("wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;" ::: "memory");\n'
            )
        total = count * _CHAINS
        return f"""
extern "C" __global__ void repeated(const unsigned* in, unsigned* out, unsigned char* mem) {{
  __shared__ __align__(1024) unsigned s[1024];
  int t = threadIdx.x;
  unsigned a = in[t * 3], b = in[t * 3 + 1], turns = in[t * 3 + 2];
  for (int i = t; i < 1024; i += {self.threads}) s[i] = b;
  unsigned long long desc = (unsigned)__cvta_generic_to_shared(s) >> 4 & 0x3fff | 8ull << 16 | 16ull << 32;
  {c_type} d[{total}] = {{}};
  {'asm volatile("fence.proxy.async;" ::: "memory");' if wait else ""}
  __syncthreads();
  long long begin = clock64();
  for (unsigned i = 0; i < turns; i++) {{
{fence}{steps}{wait}  }}
  long long end = clock64();
  for (int i = 0; i < {total}; i++) out[t * {total + 1} + i] = {"__float_as_uint(d[i])" if letter == "f" else "d[i]"};
  out[t * {total + 1} + {total}] = (unsigned)(end - begin);
}}
"""


def _mma(name: str, kind: str) -> Repeated:
    step = f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 D, {{A, A, A, A}}, {{B, B}}, D;"
    return Repeated(name, step, kind, "f32", 16)


def _wgmma(name: str, kind: str) -> Repeated:
    step = f"wgmma.mma_async.sync.aligned.m64n8k16.f32.{kind}.{kind} D, {{A, A, A, A}}, DESC, p, 1, 1, 0;"
    return Repeated(name, f"{{ .reg .pred p; setp.eq.u32 p, 0, 0; {step} }}", kind, "f32", 16, WARPGROUP, 90)


REPEATED = (
    _mma("mma f16", "f16"), _mma("mma bf16", "bf16"), _wgmma("wgmma f16", "f16"), _wgmma("wgmma bf16", "bf16"),
    Repeated("HFMA2 f16", "fma.rn.f16x2 D, A, B, D;", "f16", "f16", 1),
    Repeated("HFMA2 bf16", "fma.rn.bf16x2 D, A, B, D;", "bf16", "bf16", 1),
)  # fmt: skip

# Operands a and b. Subnormals are 3 units of the last place: not a power of two.
_UNITS = {"f16": 3 * 2.0**-24, "bf16": 3 * 2.0**-133}
_OPERANDS = {
    "f16": {"normal": (3 * 2.0**-8, 1.0), "subnormal a": (_UNITS["f16"], 1.0), "subnormal b": (1.0, _UNITS["f16"])},
    "bf16": {
        "normal": (3 * 2.0**-8, 1.0),
        "subnormal a": (_UNITS["bf16"], 2.0**30),
        "subnormal b": (2.0**30, _UNITS["bf16"]),
        "subnormal sum": (_UNITS["bf16"], 1.0),
    },
}


def subnormals(run: Runner, arch: str, turns: int) -> list[dict[str, object]]:
    """Say for each instruction whether subnormal operands are exact, and what a turn costs."""
    rows: list[dict[str, object]] = []
    for item in REPEATED:
        if not runs_on(item.capability, arch, item.threads == WARPGROUP):
            continue
        binary, normal = compile_cuda(item.source(), arch), 0.0
        for what, (a, b) in _OPERANDS[item.kind].items():
            sums, _ = _repeat(run, item, binary, a, b, _EXACT_TURNS)
            _, cycles = _repeat(run, item, binary, a, b, turns)
            normal = normal or cycles
            exact = bool((sums == _EXACT_TURNS * item.terms * a * b).all())
            rows.append({"instruction": item.name, "operands": what, "exact": exact, "cycles_per_turn": cycles,
                         "relative_rate": normal / cycles if cycles else None})  # fmt: skip
    return rows


def _repeat(run: Runner, item: Repeated, binary: Any, a: float, b: float, turns: int) -> tuple[Array, float]:
    """Return the sums, and cycles of one instruction."""
    words = [np.array([x, x], NUMPY[item.kind]).view(np.uint32)[0] for x in (a, b)]
    given = np.tile(np.array([*words, turns], np.uint32), (item.threads, 1))
    count = _CHAINS * (4 if item.wide == "f32" else 1)
    out = np.zeros((item.threads, count + 1), np.uint32)
    run(binary, "repeated", 1, item.threads, [given, out, np.zeros(16, np.uint8)])
    sums = np.ascontiguousarray(out[:, :count]).view(NUMPY[item.wide]).astype(np.float64)
    return sums, float(out[:, count].max()) / (turns * _CHAINS)


# --- rounding ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Model:
    """How a sum is made: see the module."""

    block: int
    extra: int | None
    rounding: str

    def __str__(self) -> str:
        kept = "exact" if self.extra is None else f"{self.extra:+d} bits"
        return f"{self.block} at a time, {kept}, {self.rounding}"

    def sums(self, terms: Array, start: Array) -> Array:
        """Return the words of the f32 sums of products, which lie along the last axis, and a start value."""
        total = start
        for first in range(0, terms.shape[-1], self.block):
            some = np.concatenate([total[..., None], terms[..., first : first + self.block]], axis=-1)
            if self.extra is not None:
                _, exponents = np.frexp(np.abs(some).max(-1, keepdims=True))  # 2^(e-1) <= largest < 2^e
                unit = np.ldexp(1.0, exponents - 24 - self.extra)
                some = np.trunc(some / unit) * unit
            total = decode(encode(some.sum(-1), F32, self.rounding), F32)
        return encode(total, F32)


def models(k: int) -> list[Model]:
    """Return the models for a product of depth k."""
    blocks = [n for n in (2, 4, 8, 16, 32) if n < k] + [k]
    return [Model(*m) for m in product(blocks, (None, *range(-12, 5)), ("rn", "rz"))]


@dataclass(frozen=True, slots=True)
class Sums:
    """Products of random numbers: each term, the start values, and the words that came out."""

    terms: Array  # (sums, k)
    start: Array
    found: Array

    def rank(self) -> list[tuple[float, Model]]:
        """Return the models, the best first, with the share of sums that they predict to the last bit."""
        scores = [
            (float((m.sums(self.terms, self.start) == self.found).mean()), m) for m in models(self.terms.shape[-1])
        ]
        return sorted(scores, key=lambda s: -s[0])


RANKED = {
    "mma f16": "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    "mma bf16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "mma tf32": "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
    "mma e4m3": "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32",
    "wgmma f16": "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 128B00 registers",
    "wgmma e4m3": "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 128B00 registers",
}


def rank(run: Runner, arch: str, launches: int) -> list[dict[str, object]]:
    """Rank the models of each product on an architecture."""
    rows: list[dict[str, object]] = []
    known = {k.name: k for k in (*kernels(), *hopper_kernels())}
    for name, form in RANKED.items():
        if not runs_on(known[form].capability, arch, True):
            continue
        best = measure(run, arch, known[form], launches).rank()
        rows += [{"product": name, "model": str(m), "equal": score} for score, m in best[:8]]
    return rows


def measure(run: Runner, arch: str, kernel: Kernel, launches: int) -> Sums:
    """Run a product of random numbers several times."""
    m, n, k, kind = _shape(kernel.name)
    binary = compile_cuda(kernel.source("sums"), arch)
    parts: list[tuple[Array, Array, Array]] = []
    for seed in range(launches):
        rng = np.random.default_rng(seed)
        a, b = (_numbers(rng, kind, rows, k) for rows in (m, n))
        c = rng.normal(size=(m, n)).astype(np.float32)
        filled = (_fill_wgmma if "wgmma" in kernel.name else _fill_mma)(kernel, a, b, c)
        out, memory = np.zeros((filled.threads, filled.outputs), np.uint32), filled.memory.copy()
        run(binary, "sums", 1, filled.threads, [filled.words, out, memory])
        terms = a.astype(np.float64)[:, None] * b.astype(np.float64)[None]
        parts.append((terms.reshape(m * n, k), c.reshape(-1).astype(np.float64), _result(kernel, out, m, n)))
    return Sums(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def _shape(name: str) -> tuple[int, int, int, str]:
    match = re.search(r"m(\d+)n(\d+)k(\d+)", name)
    assert match is not None
    return (
        int(match[1]),
        int(match[2]),
        int(match[3]),
        name[match.end() :].split(" ")[0].split(".")[-2 if "wgmma" in name else -3],
    )


def _numbers(rng: np.random.Generator, kind: str, rows: int, k: int) -> Array:
    """Return random numbers within a few powers of two of 1: float64 holds their exact sums."""
    values = rng.uniform(1, 2, (rows, k)) * 2.0 ** rng.integers(-3, 2, (rows, k)) * rng.choice([-1, 1], (rows, k))
    if kind == "tf32":
        return (values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.asarray(values.astype(NUMPY[kind]))


def _words(a: Array, threads: int) -> Array:
    return np.ascontiguousarray(a).view(np.uint32).reshape(threads, -1)


def _fill_mma(kernel: Kernel, a: Array, b: Array, c: Array) -> Kernel:
    per = 4 // a.itemsize
    left = a.reshape(-1)[places(*a.shape, per, 2)]
    right = b.reshape(-1)[places(*b.shape, per, 1)]
    start = c.reshape(-1)[accumulator_places(*c.shape)]
    return replace(kernel, words=np.concatenate([_words(x, WARP) for x in (left, right, start)], axis=1))


def _fill_wgmma(kernel: Kernel, a: Array, b: Array, c: Array) -> Kernel:
    """Put A into registers, 16 rows in each warp, and B into shared memory, in rows of 128 bytes that are swizzled."""
    per = 4 // a.itemsize
    left = np.concatenate([_words(rows.reshape(-1)[places(16, a.shape[1], per, 2)], WARP) for rows in np.split(a, 4)])
    row, column = _accumulator(c.shape[1])
    memory = np.zeros(2 * MEMORY, np.uint8)
    at = operand_addresses(64 << 16 | 64 << 32 | 1 << 62, *b.shape, b.itemsize, False)
    for i in range(b.itemsize):
        memory[MEMORY + at + i] = b.view(np.uint8).reshape(*b.shape, -1)[..., i]
    return replace(kernel, words=np.concatenate([_words(c[row, column], WARPGROUP), left], axis=1), memory=memory)


def _accumulator(n: int) -> tuple[Array, Array]:
    """Return the row and the column of each (thread, element)."""
    t, i = np.ogrid[:WARPGROUP, : n // 2]
    row, column = t // WARP * 16 + t % WARP // 4 + 8 * (i % 4 // 2), i // 4 * 8 + t % 4 * 2 + i % 2
    return row + 0 * column, column + 0 * row


def _result(kernel: Kernel, out: Array, m: int, n: int) -> Array:
    found = np.zeros((m, n), np.uint32)
    if "wgmma" in kernel.name:
        found[_accumulator(n)] = out
    else:
        found.reshape(-1)[accumulator_places(m, n)] = out.reshape(-1)
    return found.reshape(-1)
