"""sm_90a: barriers in memory, bulk and tensor copies, clusters, and what happens when one of their rules is broken."""

from __future__ import annotations

import numpy as np
import pytest

from tests.simt.build import kernel, line_of, run, words
from tilus import simt
from tilus.errors import LaunchError

LANDINGS = pytest.mark.parametrize("landing", ["late", "early"])


def kinds(report: simt.Report) -> set[str]:
    return {f.kind for f in report.findings}


PING = """
    setp.eq.u32 %p9, %r0, 0; @%p9 mbarrier.init.shared.b64 [buffer], 64; @%p9 mbarrier.init.shared.b64 [buffer+8], 64;
    FENCE
    setp.ge.u32 %p1, %r0, 64; mov.u32 %r9, 0; mov.u32 %r1, buffer; and.b32 %r2, %r0, 63; shl.b32 %r2, %r2, 2; add.u32 %r1, %r1, %r2;
    @%p1 bra CONSUMER;
    LOOP: and.b32 %r3, %r9, 1; xor.b32 %r4, %r3, 1;
    WAIT: WAITFREE mbarrier.try_wait.parity.shared.b64 %p2, [buffer+8], %r4; @!%p2 bra WAIT;
    mad.lo.u32 %r5, %r9, 100, %r0; st.shared.u32 [%r1+64], %r5; mbarrier.arrive.shared.b64 _, [buffer];
    add.u32 %r9, %r9, 1; setp.lt.u32 %p3, %r9, 5; @%p3 bra LOOP; bra END;
    CONSUMER: and.b32 %r3, %r9, 1;
    WAIT2: mbarrier.try_wait.parity.shared.b64 %p2, [buffer], %r3, 1000; @!%p2 bra WAIT2;
    xor.b32 %r4, %r1, 128; ld.shared.u32 %r6, [%r4+64];
    RELEASE mbarrier.arrive.shared::cta.b64 %rd9, [buffer+8];
    mul.wide.u32 %rd1, %r9, 256; cvt.u64.u32 %rd2, %r2; add.s64 %rd1, %rd1, %rd2; add.s64 %rd1, %rd1, %rd50; st.global.u32 [%rd1], %r6;
    add.u32 %r9, %r9, 1; setp.lt.u32 %p3, %r9, 5; @%p3 bra CONSUMER;
    END:
"""


def ping(fence: str = "bar.sync 0;", body: str = PING) -> tuple[simt.Report, np.ndarray]:
    out = np.zeros((5, 64), np.uint32)
    text = body.replace("FENCE", fence).replace("WAITFREE", "").replace("RELEASE", "")
    return run(text, [out], block=128, shared=4096), out


def test_producers_and_consumers():
    # The buffer of words begins behind the barriers, and the consumer reads another warp's half.
    body = PING.replace("[%r1+64]", "[%r1+256]").replace("xor.b32 %r4, %r1, 128; ld.shared.u32 %r6, [%r4+64]",
                                                         "xor.b32 %r4, %r1, 128; ld.shared.u32 %r6, [%r4+256]")  # fmt: skip
    report, out = ping(body=body)
    report.check()
    np.testing.assert_array_equal(out, np.arange(5)[:, None] * 100 + (np.arange(64) ^ 32))


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("WAIT2: mbarrier.try_wait.parity.shared.b64 %p2, [buffer], %r3, 1000; @!%p2 bra WAIT2;", "", "race"),
        ("WAIT: WAITFREE mbarrier.try_wait.parity.shared.b64 %p2, [buffer+8], %r4; @!%p2 bra WAIT;", "", "deadlock"),
        ("ld.shared.u32 %r6, [%r4+64];\n    RELEASE mbarrier.arrive.shared::cta.b64 %rd9, [buffer+8];",
         "mbarrier.arrive.shared::cta.b64 %rd9, [buffer+8]; ld.shared.u32 %r6, [%r4+64];", "race"),
        ("mbarrier.arrive.shared.b64 _, [buffer];", "mbarrier.arrive.relaxed.cta.shared.b64 _, [buffer];", "race"),
        ("[buffer], 64;", "[buffer], 65;", "deadlock"),
        ("[buffer], 64;", "[buffer], 63;", "barrier"),
        ("and.b32 %r3, %r9, 1; xor.b32 %r4, %r3, 1;", "and.b32 %r3, %r9, 1; mov.u32 %r4, %r3;", "deadlock"),
    ],
)  # fmt: skip
def test_broken_producers_and_consumers(old, new, kind):
    body = PING.replace("[%r1+64]", "[%r1+256]").replace("[%r4+64]", "[%r4+256]")
    assert old.replace("+64]", "+256]") in body
    report, _ = ping(body=body.replace(old.replace("+64]", "+256]"), new.replace("+64]", "+256]")))
    assert kind in kinds(report), str(report)


