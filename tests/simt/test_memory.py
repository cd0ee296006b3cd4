"""Loads and stores of every width and space, atomic operations, asynchronous copies."""

from __future__ import annotations

import numpy as np
import pytest

from tests.simt.build import lanes, run, words


@pytest.mark.parametrize("kind", ["u8", "s8", "u16", "s16", "b32"])
def test_narrow_loads_extend(kind):
    data = words(32).view(f"{'i' if kind[0] == 's' else 'u'}{4 if kind == 'b32' else int(kind[1:]) // 8}")[:32].copy()
    out = np.zeros(32, np.int32)
    run(f"mul.wide.u32 %rd1, %r0, {data.itemsize}; add.s64 %rd1, %rd1, %rd50; ld.global.{kind} %r1, [%rd1];"
        "shl.b64 %rd2, %rd0, 2; add.s64 %rd2, %rd2, %rd51; st.global.b32 [%rd2], %r1;", [data, out]).check()  # fmt: skip
    np.testing.assert_array_equal(out, data.astype(np.int64).astype(np.int32))


@pytest.mark.parametrize("space", ["shared", "local", "generic"])
@pytest.mark.parametrize("form", ["v4.b32", "v2.b64", "v2.u16", "b8"])
def test_spaces_and_vectors(space, form):
    count, kind = (int(form[1]), form[3:]) if form[0] == "v" else (1, form)
    nbytes = int(kind[1:]) // 8
    prefix = {2: "h", 8: "rd"}.get(nbytes, "r")
    regs = [f"%{prefix}{20 + i}" for i in range(count)]
    vector = "{" + ", ".join(regs) + "}" if count > 1 else regs[0]
    total = nbytes * count
    data = words(32 * total // 4 + 1).view(np.uint8)[: 32 * total].copy()
    out = np.zeros_like(data)
    where = {"shared": "mov.u32 %r2, buffer; cvt.u64.u32 %rd3, %r2;", "local": "mov.u64 %rd3, depot;",
             "generic": "mov.u64 %rd3, buffer; cvta.shared.u64 %rd3, %rd3;"}[space]  # fmt: skip
    step = "" if space == "local" else "add.s64 %rd3, %rd3, %rd1;"
    name = "" if space == "generic" else f".{space}"
    run(f".local .align 16 .b8 depot[16]; mul.wide.u32 %rd1, %r0, {total}; add.s64 %rd2, %rd50, %rd1; {where} {step}"
        f"ld.global.{form} {vector}, [%rd2]; st{name}.{form} [%rd3], {vector}; ld{name}.{form} {vector}, [%rd3];"
        f"add.s64 %rd2, %rd51, %rd1; st.{form} [%rd2], {vector};", [data, out]).check()  # fmt: skip
    np.testing.assert_array_equal(out, data)


def test_addresses_change_space_and_back():
    out = np.zeros(2, np.uint32)
    run("""
        mov.u64 %rd1, buffer; cvta.shared.u64 %rd2, %rd1; cvta.to.shared.u64 %rd3, %rd2; setp.eq.u64 %p1, %rd1, %rd3;
        isspacep.shared %p2, %rd2; isspacep.global %p3, %rd50; isspacep.global %p4, %rd2; not.pred %p4, %p4;
        and.pred %p1, %p1, %p2; and.pred %p1, %p1, %p3; and.pred %p1, %p1, %p4; selp.u32 %r1, 1, 0, %p1;
        st.global.u32 [%rd50], %r1;
    """, [out], block=1).check()  # fmt: skip
    assert out[0] == 1


ATOMS = {
    "add.u32": lambda a, b: (a + b) % 2**32, "min.s32": lambda a, b: min(a - (a >> 31 << 32), b - (b >> 31 << 32)) % 2**32,
    "max.u32": max, "and.b32": lambda a, b: a & b, "or.b32": lambda a, b: a | b, "xor.b32": lambda a, b: a ^ b,
    "exch.b32": lambda a, b: b, "inc.u32": lambda a, b: 0 if a >= b else a + 1,
    "dec.u32": lambda a, b: b if a == 0 or a > b else a - 1,
}  # fmt: skip


@pytest.mark.parametrize(("lead", "kinds"), [(0, set()), (8, {"misaligned"}), (16, set())])
def test_an_array_is_as_aligned_as_where_it_lies(lead, kinds):
    room = np.zeros(80, np.uint8)
    start = -room.ctypes.data % 16 + lead
    array = room[start : start + 16]
    body = "ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd50]; ld.global.u32 %r5, [%rd50+12];"
    assert {f.kind for f in run(body, [array], block=1).findings} == kinds
    before, after = (run(f"ld.global.u32 %r5, [%rd50+{offset}];", [array], block=1) for offset in (-4, 16))
    assert [f.buffer for f in before.findings] == ["p0 (16 bytes) at byte -4"]
    assert [f.buffer for f in after.findings] == ["p0 (16 bytes) at byte 16"]


@pytest.mark.parametrize("op", ATOMS)
@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomic_operations_go_one_after_another(op, space):
    values, cell = words(64, seed=3), words(1, seed=4)
    out, start = np.zeros(64, np.uint32), int(cell[0])
    base = "%rd50" if space == "global" else "%rd3"
    run(f"""
        mov.u64 %rd3, buffer; shl.b64 %rd1, %rd0, 2; add.s64 %rd2, %rd51, %rd1; ld.global.u32 %r1, [%rd2];
        setp.eq.u32 %p1, %r0, 0; ld.global.u32 %r3, [%rd50]; @%p1 st.shared.u32 [buffer], %r3; bar.sync 0;
        atom.{space}.{op} %r2, [{base}], %r1; add.s64 %rd2, %rd52, %rd1; st.global.u32 [%rd2], %r2;
    """, [cell, values, out], block=64).check()  # fmt: skip
    for value, old in zip(values, out, strict=True):
        assert int(old) == start
        start = ATOMS[op](start, int(value))
    if space == "global":
        assert cell[0] == start


def test_compare_and_swap_and_floats():
    counter, total, pair = np.zeros(1, np.uint32), np.zeros(1, np.float32), np.zeros(2, np.float16)
    run("""
        LOOP: ld.relaxed.gpu.global.u32 %r1, [%rd50]; add.u32 %r2, %r1, 1;
        atom.global.cas.b32 %r3, [%rd50], %r1, %r2; setp.ne.u32 %p1, %r3, %r1; @%p1 bra LOOP;
        cvt.rn.f32.u32 %f1, %r0; red.global.add.f32 [%rd51], %f1;
        mov.b32 %r4, 0x40003C00; red.global.add.noftz.f16x2 [%rd52], %r4;
    """, [counter, total, pair], block=64).check()  # fmt: skip
    assert counter[0] == 64
    assert total[0] == sum(range(64))
    np.testing.assert_array_equal(pair, [64, 128])


COPY = """
    mov.u32 %r1, buffer; shl.b32 %r2, %r0, 4; add.u32 %r1, %r1, %r2; mul.wide.u32 %rd1, %r0, 16;
    add.s64 %rd2, %rd50, %rd1; min.u32 %r3, %r0, 16;
    cp.async.cg.shared.global [%r1], [%rd2], 16, %r3;
    cp.async.commit_group;
    add.u32 %r4, %r1, 512; cp.async.ca.shared.global [%r4], [%rd2], 8; cp.async.ca.shared.global [%r4+8], [%rd2+8], 4;
    st.shared.u32 [%r4+12], %r0;
    cp.async.wait_group WAIT; cp.async.wait_all;
    ld.shared.v4.b32 {%r5, %r6, %r7, %r8}, [%r1]; ld.shared.v4.b32 {%r9, %r10, %r11, %r12}, [%r4];
    add.s64 %rd3, %rd51, %rd1; st.global.v4.b32 [%rd3], {%r5, %r6, %r7, %r8};
    st.global.v4.b32 [%rd3+512], {%r9, %r10, %r11, %r12};
"""


@pytest.mark.parametrize("landing", ["late", "early"])
def test_asynchronous_copies(landing):
    data, out = words(32, 4), np.zeros((64, 4), np.uint32)
    run(COPY.replace("WAIT", "0"), [data, out], landing=landing).check()
    wanted = data.copy().view(np.uint8)
    for lane in range(16):
        wanted[lane, lane:] = 0
    np.testing.assert_array_equal(out[:32].view(np.uint8), wanted)
    np.testing.assert_array_equal(out[32:, :3], data[:, :3])
    np.testing.assert_array_equal(out[32:, 3], np.arange(32))


def test_named_barriers_and_reductions():
    """Two warps fill a buffer and go on without waiting; two others wait for them."""
    out = np.zeros(64, np.uint32)
    run("""
        mov.u32 %r1, buffer; shl.b32 %r2, %r0, 2; setp.ge.u32 %p1, %r0, 64; @%p1 bra CONSUMER;
        add.u32 %r1, %r1, %r2; mul.lo.u32 %r3, %r0, 3; st.shared.u32 [%r1], %r3; bar.arrive 1, 128; bra END;
        CONSUMER: sub.u32 %r2, %r2, 4; sub.u32 %r2, %r2, 252; add.u32 %r1, %r1, %r2; bar.sync 1, 128;
        xor.b32 %r1, %r1, 128; ld.shared.u32 %r4, [%r1];
        cvt.u64.u32 %rd1, %r2; add.s64 %rd1, %rd1, %rd50; st.global.u32 [%rd1], %r4;
        END:
    """, [out], block=128).check()  # fmt: skip
    np.testing.assert_array_equal(out, (np.arange(64) ^ 32) * 3)
    count, every, some = lanes(
        "and.b32 %r3, %r1, 1; setp.ne.u32 %p1, %r3, 0; bar.red.popc.u32 %r101, 0, %p1; bar.red.and.pred %p2, 0, %p1;"
        "selp.u32 %r102, 1, 0, %p2; barrier.cta.red.or.pred %p2, 0, %p1; selp.u32 %r103, 1, 0, %p2;",
        words(96), outputs=3, block=96,
    )  # fmt: skip
    assert (count == (words(96) & 1).sum()).all()
    assert not every.any()
    assert some.all()


def test_many_blocks_in_turns():
    """More blocks than are resident at a time; each finds its own indices."""
    out = np.zeros((3, 5, 40, 96), np.uint32)
    run("""
        mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ctaid.y; mov.u32 %r3, %ctaid.z; mov.u32 %r4, %nctaid.x; mov.u32 %r5, %nctaid.y;
        mad.lo.u32 %r6, %r3, %r5, %r2; mad.lo.u32 %r6, %r6, %r4, %r1; mov.u32 %r7, %tid.y; mov.u32 %r8, %ntid.x;
        mad.lo.u32 %r9, %r7, %r8, %r0; mad.lo.u32 %r10, %r6, 96, %r9; mul.wide.u32 %rd1, %r10, 4; add.s64 %rd1, %rd1, %rd50;
        st.global.u32 [%rd1], %r10;
    """, [out], grid=(40, 5, 3), block=(48, 2)).check()  # fmt: skip
    np.testing.assert_array_equal(out.reshape(-1), np.arange(out.size))


@pytest.mark.parametrize(("size", "clean"), [(0, True), (5, True), (16, True), (17, False)])
def test_an_asynchronous_copy_reads_no_more_than_it_writes(size, clean):
    source, out = words(32, 4), np.zeros((32, 4), np.uint32)
    body = """
        shl.b32 %r1, %r0, 4; cvt.u64.u32 %rd1, %r1; add.s64 %rd2, %rd50, %rd1; add.s64 %rd3, %rd51, %rd1;
        mov.u32 %r2, buffer; add.u32 %r2, %r2, %r1;
        cp.async.cg.shared.global [%r2], [%rd2], 16, %r192; cp.async.wait_all;
        ld.shared.v4.b32 {%r3, %r4, %r5, %r6}, [%r2]; st.global.v4.b32 [%rd3], {%r3, %r4, %r5, %r6};
    """
    report = run(body, [source, out, size])
    assert {f.kind for f in report.findings} == (set() if clean else {"bounds"})
    wanted = source.view(np.uint8).copy()
    wanted[:, size:] = 0
    np.testing.assert_array_equal(out.view(np.uint8), wanted)
