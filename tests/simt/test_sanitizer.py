"""Planted faults in small kernels: each is found, with its line, thread, address and buffer; the right kernel is clean."""

from __future__ import annotations

import numpy as np
import pytest

from tests.simt.build import kernel, line_of, run, words
from tilus import simt
from tilus.errors import VMError


def kinds(report: simt.Report) -> set[str]:
    return {f.kind for f in report.findings}


REVERSE = """
    mov.u32 %r1, buffer; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2;
    st.shared.u32 [%r3], %r0;
    BARRIER
    xor.b32 %r4, %r0, 127; shl.b32 %r4, %r4, 2; add.u32 %r4, %r1, %r4;
    ld.shared.u32 %r5, [%r4];
    shl.b64 %rd1, %rd0, 2; add.s64 %rd1, %rd1, %rd50;
    st.global.u32 [%rd1], %r5;
"""


def test_a_missing_barrier():
    out = np.zeros(128, np.uint32)
    run(REVERSE.replace("BARRIER", "bar.sync 0;"), [out], block=128).check()
    np.testing.assert_array_equal(out, np.arange(128)[::-1])
    text = kernel(REVERSE.replace("BARRIER", ""), ["u64"])
    report = simt.run(text, "kernel", [out], 1, 128)
    (finding,) = report.findings
    assert finding.kind == "race"
    assert finding.line == line_of(text, "ld.shared.u32 %r5")
    assert finding.other.line == line_of(text, "st.shared.u32 [%r3]")
    assert (finding.block, finding.thread) == ((0, 0, 0), (0, 0, 0))
    assert finding.buffer == "buffer at byte 508"
    assert "thread (127, 0, 0) of block (0, 0, 0)" in finding.message
    assert str(finding.line) in str(report)
    assert simt.run(text, "kernel", [out], 1, 128, sanitize=False).ok


def test_a_barrier_missing_before_the_next_write():
    loop = """
        mov.u32 %r9, 0; mov.u32 %r1, buffer; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2;
        LOOP: add.u32 %r5, %r0, %r9;
        st.shared.u32 [%r3], %r5; bar.sync 0;
        xor.b32 %r4, %r2, 256; add.u32 %r4, %r1, %r4; ld.shared.u32 %r6, [%r4];
        BARRIER
        add.u32 %r9, %r9, 1; setp.lt.u32 %p1, %r9, 3; @%p1 bra LOOP;
    """
    assert run(loop.replace("BARRIER", "bar.sync 0;"), block=128).ok
    report = run(loop.replace("BARRIER", ""), block=128)
    assert kinds(report) == {"race"}
    assert "with a read" in report.findings[0].message


def test_a_missing_barrier_of_a_warp():
    text = "mov.u32 %r1, buffer; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2; st.shared.u32 [%r3], %r0; BARRIER xor.b32 %r4, %r3, 64; ld.shared.u32 %r5, [%r4];"
    assert run(text.replace("BARRIER", "bar.warp.sync 0xffffffff;")).ok
    assert kinds(run(text.replace("BARRIER", ""))) == {"race"}


def test_equal_values_do_not_race_but_different_ones_do():
    same = "mov.u32 %r1, 7; st.shared.u32 [buffer], %r1;"
    for body, block, equal in ((same, 64, True), (same, 1, False), ("bar.sync 0;" + same, 32, True)):
        report = run(body, block=block)
        assert report.ok
        assert report.equal_writes == equal
    report = run("st.shared.u32 [buffer], %r0;", block=64)
    assert kinds(report) == {"race"}
    assert "different values" in report.findings[0].message


def test_a_race_of_blocks_in_global_memory():
    out = np.zeros(1, np.uint32)
    report = run("mov.u32 %r1, 7; setp.eq.u32 %p1, %r0, 0; @%p1 st.global.u32 [%rd50], %r1;", [out], grid=2)
    assert report.ok
    assert report.equal_writes
    report = run("mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r0, 0; @%p1 st.global.u32 [%rd50], %r1;", [out], grid=2)
    assert kinds(report) == {"race"}
    report = run("mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r0, 0; @%p1 ld.global.u32 %r2, [%rd50];"
                 "setp.eq.and.u32 %p1, %r1, 1, %p1; @%p1 st.global.u32 [%rd50], %r1;", [out], grid=2)  # fmt: skip
    assert kinds(report) == {"race"}


def test_a_race_of_blocks_that_run_one_after_the_other_here():
    out = np.zeros(1, np.uint32)
    report = run(
        "mov.u32 %r1, %ctaid.x; mov.u32 %r2, buffer; st.global.u32 [%rd50], %r1;", [out], grid=2, shared=1 << 21
    )
    assert "a thread of an earlier block" in str(report)


