"""Every form of the instructions on registers that the PTX machine models, and a kernel that runs one.

A pattern is an opcode with alternatives in braces, and behind `@` the least compute capability. `tests/bench` asks the
machine's own decoders which modifiers they look for, and demands that every one of them occurs here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from tilus.simt.alu import operation
from tilus.simt.opcode import word_type
from tilus.simt.syntax import BYTES

COUNT = 128  # vectors of a form: one for each thread
_INTS = "{u16|s16|u32|s32|u64|s64}"
_NARROW = "{u8|s8|u16|s16|u32|s32|u64|s64}"
_ORDER = "{eq|ne|lt|le|gt|ge}"
_FLOAT_ORDER = "{eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan}"
_ROUND = "{rn|rz|rm|rp}"
_SMALL = "{e4m3x2|e5m2x2}"
_SMALLER = "{e2m1x2|e2m3x2|e3m2x2}"

PATTERNS = f"""
{{add|sub}}.{_INTS}                    {{add|sub}}.sat.s32
{{add|sub|addc|subc}}.cc.{{u32|s32|u64|s64}}   {{addc|subc}}.{{u32|s32|u64|s64}}
{{mul|mad}}.{{lo|hi}}.{_INTS}          {{mul|mad}}.wide.{{u16|s16|u32|s32}}   {{mul24|mad24}}.{{lo|hi}}.{{u32|s32}}
{{div|rem}}.{_INTS}                    {{min|max}}.{_INTS}                    {{min|max}}.relu.s32@90
{{abs|neg}}.{{s16|s32|s64}}            sad.{_INTS}
dp4a.{{u32|s32}}.{{u32|s32}}           dp2a.{{lo|hi}}.{{u32|s32}}.{{u32|s32}}
{{and|or|xor|not}}.{{pred|b16|b32|b64}}   cnot.{{b16|b32|b64}}
lop3.b32                               lop3.{{and|or}}.b32
shl.{{b16|b32|b64}}                    shr.{{b16|b32|b64|u16|u32|u64|s16|s32|s64}}   shf.{{l|r}}.{{clamp|wrap}}.b32
prmt.b32{{|.f4e|.b4e|.rc8|.ecl|.ecr|.rc16}}
bfe.{{u32|s32|u64|s64}}                bfi.{{b32|b64}}                        bmsk.{{clamp|wrap}}.b32
{{popc|clz|brev}}.{{b32|b64}}          bfind{{|.shiftamt}}.{{u32|s32|u64|s64}}
fns.b32                                szext.{{clamp|wrap}}.{{u32|s32}}
mov.{{pred|b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64}}
selp.{{b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64}}
slct.{{b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64}}.{{s32|f32}}   slct.ftz.b32.f32

