"""Tests of the tests: wrong PTX instructions are noticed. `bench/mutants.py` tries them all, here a sample is tried."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.simt.build import kernel
from tests.simt.mutants import Launch, Subject, mutants
from tests.simt.subjects import ARCHES, listed, subject
from tests.simt.sweep import outcomes
from tilus.simt.parser import parse

SAMPLE = {"matmul f16": 16, "quantized u4 with zero point": 2, "softmax": 10}


@pytest.mark.parametrize(("number", "name"), list(enumerate(SAMPLE)))
def test_a_sample_of_mutants_dies(number: int, name: str) -> None:
    one = subject(name, ARCHES[number % 2])
    sample = random.Random(name).sample(one.mutants(), SAMPLE[name])
    for mutant, outcome in zip(sample, outcomes(one, sample), strict=True):
        known = listed(name, mutant.kind, mutant.text)
        hint = f"nothing notices `{mutant.text}`: add a shape or data to `subjects.py`, or list the reason there"
        assert any(outcome) or known, hint


def test_there_are_mutants_of_every_kind() -> None:
    kinds = {mutant.kind for i, name in enumerate(SAMPLE) for mutant in subject(name, ARCHES[i % 2]).mutants()}
    kinds |= {mutant.kind for mutant in mutants(parse(kernel(RARE)), "kernel")}
    assert kinds >= {
        "drop",
        "guard",
        "wait",
        "move",
        "compare",
        "bound",
        "mask",
        "table",
        "shift",
        "offset",
        "swap",
        "lane",
    }


RARE = "lop3.b32 %r1, %r0, 7, 9, 0x96; prmt.b32 %r2, %r1, 5, 0x3210; shfl.sync.bfly.b32 %r3, %r2, 1, 31, -1;"
SMALL = """
    and.b32 %r1, %r0, 63; shl.b32 %r2, %r1, 2; mov.u32 %r3, buffer; add.u32 %r4, %r3, %r2;
    mad.lo.u32 %r5, %r0, 7, 5; setp.lt.u32 %p1, %r0, %r191; mov.u32 %r6, 1;
    st.shared.u32 [%r4], %r5; bar.sync 0; xor.b32 %r7, %r4, 128; ld.shared.u32 %r8, [%r7];
    sub.u32 %r9, %r8, %r0; cvt.u64.u32 %rd1, %r2; add.s64 %rd2, %rd50, %rd1; @%p1 st.global.u32 [%rd2], %r9;
"""


@pytest.fixture(scope="module")
def small() -> Subject:
    """Threads exchange words by shared memory, and store a ragged part."""
    shapes = [Launch([np.zeros(n, np.uint32), np.uint32(n)], (1,), n % 64 > 0) for n in (41, 64)]
    return Subject("small", "sm_80", parse(kernel(SMALL, ["u64", "u32"])), "kernel", 64, 0, shapes)


def outcome(one: Subject, kind: str, text: str) -> str:
    (found,) = [m for m in one.mutants() if m.kind == kind and text in m.text]
    return one.killer(found) or one.equivalence(found)


@pytest.mark.parametrize(
    ("kind", "text", "killer"),
    [
        ("drop", "bar.sync", "race"), ("drop", "st.shared", "uninitialized"), ("drop", "ld.shared", "uninitialized"),
        ("drop", "st.global", "bits"), ("guard", "->  st.global", "bounds"), ("guard", "->  @!%p1 st.global", "bounds"),
        ("compare", "setp.lt", "bounds"), ("shift", "shl.b32 %r2, %r1, 1", "misaligned"), ("swap", "sub.u32", "bits"),
        ("offset", "st.global", "bounds"), ("constant", "7, 6", "bits"), ("mask", "%r4, 0;", "bits"), ("mask", "%r0, 31;", "race"),
        ("move", "behind", "uninitialized"), ("move", "before", "race"),
    ],
)  # fmt: skip
def test_killers(small: Subject, kind: str, text: str, killer: str) -> None:
    assert outcome(small, kind, text) == killer


def test_a_result_that_nobody_reads_excuses(small: Subject) -> None:
    assert outcome(small, "constant", "mov.u32 %r6, 2") == "no access sees the difference"


def test_a_mask_of_bits_that_are_zero_excuses() -> None:
    body = "and.b32 %r1, %r0, 255; mul.wide.u32 %rd1, %r1, 4; add.s64 %rd2, %rd50, %rd1; st.global.u32 [%rd2], %r1;"
    one = Subject(
        "mask", "sm_80", parse(kernel(body, ["u64"])), "kernel", 64, 0, [Launch([np.zeros(64, np.uint32)], (1,))]
    )
    assert outcome(one, "mask", "%r0, 127") == "computes the same wherever it runs"
    assert outcome(one, "mask", "%r0, 254") == "bits"


def test_what_only_orders_is_never_excused_by_a_trace(small: Subject) -> None:
    (barrier,) = [m for m in small.mutants() if m.kind == "drop" and "bar.sync" in m.text]
    assert small.equivalence(barrier) == ""


NEVER = """
    mov.u32 %r1, 128; sub.u32 %r2, %r1, %ntid.x; setp.eq.u32 %p1, %r2, 64; @%p1 bra ONE; add.u32 %r3, %r1, 5;
    ONE: setp.eq.u32 %p2, %r190, 7; @%p2 bra TWO; add.u32 %r4, %r1, 6; bra THREE; TWO: add.u32 %r4, %r1, 9;
    THREE: st.global.u32 [%rd51], %r4;
"""


def test_what_no_launch_runs_excuses() -> None:
    """Constants and the block's size decide the first branch; an argument, the same here, the second."""
    shapes = [Launch([np.uint32(0), np.zeros(1, np.uint32)], (1,))]
    text = kernel(NEVER.replace("st.global", "setp.eq.u32 %p3, %r0, 0; @%p3 st.global"), ["u32", "u64"])
    one = Subject("never", "sm_80", parse(text), "kernel", 64, 0, shapes)
    assert outcome(one, "constant", "add.u32 %r3, %r1, 6") == "no launch comes there"
    assert outcome(one, "constant", "add.u32 %r4, %r1, 10") == ""


def test_a_sweep_finds_what_single_runs_find(small: Subject) -> None:
    mutants = small.mutants()
    singly = [(killer, "" if killer else small.equivalence(m)) for m in mutants for killer in [small.killer(m)]]
    assert outcomes(small, mutants) == singly