@pytest.mark.parametrize("writer", [0, 3, 7])
def test_a_write_races_with_what_other_blocks_read(writer):
    """Also where threads of equal numbers read the same, and whoever writes read last."""
    body = f"""
        mov.u32 %r1, %ctaid.x; mul.wide.u32 %rd1, %r0, 4; add.s64 %rd1, %rd1, %rd50; ld.global.u32 %r2, [%rd1];
        setp.eq.u32 %p1, %r1, {writer}; @%p1 st.global.u32 [%rd1], %r1;
    """
    assert kinds(run(body, [np.ones(128, np.uint32)], grid=8, block=128)) == {"race"}
    assert run(body, [np.ones(128, np.uint32)], grid=1, block=128).ok


@pytest.mark.parametrize(
    ("body", "kind", "buffer", "thread"),
    [
        ("shl.b64 %rd1, %rd0, 2; add.s64 %rd1, %rd1, %rd50; ld.global.u32 %r1, [%rd1];", "bounds", "p0 (80 bytes) at byte 80", 20),
        ("ld.global.u32 %r1, [%rd50+-4];", "bounds", "p0 (80 bytes) at byte -4", 0),
        ("shl.b64 %rd1, %rd0, 20; add.s64 %rd1, %rd1, %rd50; st.global.u32 [%rd1], %r0;", "bounds", "p0 (80 bytes) at byte 1048576", 1),
        ("mov.u64 %rd1, 0; st.u32 [%rd1], %r0;", "bounds", "no buffer", 0),
        ("shl.b32 %r1, %r0, 8; mov.u32 %r2, buffer; add.u32 %r1, %r1, %r2; st.shared.u32 [%r1], %r0;", "bounds", "buffer at byte 4096", 16),
        ("add.s64 %rd1, %rd50, 2; ld.global.u32 %r1, [%rd1];", "misaligned", "p0 (80 bytes) at byte 2", 0),
        ("st.shared.v2.b32 [buffer+4], {%r0, %r0};", "misaligned", "buffer at byte 4", 0),
        ("ld.shared.u32 %r1, [buffer+8];", "uninitialized", "buffer at byte 8", 0),
        ("setp.lt.u32 %p1, %r0, 3; @%p1 mov.u32 %r1, 5; st.global.u32 [%rd50], %r1;", "uninitialized", "", 3),
    ],
)  # fmt: skip
def test_faults_of_addresses_and_of_what_is_not_set(body, kind, buffer, thread):
    report = run(body, [np.zeros(20, np.uint32)])
    finding = next(f for f in report.findings if f.kind == kind)
    assert finding.thread == (thread, 0, 0)
    assert finding.buffer == buffer


def test_a_register_set_on_every_path_is_set():
    body = """
        setp.lt.u32 %p1, %r0, 16; @%p1 bra LOW; mov.u32 %r1, 1; bra END; LOW: mov.u32 %r1, 2;
        END: @%p1 mov.u32 %r2, 3; @!%p1 mov.u32 %r2, 4; add.u32 %r3, %r1, %r2;
    """
    assert run(body).ok


PIPELINE = """
    mov.u32 %r1, buffer; shl.b32 %r2, %r0, 4; mul.wide.u32 %rd1, %r0, 16; add.s64 %rd2, %rd50, %rd1; mov.u32 %r9, 0;
    add.u32 %r3, %r1, %r2; cp.async.cg.shared.global [%r3], [%rd2], 16; cp.async.commit_group;
    LOOP: add.u32 %r10, %r9, 1; and.b32 %r11, %r10, 1; shl.b32 %r11, %r11, 11; add.u32 %r11, %r11, %r3;
    mul.wide.u32 %rd4, %r10, 2048; add.s64 %rd4, %rd2, %rd4; setp.lt.u32 %p1, %r10, 4; selp.u32 %r13, 16, 0, %p1;
    cp.async.cg.shared.global [%r11], [%rd4], 16, %r13; cp.async.commit_group;
    WAIT
    BARRIER
    and.b32 %r12, %r9, 1; shl.b32 %r12, %r12, 11; xor.b32 %r14, %r2, 1024; add.u32 %r14, %r14, %r12; add.u32 %r14, %r14, %r1;
    ld.shared.v4.b32 {%r20, %r21, %r22, %r23}, [%r14];
    mul.wide.u32 %rd4, %r9, 2048; add.s64 %rd5, %rd51, %rd1; add.s64 %rd5, %rd5, %rd4;
    st.global.v4.b32 [%rd5], {%r20, %r21, %r22, %r23};
    BARRIER
    mov.u32 %r9, %r10; setp.lt.u32 %p2, %r9, 4; @%p2 bra LOOP;
"""