def test_a_barrier_used_before_it_is_made():
    report, _ = ping(fence="")
    assert kinds(report) & {"race", "barrier"}
    assert kinds(run("mbarrier.arrive.shared.b64 %rd1, [buffer];", block=1)) == {"barrier"}


def test_states_and_looking_without_waiting():
    out = np.zeros(2, np.uint32)
    run("""
        mbarrier.init.shared.b64 [buffer], 2; mbarrier.arrive.shared.b64 %rd1, [buffer];
        mbarrier.test_wait.shared.b64 %p1, [buffer], %rd1; selp.u32 %r1, 1, 0, %p1;
        mbarrier.arrive.shared.b64 %rd2, [buffer]; mbarrier.test_wait.shared.b64 %p1, [buffer], %rd1; selp.u32 %r2, 1, 0, %p1;
        st.global.v2.u32 [%rd50], {%r1, %r2}; mbarrier.inval.shared.b64 [buffer];
    """, [out], block=1).check()  # fmt: skip
    np.testing.assert_array_equal(out, [0, 1])


def test_cp_async_tells_a_barrier():
    data, out = words(32, 4), np.zeros((32, 4), np.uint32)
    run("""
        setp.eq.u32 %p9, %r0, 0; @%p9 mbarrier.init.shared.b64 [buffer], 32; bar.warp.sync 0xffffffff;
        mov.u32 %r1, buffer; shl.b32 %r2, %r0, 4; add.u32 %r1, %r1, %r2; mul.wide.u32 %rd1, %r0, 16; add.s64 %rd2, %rd50, %rd1;
        cp.async.cg.shared.global [%r1+64], [%rd2], 16; cp.async.mbarrier.arrive.noinc.shared.b64 [buffer];
        W: mbarrier.try_wait.parity.shared.b64 %p1, [buffer], 0; @!%p1 bra W;
        xor.b32 %r3, %r1, 16; xor.b32 %r2, %r2, 16; mov.u32 %r3, buffer; add.u32 %r3, %r3, %r2; ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r3+64];
        add.s64 %rd2, %rd51, %rd1; st.global.v4.b32 [%rd2], {%r4, %r5, %r6, %r7};
    """, [data, out]).check()  # fmt: skip
    np.testing.assert_array_equal(out, data.reshape(16, 2, 4)[:, ::-1].reshape(32, 4))


BULK = """
    setp.eq.u32 %p9, %r0, 0; @%p9 mbarrier.init.shared.b64 [buffer], 1; @%p9 FENCEINIT bar.sync 0;
    @!%p9 bra WAIT; EXPECT
    mov.u32 %r1, buffer; cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1+64], [%rd50], 1024, [buffer];
    WAIT: WAITING mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p1, [buffer], 0; @!%p1 bra WAIT;
    DONE: mov.u32 %r1, buffer; shl.b32 %r2, %r0, 4; add.u32 %r1, %r1, %r2; ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r1+64];
    add.u32 %r4, %r4, 1; st.shared.v4.b32 [%r1+2048], {%r4, %r5, %r6, %r7}; PROXY bar.sync 0;
    @!%p9 bra END; mov.u32 %r3, buffer;
    cp.async.bulk.global.shared::cta.bulk_group [%rd51], [%r3+2048], 1024; cp.async.bulk.commit_group;
    GROUP
    END:
"""
BULK_PARTS = {"FENCEINIT": "fence.mbarrier_init.release.cluster;", "EXPECT": "mbarrier.arrive.expect_tx.shared.b64 _, [buffer], 1024;",
              "WAITING": "", "PROXY": "fence.proxy.async.shared::cta;", "GROUP": "cp.async.bulk.wait_group.read 0;"}  # fmt: skip


