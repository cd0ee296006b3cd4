"""Products of matrices in registers: every shape and type, against the figures of the manual written out anew."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.simt.build import run

CASES = [  # shape, A, B, C and D
    ("m16n8k16", "f16", "f16", "f32"), ("m16n8k16", "f16", "f16", "f16"), ("m16n8k8", "f16", "f16", "f32"),
    ("m16n8k16", "bf16", "bf16", "f32"), ("m16n8k8", "bf16", "bf16", "f32"),
    ("m16n8k8", "tf32", "tf32", "f32"), ("m16n8k4", "tf32", "tf32", "f32"),
    ("m16n8k32", "s8", "s8", "s32"), ("m16n8k32", "u8", "s8", "s32"), ("m16n8k16", "s8", "u8", "s32"),
    ("m8n8k16", "u8", "u8", "s32"), ("m16n8k64", "s4", "s4", "s32"), ("m16n8k32", "u4", "s4", "s32"),
    ("m8n8k32", "s4", "u4", "s32"), ("m16n8k32", "e4m3", "e4m3", "f32"), ("m16n8k32", "e5m2", "e4m3", "f32"),
    ("m8n8k4", "f64", "f64", "f64"), ("m16n8k16", "f64", "f64", "f64"), ("m16n8k256", "b1", "b1", "s32"),
    ("m16n8k128", "b1", "b1", "s32"), ("m8n8k128", "b1", "b1", "s32"),
]  # fmt: skip
NBITS = {
    "f16": 16,
    "bf16": 16,
    "tf32": 32,
    "s8": 8,
    "u8": 8,
    "s4": 4,
    "u4": 4,
    "e4m3": 8,
    "e5m2": 8,
    "f64": 64,
    "b1": 1,
}
DTYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "tf32": np.float32, "e4m3": ml_dtypes.float8_e4m3fn,
          "e5m2": ml_dtypes.float8_e5m2, "f64": np.float64, "f32": np.float32, "s32": np.int32}  # fmt: skip


def values(kind: str, shape, rng) -> np.ndarray:
    low, high = {"u8": (0, 256), "u4": (0, 16), "s4": (-8, 8), "s8": (-128, 128), "b1": (0, 2)}.get(kind, (-8, 9))
    return rng.integers(low, high, shape)


def bits_of(matrix: np.ndarray, kind: str) -> np.ndarray:
    """Return the elements' codes as Python integers."""
    if kind in DTYPES:
        codes = matrix.astype(DTYPES[kind])
        return codes.view(f"u{codes.itemsize}").astype(object)
    return matrix.astype(object) & ((1 << NBITS[kind]) - 1)


def a_place(lane: int, reg: int, j: int, e: int, m: int) -> tuple[int, int]:
    row = lane // 4 + (8 if m == 16 and reg % 2 else 0)
    step = reg // 2 if m == 16 else reg
    return row, lane % 4 * e + j + 4 * e * step


def b_place(lane: int, reg: int, j: int, e: int) -> tuple[int, int]:
    return lane % 4 * e + j + 4 * e * reg, lane // 4


def c_place(lane: int, i: int) -> tuple[int, int]:
    return lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2


def registers(matrix: np.ndarray, kind: str, place, count: int, word: int) -> np.ndarray:
    codes, e = bits_of(matrix, kind), word // NBITS.get(kind, 32)
    out = np.zeros((32, count), f"u{word // 8}")
    for lane in range(32):
        for reg in range(count):
            out[lane, reg] = sum(codes[place(lane, reg, j)] << j * NBITS.get(kind, 32) for j in range(e))
    return out


def operand(name: str, count: int, first: int) -> str:
    return "{" + ", ".join(f"%{name}{first + i}" for i in range(count)) + "}"


def load(pointer: int, name: str, count: int, first: int, nbytes: int) -> str:
    lines = [f"mul.wide.u32 %rd1, %r0, {count * nbytes}; add.s64 %rd1, %rd1, %rd{50 + pointer};"]
    kind = "f64" if nbytes == 8 else "b32"
    return "\n".join(lines + [f"ld.global.{kind} %{name}{first + i}, [%rd1+{i * nbytes}];" for i in range(count)])