def pipeline(wait: str, barrier: str, landing: str) -> tuple[simt.Report, bool, str]:
    data, out = words(4, 128, 4), np.zeros((4, 128, 4), np.uint32)
    text = kernel(PIPELINE.replace("WAIT", wait).replace("BARRIER", barrier), ["u64", "u64"])
    report = simt.run(text, "kernel", [data, out], 1, 128, landing=landing)
    return report, bool((out == data.reshape(4, 2, 64, 4)[:, ::-1].reshape(4, 128, 4)).all()), text


@pytest.mark.parametrize("landing", ["late", "early"])
def test_a_pipeline_and_its_wrong_waits(landing):
    report, right, _ = pipeline("cp.async.wait_group 1;", "bar.sync 0;", landing)
    assert report.ok, str(report)
    assert right
    for wait in ("", "cp.async.wait_group 2;"):
        report, right, text = pipeline(wait, "bar.sync 0;", landing)
        assert "pending" in kinds(report)
        assert line_of(text, "ld.shared.v4") in {f.line for f in report.findings}
        assert right == (landing == "early")  # early landing hides it from the result
    report, _, text = pipeline("cp.async.wait_group 1;", "", landing)
    assert kinds(report) & {"race", "pending"}
    assert {f.line for f in report.findings} <= {
        line_of(text, "ld.shared.v4"),
        *(line_of(text, "cp.async.cg", i) for i in (0, 1)),
    }


def test_copies_under_way_at_the_end():
    report = run("mov.u32 %r1, buffer; cp.async.ca.shared.global [%r1], [%rd50], 4;", [np.zeros(4, np.uint32)], block=1)
    assert "pending" in kinds(report)
    assert "ends while" in str(report)


LOCK = """
    setp.ne.u32 %p9, %r0, 0; @%p9 bra END;
    SPIN: atom.ACQUIRE.gpu.global.cas.b32 %r1, [%rd50], 0, 1; setp.ne.u32 %p1, %r1, 0; @%p1 bra SPIN;
    ld.global.u32 %r2, [%rd51]; add.u32 %r2, %r2, 1;
    st.global.u32 [%rd51], %r2;
    FENCE
    st.RELEASE.gpu.global.u32 [%rd50], 0;
    END:
"""


@pytest.mark.parametrize(
    ("acquire", "release", "fence", "clean"),
    [
        ("acquire", "release", "", True),
        ("relaxed", "release", "", False),
        ("acquire", "relaxed", "", False),
        ("acquire", "relaxed", "fence.acq_rel.gpu;", True),
        ("acquire", "relaxed", "fence.acq_rel.cta;", False),
    ],
)
def test_a_lock(acquire, release, fence, clean):
    lock, counter = np.zeros(1, np.uint32), np.zeros(1, np.uint32)
    text = LOCK.replace("ACQUIRE", acquire).replace("RELEASE", release).replace("FENCE", fence)
    text = kernel(text, ["u64", "u64"])
    report = simt.run(text, "kernel", [lock, counter], 8, 32)
    assert counter[0] == 8
    assert report.ok == clean
    if not clean:
        assert kinds(report) == {"race"}
        assert report.findings[0].buffer.startswith("p1")
        lines = line_of(text, "ld.global.u32 %r2"), line_of(text, "st.global.u32 [%rd51]")
        assert (report.findings[0].line, report.findings[0].other.line) in ((lines[0], lines[1]), (lines[1], lines[0]))


FLAG = """
    mov.u32 %r1, %ctaid.x; setp.ne.u32 %p9, %r0, 0; setp.ne.u32 %p8, %r1, 0; @%p8 bra READER;
    shl.b64 %rd1, %rd0, 2; add.s64 %rd1, %rd1, %rd51; st.global.u32 [%rd1], %r0; bar.sync 0;
    @%p9 bra END; FENCE st.STRONG.global.u32 [%rd50], 1; bra END;
    READER: @%p9 bra JOIN; SPIN: ld.STRONG.global.u32 %r2, [%rd50]; setp.eq.u32 %p1, %r2, 0; @%p1 bra SPIN; FENCE
    JOIN: bar.sync 0; xor.b32 %r3, %r0, 63; mul.wide.u32 %rd2, %r3, 4; add.s64 %rd2, %rd2, %rd51; ld.global.u32 %r4, [%rd2];
    shl.b64 %rd1, %rd0, 2; add.s64 %rd1, %rd1, %rd52; st.global.u32 [%rd1], %r4;
    END:
"""


