"""Products of warpgroups: all swizzles, both majors, operands in registers, every type, waits and fences."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.simt.build import kernel, line_of
from tilus import simt

DTYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "tf32": np.float32, "e4m3": ml_dtypes.float8_e4m3fn,
          "e5m2": ml_dtypes.float8_e5m2, "s8": np.int8, "u8": np.uint8}  # fmt: skip
DEPTH = {1: 32, 2: 16, 4: 8}
MODES = {"none": 0, "128B": 1, "64B": 2, "32B": 3}
SPANS = {"none": 16, "32B": 32, "64B": 64, "128B": 128}


def swizzled(at: int, mode: str) -> int:
    bits = {"none": 0, "32B": 1, "64B": 2, "128B": 3}[mode]
    return at ^ (at >> 7 & (1 << bits) - 1) << 4


def tile(matrix: np.ndarray, mode: str, mn_major: bool) -> tuple[np.ndarray, int, int]:
    """Lay an operand (rows, k) out in bytes, atom by atom as the figures show; return it with LBO and SBO in bytes.

    An atom of a K-major operand is 8 rows of a span; of an MN-major one, 8 columns k of a span along the rows.
    """
    size = matrix.itemsize
    rows, k = matrix.shape
    unit, span = 16 // size, SPANS[mode] // size
    out = np.zeros(matrix.nbytes * 8 + 4096, np.uint8)
    atom = 8 * SPANS[mode]
    if mode == "none":
        # core matrices of 8 x 16 bytes, one behind another: along K first, then along rows
        leading, stride = (128, 128 * (k // unit)) if not mn_major else (128 * (rows // unit), 128)
    elif mn_major:
        leading, stride = atom, atom * -(-rows // span)
    else:
        leading, stride = 16, atom
    for r in range(rows):
        for c in range(k):
            if mode == "none" and not mn_major:
                at = r % 8 * 16 + r // 8 * stride + c // unit * leading + c % unit * size
            elif mode == "none":
                at = c % 8 * 16 + r // unit * stride + c // 8 * leading + r % unit * size
            elif mn_major:
                at = c % 8 * SPANS[mode] + r % span * size + r // span * leading + c // 8 * stride
            else:
                at = r % 8 * SPANS[mode] + c * size + r // 8 * stride
            at = swizzled(at, mode)
            out[at : at + size] = matrix[r : r + 1, c : c + 1].copy().view(np.uint8).reshape(-1)
    used = int(np.flatnonzero(out).max(initial=0)) + 16
    return out[: -(-used // 1024) * 1024], leading, stride


def descriptor(address: int, leading: int, stride: int, mode: str) -> int:
    return address >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | MODES[mode] << 62


COPY_IN = """
    mov.u32 %r1, buffer; mov.u32 %r2, %r0;
    FILL: mul.wide.u32 %rd1, %r2, 16; add.s64 %rd2, %rd1, %rd50; ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%rd2];
    shl.b32 %r3, %r2, 4; add.u32 %r3, %r3, %r1; st.shared.v4.b32 [%r3], {%r4, %r5, %r6, %r7};
    add.u32 %r2, %r2, 128; setp.lt.u32 %p1, %r2, WORDS; @%p1 bra FILL;
    FENCE bar.sync 0;