def bulk(landing: str = "late", **parts: str) -> tuple[simt.Report, bool, str]:
    data, out = words(64, 4), np.zeros((64, 4), np.uint32)
    text = BULK
    for name, value in {**BULK_PARTS, **parts}.items():
        text = text.replace(name, value)
    text = kernel(text, ["u64", "u64"])
    report = simt.run(text, "kernel", [data, out], 1, 64, landing=landing)
    return report, bool((out == data + np.uint32([[1, 0, 0, 0]])).all()), text


@LANDINGS
def test_bulk_copies(landing):
    report, right, _ = bulk(landing)
    assert report.ok, str(report)
    assert right


@LANDINGS
def test_broken_bulk_copies(landing):
    expect = BULK_PARTS["EXPECT"]
    for parts, kind, place in (
        ({"WAITING": "bra DONE;"}, {"pending", "race"}, "ld.shared.v4"),
        ({"EXPECT": expect.replace("1024", "1040")}, "deadlock", ""),
        ({"EXPECT": expect.replace("1024", "512")}, {"deadlock", "pending"}, ""),
        ({"FENCEINIT": "mov.u32 %r9, 0;"}, "proxy", "shared::cluster.global"),
        ({"PROXY": ""}, "proxy", "cp.async.bulk.global"),
    ):
        report, _, text = bulk(landing, **parts)
        assert kinds(report) & ({kind} if isinstance(kind, str) else kind), (parts, str(report))
        if place:
            assert line_of(text, place) in {f.line for f in report.findings}
    report, _, _ = bulk("late", GROUP="")
    assert "pending" in kinds(report)


def test_addresses_of_bulk_copies():
    for old, new, kind in (("[%rd50], 1024", "[%rd50+8], 1024", "misaligned"), ("[%rd50], 1024", "[%rd50], 1016", "misaligned"),
                           ("[%rd50], 1024", "[%rd50+16], 1024", "bounds")):  # fmt: skip
        text = BULK.replace(old, new)
        for name, value in BULK_PARTS.items():
            text = text.replace(name, value)
        assert kind in kinds(run(text, [words(64, 4), words(64, 4)], block=64))


def test_a_reducing_bulk_copy():
    data, out = np.arange(64, dtype=np.float32), np.full(64, 0.5, np.float32)
    run("""
        shl.b64 %rd1, %rd0, 2; add.s64 %rd2, %rd50, %rd1; ld.global.u32 %r1, [%rd2]; mov.u32 %r2, buffer; shl.b32 %r3, %r0, 2;
        add.u32 %r3, %r2, %r3; st.shared.u32 [%r3], %r1; fence.proxy.async; bar.sync 0; setp.ne.u32 %p1, %r0, 0; @%p1 bra END;
        cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%rd51], [%r2], 256;
        cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;
        END:
    """, [data, out], block=64, grid=2).check()  # fmt: skip
    np.testing.assert_array_equal(out, 2 * data + 0.5)


TENSOR = """
    mov.u64 %rd10, p0; cvta.param.u64 %rd10, %rd10; setp.eq.u32 %p9, %r0, 0; mov.u32 %r1, buffer;
    @%p9 mbarrier.init.shared.b64 [buffer+8192], 1; @%p9 fence.proxy.async; bar.sync 0; @!%p9 bra WAIT;
    mbarrier.arrive.expect_tx.shared.b64 _, [buffer+8192], BYTES;
    cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r1], [%rd10, {%r192, %r193}], [buffer+8192];
    WAIT: mbarrier.try_wait.parity.shared.b64 %p1, [buffer+8192], 0; @!%p1 bra WAIT;
    shl.b32 %r2, %r0, 4; add.u32 %r2, %r1, %r2; mul.wide.u32 %rd1, %r0, 16; add.s64 %rd1, %rd1, %rd51;
    LOOP: ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r2]; st.global.v4.b32 [%rd1], {%r4, %r5, %r6, %r7};
    add.u32 %r2, %r2, 512; add.s64 %rd1, %rd1, 512; add.u32 %r3, %r1, BYTES; setp.lt.u32 %p2, %r2, %r3; @%p2 bra LOOP;
"""