@pytest.mark.parametrize(("shape", "a_kind", "b_kind", "c_kind"), CASES, ids=lambda c: c)
@pytest.mark.parametrize("logic", ["xor", "and"])
def test_products(shape, a_kind, b_kind, c_kind, logic):
    if logic == "and" and a_kind != "b1":
        return
    m, n, k = (int(x) for x in shape[1:].replace("n", " ").replace("k", " ").split())
    rng = np.random.default_rng(k)
    a, b, c = values(a_kind, (m, k), rng), values(b_kind, (k, n), rng), rng.integers(-50, 50, (m, n))
    word = 64 if a_kind == "f64" else 32
    e_a, e_b, e_c = word // NBITS[a_kind], word // NBITS[b_kind], 2 if c_kind == "f16" else 1
    counts = [m * k // 32 // e_a, n * k // 32 // e_b, m * n // 32 // e_c]
    regs = [
        registers(a, a_kind, lambda lane, r, j: a_place(lane, r, j, e_a, m), counts[0], word),
        registers(b, b_kind, lambda lane, r, j: b_place(lane, r, j, e_b), counts[1], word),
        registers(c, c_kind, lambda lane, r, j: c_place(lane, r * e_c + j), counts[2], word),
    ]
    name, nbytes = ("fd", 8) if word == 64 else ("r", 4)
    firsts = [10, 10 + counts[0], 10 + counts[0] + counts[1]]
    if word == 64:
        firsts = [0, counts[0], counts[0] + counts[1]]
    out = np.zeros_like(regs[2])
    text = "\n".join(load(i, name, counts[i], firsts[i], nbytes) for i in range(3))
    ops = [operand(name, counts[i], firsts[i]) for i in range(3)]
    suffix = f".{logic}.popc" if a_kind == "b1" else ""
    text += (f"\nmma.sync.aligned.{shape}.row.col.{c_kind}.{a_kind}.{b_kind}.{c_kind}{suffix} {ops[2]}, {ops[0]}, {ops[1]}, {ops[2]};\n"
             f"mul.wide.u32 %rd1, %r0, {counts[2] * nbytes}; add.s64 %rd1, %rd1, %rd53;\n")  # fmt: skip
    kind = "f64" if word == 64 else "b32"
    text += "\n".join(f"st.global.{kind} [%rd1+{i * nbytes}], %{name}{firsts[2] + i};" for i in range(counts[2]))
    run(text, [*regs, out]).check()
    if a_kind == "b1":
        joined = (a[:, :, None] ^ b[None]) if logic == "xor" else (a[:, :, None] & b[None])
        wanted = c + joined.sum(1)
    else:
        wanted = a @ b + c
    np.testing.assert_array_equal(
        out, registers(wanted, c_kind, lambda lane, r, j: c_place(lane, r * e_c + j), counts[2], word)
    )


def test_saturation_of_integers():
    big = np.full((32, 4), 0x7F7F7F7F, np.uint32)
    small, start = np.full((32, 2), 0x7F7F7F7F, np.uint32), np.full((32, 4), 0x7FFFFFF0, np.uint32)
    out = np.zeros((32, 4), np.uint32)
    text = "\n".join(load(i, "r", n, f, 4) for i, (n, f) in enumerate(((4, 10), (2, 14), (4, 16))))
    for name, wanted in ((".satfinite", 0x7FFFFFFF), ("", (0x7FFFFFF0 + 32 * 127 * 127) & 0xFFFFFFFF)):
        run(text + f"mma.sync.aligned.m16n8k32.row.col{name}.s32.s8.s8.s32 {operand('r', 4, 20)}, {operand('r', 4, 10)}, {operand('r', 2, 14)}, {operand('r', 4, 16)};"
            + "mul.wide.u32 %rd1, %r0, 16; add.s64 %rd1, %rd1, %rd53; st.global.v4.b32 [%rd1], {%r20, %r21, %r22, %r23};",
            [big, small, start, out]).check()  # fmt: skip
        assert (out == wanted).all()