{{add|sub|mul}}{{|.rn|.rz|.rm|.rp}}{{|.ftz}}{{|.sat}}.f32   {{add|sub|mul}}{{|.rn|.rz|.rm|.rp}}.f64
{{add|sub|mul}}{{|.rn}}{{|.ftz}}{{|.sat}}.{{f16|f16x2}}     {{add|sub|mul}}{{|.rn}}.{{bf16|bf16x2}}@90
{{fma|mad}}.{_ROUND}{{|.ftz}}{{|.sat}}.f32   {{fma|mad}}.{_ROUND}.f64   fma.rn{{|.ftz}}{{|.sat|.relu}}.{{f16|f16x2}}
fma.rn{{|.relu}}.{{bf16|bf16x2}}             {{add|mul|fma}}.{_ROUND}{{|.ftz}}.f32x2@100
div.{{approx|full|rn|rz|rm|rp}}{{|.ftz}}.f32   div.{_ROUND}.f64
{{rcp|sqrt}}.{{approx|rn|rz|rm|rp}}{{|.ftz}}.f32   {{rcp|sqrt}}.rn.f64
rsqrt.approx{{|.ftz}}.{{f32|f64}}            rcp.approx.ftz.f64
{{ex2|lg2|sin|cos}}.approx{{|.ftz}}.f32      tanh.approx.{{f32|f16|f16x2}}   tanh.approx.{{bf16|bf16x2}}@90
ex2.approx.{{f16|f16x2}}                     ex2.approx.ftz.{{bf16|bf16x2}}@90
{{neg|abs}}{{|.ftz}}.{{f32|f16|f16x2}}       {{neg|abs}}.{{f64|bf16|bf16x2}}   copysign.{{f32|f64}}
{{min|max}}{{|.ftz}}{{|.NaN}}.{{f32|f16|f16x2}}   {{min|max}}.f64   {{min|max}}{{|.NaN}}.{{bf16|bf16x2}}
setp.{{eq|ne}}.{{b16|b32|b64}}               setp.{_ORDER}.{_INTS}   setp.{{lo|ls|hi|hs}}.{{u16|u32|u64}}
setp.{_FLOAT_ORDER}{{|.ftz}}.f32             setp.{_FLOAT_ORDER}.{{f64|f16|f16x2}}
setp.{_FLOAT_ORDER}.{{bf16|bf16x2}}@90
setp.lt.{{and|or|xor}}.{{s32|f32|f16}}       setp.lt.ftz.{{f16|f16x2}}   setp.ge.and.f16x2
set.{_ORDER}.{{u32|s32|f32}}.{{u32|s32|f32}} set.{{lt|gtu}}.ftz.{{u32|s32|f32}}.f32
set.{{lt|nan}}.{{f16|u16|s16|u32|s32}}.f16   set.lt.{{bf16|u16|s16|u32|s32}}.bf16@90   set.lt.{{and|or|xor}}.u32.s32
testp.{{finite|infinite|number|notanumber|normal|subnormal}}.{{f32|f64}}