@LANDINGS
@pytest.mark.parametrize("swizzle", ["none", "32B", "64B", "128B"])
@pytest.mark.parametrize("start", [(0, 0), (5, -3), (-8, 37)])
def test_boxes_of_tensors(swizzle, start, landing):
    """A box, partly outside, as a dense tile whose 16-byte pieces are where a loop over addresses puts them."""
    inner = {"none": 64, "32B": 16, "64B": 32, "128B": 64}[swizzle]
    data = words(40, 72).astype(np.uint16).reshape(40, 72)
    box = (32, inner)
    entry = simt.TensorMap(data, box, swizzle=swizzle)
    out = np.zeros((box[0], inner), np.uint16)
    x, y = start
    run(
        TENSOR.replace("BYTES", str(entry.nbytes)), [entry, out, x % 2**32, y % 2**32], shared=8256, landing=landing
    ).check()
    padded = np.zeros((200, 300), np.uint16)
    padded[50:90, 50:122] = data
    wanted = padded[50 + y :, 50 + x :][: box[0], :inner]
    bits = {"none": 0, "32B": 1, "64B": 2, "128B": 3}[swizzle]
    flat, found = wanted.reshape(-1), out.reshape(-1)
    for i in range(0, flat.size, 8):
        at = i * 2
        at ^= (at >> 7 & (1 << bits) - 1) << 4
        np.testing.assert_array_equal(found[at // 2 : at // 2 + 8], flat[i : i + 8])


def test_storing_a_tensor():
    out = np.zeros((20, 40), np.uint32)
    entry = simt.TensorMap(out, (8, 16))
    run("""
        mov.u64 %rd10, p0; cvta.param.u64 %rd10, %rd10; mov.u32 %r1, buffer; shl.b32 %r2, %r0, 2; add.u32 %r2, %r1, %r2;
        st.shared.u32 [%r2], %r0; fence.proxy.async.shared::cta; bar.sync 0; setp.ne.u32 %p1, %r0, 0; @%p1 bra END;
        mov.u32 %r3, 32; mov.u32 %r4, 15; cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%rd10, {%r3, %r4}], [%r1];
        cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; END:
    """, [entry], block=128).check()  # fmt: skip
    tile = np.arange(128).reshape(8, 16)
    np.testing.assert_array_equal(out[15:, 32:], tile[:5, :8])
    assert out.sum() == tile[:5, :8].sum()


def test_tensor_maps_that_are_wrong():
    data = np.zeros((8, 64), np.float16)
    for box, options, message in (((8,), {}, "dimensions"), ((8, 300), {}, "1 to 256"), ((8, 4), {}, "no multiple of 16"),
                                  ((8, 64), {"swizzle": "64B"}, "more than the swizzle"), ((8, 8), {"swizzle": "7B"}, "no swizzle")):  # fmt: skip
        with pytest.raises(LaunchError, match=message):
            simt.TensorMap(data, box, **options)
    with pytest.raises(LaunchError, match="strides"):
        simt.TensorMap(np.zeros((4, 9), np.float16), (4, 8))


CLUSTER = """
    mov.u32 %r1, %cluster_ctarank; mov.u32 %r2, buffer; shl.b32 %r3, %r0, 2; add.u32 %r3, %r2, %r3;
    mad.lo.u32 %r4, %r1, 1000, %r0; st.shared.u32 [%r3], %r4;
    SYNC
    xor.b32 %r5, %r1, 1; mapa.shared::cluster.u32 %r6, %r3, %r5; ld.shared::cluster.u32 %r7, [%r6];
    getctarank.shared::cluster.u32 %r8, %r6; mad.lo.u32 %r7, %r8, 100000, %r7;
    mov.u32 %r9, %ctaid.x; mad.lo.u32 %r9, %r9, 32, %r0; mul.wide.u32 %rd1, %r9, 4; add.s64 %rd1, %rd1, %rd50; st.global.u32 [%rd1], %r7;
    barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;
"""
SYNC = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"


def test_shared_memory_of_the_cluster():
    out = np.zeros((4, 32), np.uint32)
    run(CLUSTER.replace("SYNC", SYNC), [out], grid=4, cluster=2).check()
    other = np.array([1, 0, 1, 0])[:, None]
    np.testing.assert_array_equal(out, other * 101000 + np.arange(32))
    assert kinds(run(CLUSTER.replace("SYNC", "bar.sync 0;"), [out], grid=4, cluster=2)) == {"race"}
    report = run("mov.u32 %r1, %cluster_ctarank; setp.eq.u32 %p1, %r1, 0; @%p1 barrier.cluster.arrive; @%p1 barrier.cluster.wait;"
                 "@!%p1 bar.sync 1, 64;", grid=2, cluster=2)  # fmt: skip
    assert kinds(report) == {"deadlock"}


MULTICAST = """
    mov.u32 %r1, %cluster_ctarank; setp.eq.u32 %p9, %r0, 0; mov.u32 %r2, buffer;
    @%p9 mbarrier.init.shared.b64 [buffer], 1; @%p9 fence.mbarrier_init.release.cluster;
    @%p9 mbarrier.arrive.expect_tx.shared.b64 _, [buffer], 512;
    barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned; @!%p9 bra WAIT;
    shl.b32 %r3, %r1, 8; add.u32 %r4, %r2, %r3; cvt.u64.u32 %rd1, %r3; add.s64 %rd1, %rd1, %rd50; mov.b16 %h1, 3;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r4+64], [%rd1], 256, [buffer], %h1;
    WAIT: mbarrier.try_wait.parity.shared.b64 %p1, [buffer], 0; @!%p1 bra WAIT;
    shl.b32 %r5, %r0, 4; add.u32 %r5, %r5, %r2; ld.shared.v4.b32 {%r6, %r7, %r8, %r9}, [%r5+64];
    mov.u32 %r10, %ctaid.x; mad.lo.u32 %r10, %r10, 32, %r0; mul.wide.u32 %rd2, %r10, 16; add.s64 %rd2, %rd2, %rd51;
    st.global.v4.b32 [%rd2], {%r6, %r7, %r8, %r9}; barrier.cluster.arrive; barrier.cluster.wait;
"""


@LANDINGS
def test_multicast(landing):
    """Each of two blocks brings one half of the data to both."""
    data, out = words(32, 4), np.zeros((2, 32, 4), np.uint32)
    run(MULTICAST, [data, out], grid=2, directives=".reqnctapercluster 2, 1, 1\n", landing=landing).check()
    np.testing.assert_array_equal(out, np.stack([data, data]))


def test_arrivals_and_stores_from_another_block():
    out = np.zeros(32, np.uint32)
    run("""
        mov.u32 %r1, %cluster_ctarank; setp.eq.u32 %p9, %r0, 0; mov.u32 %r2, buffer;
        @%p9 mbarrier.init.shared.b64 [buffer], 33; @%p9 fence.mbarrier_init.release.cluster;
        @%p9 mbarrier.arrive.expect_tx.shared.b64 _, [buffer], 128;
        barrier.cluster.arrive; barrier.cluster.wait; setp.eq.u32 %p1, %r1, 0; @%p1 bra READER;
        mov.u32 %r3, 0; mapa.shared::cluster.u32 %r4, %r2, %r3; shl.b32 %r5, %r0, 2; add.u32 %r6, %r4, %r5; mad.lo.u32 %r7, %r0, 7, 1;
        st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r6+256], %r7, [%r4];
        mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r4]; bra END;
        READER: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [buffer], 0; @!%p2 bra READER;
        shl.b32 %r5, %r0, 2; add.u32 %r6, %r2, %r5; ld.shared.u32 %r7, [%r6+256]; cvt.u64.u32 %rd1, %r5; add.s64 %rd1, %rd1, %rd50;
        st.global.u32 [%rd1], %r7;
        END: barrier.cluster.arrive; barrier.cluster.wait;
    """, [out], grid=2, cluster=2).check()  # fmt: skip
    np.testing.assert_array_equal(out, np.arange(32) * 7 + 1)


def test_registers_of_warpgroups():
    assert run("setmaxnreg.inc.sync.aligned.u32 232; griddepcontrol.wait;", block=128).ok
    assert kinds(run("setp.lt.u32 %p1, %r0, 5; @%p1 setmaxnreg.dec.sync.aligned.u32 40;", block=128)) == {"divergence"}
