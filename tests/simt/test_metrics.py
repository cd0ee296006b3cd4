"""Passes through banks, sectors, instruction counts, independence of data: against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.simt.build import run, words
from tilus.simt.metrics import sectors, wavefronts


def slow_wavefronts(addresses, nbytes: int) -> int:
    lanes, total = min(32, 128 // nbytes), 0
    for first in range(0, len(addresses), lanes):
        banks: dict[int, set[int]] = {}
        for a in addresses[first : first + lanes]:
            for word in range(a // 4, -(-(a + nbytes) // 4)):
                banks.setdefault(word % 32, set()).add(word)
        total += max(len(b) for b in banks.values())
    return total


@pytest.mark.parametrize("nbytes", [1, 2, 4, 8, 16])
def test_wavefronts(nbytes):
    rng = np.random.default_rng(nbytes)
    for stride in (0, 1, 2, 3, 8, 32, 33):
        for addresses in (np.arange(64) * stride * nbytes, rng.integers(0, 256, 64) * nbytes):
            found, _ = wavefronts(addresses, np.arange(64), nbytes)
            assert found == slow_wavefronts(addresses.tolist(), nbytes), stride


def test_sectors():
    lanes, warps = np.arange(64), np.arange(64) // 32
    assert sectors(lanes * 4, warps, 4) == (8, 8)
    assert sectors(lanes * 8, warps, 4) == (16, 8)
    assert sectors(lanes * 16, warps, 16) == (32, 32)
    assert sectors(lanes * 4 + 4, warps, 4) == (10, 8)
    assert sectors(lanes * 0, warps, 4) == (2, 2)


def test_counts_of_a_kernel():
    report = run("""
        shl.b32 %r1, %r0, 7; and.b32 %r1, %r1, 3968; mov.u32 %r2, buffer; add.u32 %r1, %r1, %r2; st.shared.u32 [%r1], %r0;
        shl.b64 %rd1, %rd0, 3; add.s64 %rd1, %rd1, %rd50; ld.global.u32 %r3, [%rd1];
    """, [words(128)], block=64, metrics=True, sanitize=False)  # fmt: skip
    assert report.wavefronts == (64, 2)
    assert report.sectors == (16, 8)
    assert report.instructions["st.shared.u32"] == 2
    assert report.instructions["ld.global.u32"] == 2
    store = next(c for c in report.memory if c.root == "st")
    assert report.memory[store].shared_requests == 2


LOAD = "shl.b64 %rd1, %rd0, 2; add.s64 %rd1, %rd1, %rd50; ld.global.u32 %r1, [%rd1];"


@pytest.mark.parametrize(
    ("body", "independent"),
    [
        (LOAD + "add.u32 %r2, %r1, 1; st.global.u32 [%rd1], %r2;", True),
        (LOAD + "and.b32 %r1, %r1, 3; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd2, %rd50; ld.global.u32 %r3, [%rd2];", False),
        (LOAD + "setp.eq.u32 %p1, %r1, 0; @%p1 bra END; add.u32 %r2, %r0, 1; END:", False),
        (LOAD + "setp.eq.u32 %p1, %r1, 0; selp.u32 %r2, 1, 2, %p1; st.global.u32 [%rd1], %r2;", True),
        (LOAD + "setp.eq.u32 %p1, %r1, 0; @%p1 st.global.u32 [%rd1], %r0;", False),
        (LOAD + "mov.u32 %r1, 0; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd2, %rd50; ld.global.u32 %r3, [%rd2];", True),
        (LOAD + "st.shared.u32 [buffer], %r1; ld.shared.u32 %r2, [buffer]; setp.eq.u32 %p1, %r2, 0; @%p1 exit;", False),
    ],
)  # fmt: skip
def test_independence_of_data(body, independent):
    assert run(body, [words(32)]).data_independent == independent
