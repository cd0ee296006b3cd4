"""Tables in shared memory of codebooks: filled before they are read, and in a bank for each lane."""

from __future__ import annotations

from unittest import mock

import numpy as np

from tests.codegen.cuda.build import Bench, codes_of
from tilus import simt
from tilus.codegen.cuda import bank_tables, emit
from tilus.dtypes import dtype
from tilus.ir.instructions import Cast
from tilus.ir.target import target
from tilus.layouts import local, spatial
from tilus.passes.pipeline import lower
from tilus.runtime.nvrtc import compile_cuda


def run(left_out: str = "") -> simt.Report:
    """Cast codes on two warps, and compare the values unless something is left out of the code."""
    kind, half = dtype("nf4"), dtype("f16")
    codes = codes_of(kind, (16, 128))
    b = Bench(warps=2)
    b.output(b.inst(Cast(b.input(kind, codes, spatial(8, 8) * local(2, 16)), half), "w"))
    source = emit(lower(b.done(), target("sm_80")), target("sm_80"))
    assert left_out in source.text
    ptx = compile_cuda(source.text.replace(left_out, ""), "sm_80").ptx
    report = simt.run(ptx, source.kernel_name, b.args, 1, 64, shared_bytes=source.dynamic_shared_bytes, metrics=True)
    if not left_out:
        np.testing.assert_array_equal(b.args[-1].view(np.uint16).reshape(codes.shape), half.encode(kind.decode(codes)))
    return report


def lookups(report: simt.Report) -> tuple[int, int]:
    """Return the passes of the loads from shared memory through its banks, and the least possible number."""
    counts = [count for code, count in report.memory.items() if code.opcode.startswith("ld.shared")]
    return sum(c.wavefronts for c in counts), sum(c.ideal_wavefronts for c in counts)


def test_every_lane_looks_up_in_its_own_bank() -> None:
    report = run().check()
    assert lookups(report) == (32, 32)


def test_one_copy_for_all_lanes_has_conflicts() -> None:
    with mock.patch.object(bank_tables, "BANKS", 1), mock.patch.object(bank_tables, "_BANK_SHIFT", 2):
        found, least = lookups(run().check())
    assert found > 2 * least


def test_a_table_that_is_read_before_it_is_filled() -> None:
    kinds = {finding.kind for finding in run("__syncthreads();").findings}
    assert kinds & {"race", "uninitialized"}