"""
SHARED = 1024  # where shared memory of a kernel begins


def program(n: int, kinds: str, flags: str, *, d: str = "f32", in_registers: int = 0, steps: int = 1, fence: str = "wgmma.fence.sync.aligned;",
            after_fence: str = "", wait: str = "wgmma.wait_group.sync.aligned 0;", proxy: str = "fence.proxy.async.shared::cta;", words: int = 1) -> str:  # fmt: skip
    count = n // (4 if d == "f16" else 2)
    regs = "{" + ", ".join(f"%f{i}" if d == "f32" else f"%r{60 + i}" for i in range(count)) + "}"
    names = regs.strip("{}").split(", ")
    a = "{" + ", ".join(f"%r{20 + i}" for i in range(in_registers)) + "}" if in_registers else "%rd10"
    lines = [COPY_IN.replace("WORDS", str(words)).replace("FENCE", proxy)]
    lines += [f"mov.b32 {name}, 0;" for name in names]
    lines += ["ld.global.u64 %rd10, [%rd52]; ld.global.u64 %rd11, [%rd52+8];"]
    lines += [f"mul.wide.u32 %rd3, %r0, {4 * in_registers}; add.s64 %rd3, %rd3, %rd53;"] * bool(in_registers)
    lines += [f"ld.global.b32 %r{20 + i}, [%rd3+{4 * i}];" for i in range(in_registers)]
    lines += ["setp.eq.u32 %p2, %r0, %r0;", fence, after_fence]
    lines += [f"wgmma.mma_async.sync.aligned.m64n{n}{kinds} {regs}, {a}, %rd11, %p2{flags};"] * steps
    lines += [
        "wgmma.commit_group.sync.aligned;",
        wait,
        f"mul.wide.u32 %rd4, %r0, {4 * count}; add.s64 %rd4, %rd4, %rd51;",
    ]
    lines += [f"st.global.b32 [%rd4+{4 * i}], {name};" for i, name in enumerate(names)]
    return kernel("\n".join(lines), ["u64", "u64", "u64", "u64"], shared=1 << 16)


def unpack(out: np.ndarray, n: int, d: str) -> np.ndarray:
    flat = out.view(np.float16 if d == "f16" else np.float32 if d == "f32" else np.int32).reshape(128, -1)
    full = np.zeros((64, n), flat.dtype)
    for thread in range(128):
        for i in range(n // 2):
            row = thread // 32 * 16 + thread % 32 // 4 + 8 * (i // 2 % 2)
            full[row, i // 4 * 8 + thread % 4 * 2 + i % 2] = flat[thread, i]
    return full


def fragments(a: np.ndarray) -> np.ndarray:
    """Return A in registers: 16 rows for each warp, 32-bit words of neighbours in k."""
    e = 4 // a.itemsize
    out = np.zeros((128, 4), np.uint32)
    for thread in range(128):
        for r in range(4):
            row = thread // 32 * 16 + thread % 32 // 4 + 8 * (r % 2)
            column = thread % 4 * e + 4 * e * (r // 2)
            out[thread, r] = np.ascontiguousarray(a[row, column : column + e]).view(np.uint32)[0]
    return out


def product(
    kind: str,
    n: int,
    mode: str,
    *,
    a_major=False,
    b_major=False,
    d="f32",
    in_registers=False,
    landing="late",
    signs=(1, 1),
    **options,
):
    """Run one product; return the report, the result and what it should be."""
    dtype = DTYPES[kind]
    k = DEPTH[np.dtype(dtype).itemsize]
    rng = np.random.default_rng(n)
    low = 0 if kind == "u8" else -4
    a, b = rng.integers(low, 5, (64, k)).astype(dtype), rng.integers(low, 5, (n, k)).astype(dtype)
    a[0, 0] = b[-1, -1] = 1
    bytes_a, lead_a, stride_a = tile(a, mode, a_major)
    bytes_b, lead_b, stride_b = tile(b, mode, b_major)
    data = np.concatenate([bytes_a, bytes_b])
    data = np.concatenate([data, np.zeros(-data.size % 2048, np.uint8)])
    descriptors = np.array([descriptor(SHARED, lead_a, stride_a, mode),
                            descriptor(SHARED + bytes_a.size, lead_b, stride_b, mode)], np.uint64)  # fmt: skip
    out = np.zeros(128 * n // (4 if d == "f16" else 2), np.uint32)
    flags = f", {signs[0]}, {signs[1]}" if d != "s32" else ""
    if kind in ("f16", "bf16"):
        flags += f", {int(b_major)}" if in_registers else f", {int(a_major)}, {int(b_major)}"
    text = program(
        n,
        f"k{k}.{d}.{kind}.{kind}",
        flags,
        d=d,
        in_registers=4 if in_registers else 0,
        words=data.size // 16,
        **options,
    )
    report = simt.run(text, "kernel", [data, out, descriptors, fragments(a)], 1, 128, landing=landing)
    wanted = a.astype(np.int64) @ b.astype(np.int64).T * options.get("steps", 1)
    return report, unpack(out, n, d), wanted, text


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("majors", [(False, False), (False, True), (True, False), (True, True)])
def test_layouts_of_16_bit_operands(mode, majors):
    n = {"none": 24, "32B": 16, "64B": 32, "128B": 128}[mode]
    report, found, wanted, _ = product("f16", n, mode, a_major=majors[0], b_major=majors[1])
    assert report.ok, str(report)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("kind", "d"),
    [("bf16", "f32"), ("f16", "f16"), ("tf32", "f32"), ("e4m3", "f32"), ("e5m2", "f16"), ("s8", "s32"), ("u8", "s32")],
)
def test_types(kind, d, mode):
    report, found, wanted, _ = product(kind, 16, mode, d=d)
    assert report.ok, str(report)
    np.testing.assert_array_equal(found.astype(np.int64), wanted)


@pytest.mark.parametrize("landing", ["late", "early"])
@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32", "e4m3", "s8"])
def test_operands_in_registers_and_chains(kind, landing):
    report, found, wanted, _ = product(kind, 8, "128B" if kind != "f16" else "32B", d="s32" if kind == "s8" else "f32",
                                       in_registers=True, steps=3, landing=landing)  # fmt: skip
    assert report.ok, str(report)
    np.testing.assert_array_equal(found, wanted)


def test_broken_products():
    for options, kind, place in (
        ({"wait": ""}, "pending", ""),
        ({"wait": "wgmma.wait_group.sync.aligned 1;"}, "uninitialized", "st.global.b32"),
        ({"proxy": ""}, "proxy", "wgmma.mma_async"),
        ({"fence": ""}, "proxy", "wgmma.mma_async"),
        ({"fence": "wgmma.fence.sync.aligned; mov.b32 %f3, 0;"}, "proxy", "wgmma.mma_async"),
        ({"wait": "st.shared.u32 [buffer], %r0; wgmma.wait_group.sync.aligned 0;"}, "race", "st.shared.u32 [buffer]"),
    ):
        report, _, _, text = product("f16", 8, "none", **options)
        assert kind in {f.kind for f in report.findings}, (options, str(report))
        if place:
            assert line_of(text, place) in {f.line for f in report.findings}


def test_a_register_of_an_operand_changed_after_the_fence():
    report, _, _, text = product("f16", 8, "none", in_registers=True, after_fence="add.u32 %r22, %r22, 0;")
    assert {f.kind for f in report.findings} == {"proxy"}
    assert report.findings[0].line == line_of(text, "wgmma.mma_async")


def test_negated_operands():
    report, found, wanted, _ = product("f16", 8, "none", signs=(-1, 1))
    assert report.ok, str(report)
    np.testing.assert_array_equal(found, -wanted)