cvt{{|.sat}}.{_NARROW}.{_NARROW}
cvt.{{rni|rzi|rmi|rpi}}.{_NARROW}.{{f16|f32|f64}}   cvt.{{rni|rzi}}.{_INTS}.bf16@90
cvt.rzi.ftz.{{s32|u64}}.f32   cvt.rzi.sat.{{s8|u16|s32|u64}}.{{f16|f32|f64}}
cvt.{_ROUND}.{{f16|f32|f64}}.{_NARROW}       cvt.rn.bf16.{_INTS}@90
cvt.{_ROUND}{{|.ftz}}.f16.f32                cvt.rn{{|.ftz}}.sat.f16.f32   cvt.{_ROUND}.{{f16|f32}}.f64
cvt.rn{{.ftz|.sat|.ftz.sat}}.f32.f64         cvt{{|.ftz}}{{|.sat}}.f32.f16   cvt.f64.f16   cvt{{|.ftz}}.f64.f32
cvt.{{rni|rzi|rmi|rpi}}.{{f16.f16|f32.f32|f64.f64}}   cvt.{{ftz|sat}}.f32.f32
cvt.{{rn|rz}}{{|.relu}}{{|.satfinite}}.{{f16|bf16}}.f32   cvt.{{rn|rz}}{{|.relu}}{{|.satfinite}}.{{f16x2|bf16x2}}.f32
cvt.f32.bf16@90                              cvt.rna{{|.satfinite}}.tf32.f32
cvt.{{rn|rz}}{{|.relu}}.tf32.f32@90
cvt.rn.satfinite{{|.relu}}.{_SMALL}.{{f32|f16x2}}@89   cvt.rn{{|.relu}}.f16x2.{_SMALL}@89
cvt.rn.satfinite{{|.relu}}.{_SMALLER}.f32@100   cvt.rn{{|.relu}}.f16x2.{_SMALLER}@100
cvt.{{rz|rp}}.satfinite.ue8m0x2.f32@100      cvt.rn.bf16x2.ue8m0x2@100
cvt.pack.sat.{{u16|s16}}.s32                 cvt.pack.sat.{{u2|s2|u4|s4|u8|s8}}.s32.b32
"""

# Errors that the manual allows approximations: relative to the result in units of 2^-n, and absolute ones.
BOUNDS = {
    "div.approx": (2.0**-22, 0.0), "div.full": (2.0**-22, 0.0), "rcp.approx": (2.0**-23, 0.0),
    "sqrt.approx": (2.0**-22, 0.0), "rsqrt.approx": (2.0**-22, 0.0), "ex2.approx": (2.0**-22, 0.0),
    "lg2.approx": (2.0**-22, 2.0**-22), "sin.approx": (0.0, 2.0**-20), "cos.approx": (0.0, 2.0**-20),
    "tanh.approx": (2.0**-10, 0.0),
}  # fmt: skip
TABLES = (0x00, 0xEA, 0x96, 0x6A, 0xE4, 0x1B, 0xFF)  # of lop3: a form each


@dataclass(frozen=True, slots=True)
class Form:
    """An instruction on registers: its opcode, the constant that stands last if it has one, and the capability."""

    opcode: str
    capability: int = 0
    constant: int | None = None
    optional: int = 0  # operands that may be left out, and are not

    @property
    def name(self) -> str:
        """The opcode, with the constant and the number of operands where that tells forms apart."""
        return self.opcode + (f" {self.constant:#04x}" if self.constant is not None else "") + " of 3" * self.optional

    @property
    def root(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def operands(self) -> tuple[str, ...]:
        """Types of the operands in registers."""
        model = operation(self.opcode)
        kinds = model.kinds(len(model.operands) - model.optional + self.optional)
        if self.constant is None:
            return kinds
        return tuple(kind for i, kind in enumerate(kinds) if i != 3)

    @property
    def results(self) -> tuple[str, ...]:
        """Types of the results."""
        kinds = operation(self.opcode).results
        one = self.root == "setp" and self.operands[0] in ("f16", "bf16")  # these have one predicate only
        return kinds[:1] if one or (self.root in ("addc", "subc") and not _carries_out(self)) else kinds

    def arguments(self, inputs: list[NDArray[np.generic]]) -> list[object]:
        """Return all operands, the constant among them."""
        return [*inputs] if self.constant is None else [*inputs[:3], self.constant, *inputs[3:]]


def _expand(pattern: str) -> Iterator[str]:
    parts = re.split(r"\{([^{}]*)\}", pattern)
    for choice in product(*(p.split("|") if i % 2 else [p] for i, p in enumerate(parts))):
        yield "".join(choice)


@cache
def forms() -> tuple[Form, ...]:
    """Return every form."""
    found = []
    for pattern in PATTERNS.split():
        pattern, _, capability = pattern.partition("@")
        for opcode in filter(_is_legal, _expand(pattern)):
            constants = TABLES if opcode.startswith("lop3") else (None,)
            found += [Form(opcode, int(capability or 0), c) for c in constants]
            if operation(opcode).optional:  # minima of three
                found.append(Form(opcode, 100, optional=1))
    return tuple(found)


def _is_legal(opcode: str) -> bool:
    """Whether a conversion that saturates has anything to saturate: else `.sat` is not allowed."""
    root, *rest = opcode.split(".")
    if root != "cvt" or rest[0] != "sat" or len(rest) != 3:
        return True
    (low, high), (least, most) = (_range(kind) for kind in rest[1:])
    return least < low or most > high


def _range(kind: str) -> tuple[int, int]:
    if kind[0] not in "us":
        return -(1 << 100), 1 << 100
    nbits = int(kind[1:])
    return (0, (1 << nbits) - 1) if kind[0] == "u" else (-1 << (nbits - 1), (1 << (nbits - 1)) - 1)


# --- inputs -----------------------------------------------------------------------------------------------------------

_MANTISSAS = {"f16": (10, 16), "bf16": (7, 16), "f32": (23, 32), "f64": (52, 64)}
_ELEMENTS = {"f16x2": "f16", "bf16x2": "bf16", "f32x2": "f32"}


def inputs(form: Form) -> list[NDArray[np.generic]]:
    """Return the operands of a form, `COUNT` of each: edges of the type against one another, and random words."""
    found = [_words(kind, i) for i, kind in enumerate(form.operands)]
    if form.root in ("div", "rem") and form.operands[0][0] in "us":  # by zero, and the least by -1: undefined
        found[1] = np.where((found[1] == 0) | (found[1] == ~found[1].dtype.type(0)), 3, found[1]).astype(found[1].dtype)
    if form.root in ("shl", "shr", "shf", "bfe", "bfi", "bmsk", "szext", "fns"):
        first = {"shl": 1, "shr": 1, "shf": 2, "bfe": 1, "bfi": 2}.get(form.root, 0)
        for i in range(first, len(found)):
            if form.operands[i] in ("u32", "s32") or (form.root == "fns" and i):
                amounts = np.random.default_rng(i).integers(
                    -3 if form.root == "fns" and i == 2 else 0, 33 if form.root == "fns" else 70, COUNT
                )
                found[i] = (
                    (np.minimum(amounts, 31) if form.root == "fns" else amounts).astype(np.int64).astype(found[i].dtype)
                )
    return found


def _words(kind: str, seed: int) -> NDArray[np.generic]:
    rng = np.random.default_rng([seed, *kind.encode()])
    if kind == "pred":
        return rng.integers(0, 2, COUNT).astype(bool)
    dtype = word_type(kind)
    element = _ELEMENTS.get(kind, kind)
    nbits = 8 * dtype.itemsize
    count = COUNT * (2 if kind in _ELEMENTS else 1)
    width = nbits // (2 if kind in _ELEMENTS else 1)
    words = np.array(sorted(_edges(element, width)), np.uint64)
    random = (
        rng.integers(0, 1 << width, count, np.uint64, endpoint=False)
        if width < 64
        else rng.integers(0, 1 << 64, count, np.uint64)
    )
    if element in _MANTISSAS:  # numbers of about one size, so that sums are rounded
        m, _ = _MANTISSAS[element]
        bias = (1 << (width - 2 - m)) - 1
        near = rng.integers(bias - 3, bias + 4, count).astype(np.uint64) << np.uint64(m) | random & np.uint64(
            (1 << m) - 1
        )
        near |= rng.integers(0, 2, count).astype(np.uint64) << np.uint64(width - 1)
        random = np.where(rng.integers(0, 2, count) > 0, near, random)
    some = np.where(rng.integers(0, 2, count) > 0, rng.choice(words, count), random)
    return some.astype(f"u{width // 8}").view(dtype)


def _edges(kind: str, width: int) -> set[int]:
    top = 1 << (width - 1)
    found = {0, 1, 2, 3, top - 1, top, top + 1, 2 * top - 1, 2 * top - 2}
    if kind not in _MANTISSAS:
        return found | {1 << i for i in range(width)} | {(1 << i) - 1 for i in range(1, width)}
    m, _ = _MANTISSAS[kind]
    infinity = ((1 << (width - 1 - m)) - 1) << m
    bias = (1 << (width - 2 - m)) - 1
    one = bias << m
    half = 1 << (m - 1)
    numbers = {0, 1, 2, (1 << m) - 1, 1 << m, (1 << m) + 1, one, one + 1, one - 1, one + half, one - (1 << m)}
    numbers |= {one + (k << m) + half for k in range(1, 5)} | {infinity - 1, infinity, infinity + 1, infinity + half}
    return {n | s for n in numbers for s in (0, top)}


# --- kernels ----------------------------------------------------------------------------------------------------------

_C_TYPES = {1: "unsigned char", 2: "unsigned short", 4: "unsigned", 8: "unsigned long long"}


def source(form: Form, name: str) -> str:
    """Return CUDA C++ of a kernel that runs a form once in each thread."""
    ins, outs = form.operands, form.results
    parameters = [f"const {_C_TYPES[BYTES[k]]}* i{n}" for n, k in enumerate(ins)]
    parameters += [f"{_C_TYPES[BYTES[k]]}* o{n}" for n, k in enumerate(outs)]
    variables = "".join(f"{_register(k)[2]} d{n}; " for n, k in enumerate(outs))
    results = ", ".join(f'"={_register(k)[1]}"(d{n})' for n, k in enumerate(outs))
    values = ", ".join(f'"{_register(k)[1]}"(({_register(k)[2]})i{n}[t])' for n, k in enumerate(ins))
    stores = "".join(f"o{n}[t] = ({_C_TYPES[BYTES[k]]})d{n}; " for n, k in enumerate(outs))
    return (
        f'extern "C" __global__ void {name}({", ".join(parameters)}) {{\n  int t = threadIdx.x; {variables}\n'
        f'  asm volatile("{{ {assembly(form)} }}" : {results} : {values});\n  {stores}\n}}\n'
    )


def _register(kind: str) -> tuple[str, str, str]:
    """Return the type of a register, and the constraint and the type of the variable that go with it."""
    if kind == "pred":
        return "pred", "r", "unsigned"
    size = max(BYTES[kind], 2)
    if kind == "b8":  # of pairs of e2m1
        return "b8", "h", _C_TYPES[size]
    plain = kind if (kind[0] in "us" and size == BYTES[kind]) or kind in ("f32", "f64") else f"b{8 * size}"
    return plain, {2: "h", 4: "r", 8: "l"}[size], _C_TYPES[size]


def assembly(form: Form) -> str:
    """Return the instruction between moves from the operands of inline assembly and back."""
    ins, outs = form.operands, form.results
    registers = [(f"x{n}", k, len(outs) + n) for n, k in enumerate(ins)]
    lines = [f".reg .{_register(k)[0]} {name};" for name, k, _ in registers]
    lines += [f".reg .{_register(k)[0]} y{n};" for n, k in enumerate(outs)]
    lines += [_moved(kind, name, f"%{n}") for name, kind, n in registers]
    lines += _instruction(form, [name for name, _, _ in registers])
    for n, kind in enumerate(outs):
        if not (kind == "pred" and _carries_out(form)):
            lines.append(f"selp.u32 %{n}, 1, 0, y{n};" if kind == "pred" else _moved(kind, f"%{n}", f"y{n}"))
    return " ".join(lines)


def _moved(kind: str, to: str, source: str) -> str:
    if kind == "pred":
        return f"setp.ne.u32 {to}, {source}, 0;"
    if kind == "b8":  # only conversions and vectors of bytes take such registers
        return f"cvt.u16.u8 {to}, {source};" if to[0] == "%" else f"cvt.u8.u16 {to}, {source};"
    return f"mov.b{8 * max(BYTES[kind], 2)} {to}, {source};"


def _carries_out(form: Form) -> bool:
    return ".cc." in form.opcode


def _instruction(form: Form, operands: list[str]) -> list[str]:
    """Return the instruction; a carry, which is no operand, is put in before and taken out behind."""
    before, behind, results = [], [], [f"y{n}" for n in range(len(form.results))]
    if form.root in ("addc", "subc"):
        carry = operands.pop()
        before = [".reg .u32 c;", f"selp.u32 c, 1, 0, {carry};"]
        before.append("add.cc.u32 c, c, 0xffffffff;" if form.root == "addc" else "sub.cc.u32 c, 0, c;")
    if _carries_out(form):
        results = results[:1]
        behind = ["addc.u32 %1, 0, 0;"] if form.root.startswith("add") else ["subc.u32 %1, 0, 0;", "and.b32 %1, %1, 1;"]
    if form.constant is not None:
        operands = [*operands[:3], f"{form.constant:#x}", *operands[3:]]
    result = "|".join(results)
    return [*before, f"{form.opcode} {', '.join([result, *operands])};", *behind]