@pytest.mark.parametrize(
    ("strong", "fence", "clean"),
    [("volatile", "membar.gl;", True), ("volatile", "", False), ("relaxed.gpu", "fence.sc.gpu;", True)],
)
def test_a_flag_between_blocks(strong, fence, clean):
    """Block 1 waits for block 0 by a flag, and reads what all of its threads wrote."""
    flag, data, out = np.zeros(1, np.uint32), np.zeros(64, np.uint32), np.zeros(64, np.uint32)
    report = run(FLAG.replace("STRONG", strong).replace("FENCE", fence), [flag, data, out], grid=2, block=64)
    np.testing.assert_array_equal(out, np.arange(64)[::-1])
    assert report.ok == clean


def test_a_deadlock_names_who_waits_where():
    text = kernel("setp.lt.u32 %p1, %r0, 32;\n@%p1 bar.sync 1, 64;\n@!%p1 bar.sync 2, 64;")
    report = simt.run(text, "kernel", [], 1, 64)
    (finding,) = report.findings
    assert finding.kind == "deadlock"
    for n, barrier in ((line_of(text, "bar.sync 1"), 1), (line_of(text, "bar.sync 2"), 2)):
        assert f"32 of 64 threads are at barrier {barrier}, PTX line {n}" in finding.message
    assert finding.line == line_of(text, "bar.sync 1")


SPIN = "LOOP: ld.volatile.global.u32 %r1, [%rd50]; setp.eq.u32 %p1, %r1, 0;\n@%p1 bra LOOP;"
COUNT = "mov.u32 %r1, 0; LOOP: {} add.u32 %r1, %r1, 1; and.b32 %r1, %r1, 511; setp.ne.u32 %p1, %r1, {};\n@%p1 bra LOOP;"
OTHERS_WAIT = "setp.ge.u32 %p2, %r0, 32; @%p2 bra WAIT; " + SPIN + " WAIT: bar.sync 0;"
STORE = "setp.eq.u32 %p3, %r0, 0; @%p3 st.global.u32 [%rd50], %r1;"


@pytest.mark.parametrize("body", [SPIN, OTHERS_WAIT, COUNT.format("bar.sync 0;", 512), COUNT.format(STORE, 512)])
def test_a_loop_that_repeats_itself_is_reported_soon(body):
    report = run(body, [np.zeros(1, np.uint32)], block=64, max_pieces=10_000)
    assert kinds(report) == {"deadlock"}
    assert "nothing is other than" in report.findings[0].message
    assert report.findings[0].line == line_of(kernel(body, ["u64"]), "bra LOOP")
    assert report.pieces <= 3 << 10


@pytest.mark.parametrize("each", ["bar.sync 0;", STORE, "cp.async.wait_all;"])
def test_a_loop_that_goes_on_is_not(each):
    body = COUNT.format(each, 500)
    assert run(body, [np.zeros(1, np.uint32)]).ok


def test_a_loop_that_counts_has_a_limit():
    body = "LOOP: add.u32 %r1, %r1, 2; setp.ne.u32 %p1, %r1, 7;\n@%p1 bra LOOP;"
    report = run("mov.u32 %r1, 0;" + body, max_pieces=500)
    assert "no end after 500 pieces" in report.findings[0].message


def test_exited_threads_are_not_waited_for():
    assert run("setp.ge.u32 %p1, %r0, 64; @%p1 exit; bar.sync 0;", block=128).ok


def test_traps():
    report = run("setp.eq.u32 %p1, %r0, 5; @%p1 trap;")
    assert kinds(report) == {"trap"}
    assert report.findings[0].thread == (5, 0, 0)


def test_findings_are_counted_and_errors_hold_them():
    report = run("ld.global.u32 %r1, [%rd50+64];", [np.zeros(4, np.uint32)])
    assert len(report.findings) == 1
    assert "32 times" in str(report)
    with pytest.raises(VMError, match="out of bounds"):
        report.check()


WINDOWS = [(1, 0, 4096), (5, 128, 256), (6, 0, 4096)]


@pytest.mark.parametrize(("at", "kind"), [(128, None), (252, None), (124, "bounds"), (256, "bounds")])
@pytest.mark.parametrize("line", [4, 5, 9])
def test_a_line_may_have_a_part_of_shared_memory(line, at, kind):
    """A tensor of a program is not all of the block's memory: its neighbours are out of bounds."""
    body = f".loc 1 {line} 1\nst.shared.u32 [dynamic+{at}], 7;"
    text = kernel(body, ["u64"]) + '\n.file 1 "kernel.cu"\n'
    report = simt.run(text, "kernel", [np.zeros(1, np.uint32)], 1, 1, shared_bytes=4096, windows=WINDOWS)
    assert kinds(report) == ({kind} if kind and line == 5 else set()), str(report)
