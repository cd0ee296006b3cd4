"""What lanes do together, against loops over lanes that follow the manual's text."""

from __future__ import annotations

import numpy as np
import pytest

from tests.simt.build import lanes, run, words

A, B = words(64, seed=1), words(64, seed=2)
FULL = "0xffffffff"


def shuffled(mode: str, values, b: int, c: int):
    """Follow the pseudo-code of `shfl.sync`."""
    out, flags = [], []
    for lane in range(32):
        bval, cval, mask = b & 31, c & 31, c >> 8 & 31
        most, least = (lane & mask) | (cval & ~mask & 31), lane & mask
        j, ok = {"up": (lane - bval, lane - bval >= most), "down": (lane + bval, lane + bval <= most),
                 "bfly": (lane ^ bval, (lane ^ bval) <= most),
                 "idx": (least | (bval & ~mask & 31), (least | (bval & ~mask & 31)) <= most)}[mode]  # fmt: skip
        out.append(values[j if ok else lane])
        flags.append(ok)
    return np.array(out), np.array(flags)


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles(mode):
    for b in (0, 1, 5, 16, 31):
        for width in (32, 16, 8):
            c = (32 - width) << 8 | (0 if mode == "up" else 31)
            got, flag = lanes(
                f"shfl.sync.{mode}.b32 %r101|%p1, %r1, {b}, {c}, {FULL}; selp.u32 %r102, 1, 0, %p1;", A[:32], outputs=2
            )
            wanted, inside = shuffled(mode, A[:32], b, c)
            np.testing.assert_array_equal(got, wanted)
            np.testing.assert_array_equal(flag, inside)


def test_shuffle_of_two_warps_with_an_index_of_each_lane():
    (got,) = lanes(f"shfl.sync.idx.b32 %r101, %r1, %r2, 31, {FULL};", A, B, block=64)
    np.testing.assert_array_equal(got, [A[i // 32 * 32 + int(B[i]) % 32] for i in range(64)])


def test_votes_and_masks():
    bits = (A[:32] & 1).astype(bool)
    ballot = sum(int(b) << i for i, b in enumerate(bits))
    got = lanes(
        f"and.b32 %r3, %r1, 1; setp.ne.u32 %p1, %r3, 0; vote.sync.ballot.b32 %r101, %p1, {FULL};"
        f"vote.sync.any.pred %p2, %p1, {FULL}; selp.u32 %r102, 1, 0, %p2;"
        f"vote.sync.all.pred %p2, %p1, {FULL}; selp.u32 %r103, 1, 0, %p2;"
        f"@%p1 activemask.b32 %r104; @!%p1 mov.u32 %r104, 0;", A[:32], outputs=4,
    )  # fmt: skip
    assert (got[0] == ballot).all()
    assert (got[1] == 1).all()
    assert (got[2] == bits.all()).all()
    np.testing.assert_array_equal(got[3], np.where(bits, ballot, 0))


def test_matches():
    values = A[:32] % 4
    any_, all_, flag = lanes(
        f"match.any.sync.b32 %r101, %r1, {FULL}; match.all.sync.b32 %r102|%p1, %r1, {FULL}; selp.u32 %r103, 1, 0, %p1;",
        values, outputs=3,
    )  # fmt: skip
    np.testing.assert_array_equal(any_, [sum(int(v == w) << i for i, w in enumerate(values)) for v in values])
    assert not all_.any()
    assert not flag.any()


@pytest.mark.parametrize(
    ("op", "define"),
    [("add.u32", lambda v: v.sum(dtype=np.uint32)), ("min.u32", np.min), ("max.s32", lambda v: v.view(np.int32).max()),
     ("and.b32", np.bitwise_and.reduce), ("or.b32", np.bitwise_or.reduce), ("xor.b32", np.bitwise_xor.reduce)],
)  # fmt: skip
def test_reductions(op, define):
    (got,) = lanes(f"redux.sync.{op} %r101, %r1, {FULL};", A[:32])
    np.testing.assert_array_equal(got, np.full(32, np.uint32(define(A[:32]))))


def test_an_elected_lane():
    body = """
        mov.u32 %r101, 4; mov.u32 %r102, 0; setp.lt.u32 %p2, %r0, 4; @%p2 bra END;
        elect.sync %r101|%p1, 0xfffffff0; selp.u32 %r102, 1, 0, %p1; END:
    """
    lane, flag = lanes(body, A[:32], outputs=2)
    assert (lane == 4).all()
    np.testing.assert_array_equal(flag, np.arange(32) == 4)


def test_a_missing_lane_is_found():
    report = run(f"setp.lt.u32 %p1, %r0, 16; @%p1 bra END; shfl.sync.bfly.b32 %r1, %r0, 1, 31, {FULL}; END:")
    assert {f.kind for f in report.findings} == {"divergence"}
    report = run("setp.lt.u32 %p1, %r0, 16; @%p1 bra END; bar.sync 0; END:")
    assert "divergence" in {f.kind for f in report.findings}


def test_loops_of_different_lengths_meet_again():
    (got,) = lanes("""
        mov.u32 %r3, 0; and.b32 %r4, %r1, 15;
        LOOP: setp.ge.u32 %p1, %r3, %r4; @%p1 bra DONE; add.u32 %r3, %r3, 1; bra LOOP;
        DONE: redux.sync.add.u32 %r101, %r3, 0xffffffff;
    """, A[:32])  # fmt: skip
    assert (got == (A[:32] & 15).sum()).all()


def test_matrices_of_8_by_8():
    data = np.random.default_rng(0).integers(0, 1 << 16, (32, 8), dtype=np.uint16)
    body = """
        mul.wide.u32 %rd1, %r0, 16; add.s64 %rd2, %rd50, %rd1;
        mov.u32 %r2, buffer; shl.b32 %r3, %r0, 4; add.u32 %r2, %r2, %r3;
        ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%rd2]; st.shared.v4.b32 [%r2], {%r4, %r5, %r6, %r7};
        bar.warp.sync 0xffffffff;
        ldmatrix.sync.aligned.m8n8.x4TRANS.shared.b16 {%r10, %r11, %r12, %r13}, [%r2];
        add.s64 %rd3, %rd51, %rd1; st.global.v4.b32 [%rd3], {%r10, %r11, %r12, %r13};
        bar.warp.sync 0xffffffff;
        stmatrix.sync.aligned.m8n8.x4TRANS.shared.b16 [%r2], {%r13, %r12, %r11, %r10};
        bar.warp.sync 0xffffffff;
        ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r2]; add.s64 %rd3, %rd52, %rd1;
        st.global.v4.b32 [%rd3], {%r4, %r5, %r6, %r7};
    """
    for trans in ("", ".trans"):
        out, back = np.zeros((32, 8), np.uint16), np.zeros((32, 8), np.uint16)
        run(body.replace("TRANS", trans), [data, out, back]).check()
        matrices = data.reshape(4, 8, 8)
        for lane in range(32):
            for i, matrix in enumerate(matrices):
                square = matrix.T if trans else matrix
                np.testing.assert_array_equal(out[lane, 2 * i : 2 * i + 2], square[lane // 4, lane % 4 * 2 :][:2])
        np.testing.assert_array_equal(back.reshape(4, 8, 8), matrices[::-1])


def test_movmatrix():
    (got,) = lanes("movmatrix.sync.aligned.m8n8.trans.b16 %r101, %r1;", A[:32])
    square = A[:32].view(np.uint16).reshape(8, 8)
    np.testing.assert_array_equal(got.view(np.uint16).reshape(8, 8), square.T)
