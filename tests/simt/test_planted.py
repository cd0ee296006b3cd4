"""Faults planted in the PTX of the library's kernels: each is found, at the line of the program that it belongs to.

What a program cannot get wrong by itself (barriers in memory, proxies) is planted in CUDA: `test_hopper_gemm`; flags
and locks in PTX: `test_sanitizer`. A tile without its swizzle is in `tests/cli/test_check.py`, as a count of passes.
"""

from __future__ import annotations

import re

import pytest

from tests.agreement.test_library import integers, quantized, unwritten
from tests.simt.library import compiled, faults, on_simt, source_lines
from tests.simt.test_library import gemm_with_copies
from tilus.dtypes import dtype
from tilus.kernels.programs import matmul
from tilus.runtime.faults import faults_of

LOADS = {"x = load_shared(sa, offset=(t % STAGES, 0, 0), shape=(BM, BK))",
         "y = load_shared(sb, offset=(t % STAGES, 0, 0), shape=(BK, BN))"}  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "kind"),
    [(("bar.sync \t0;", ""), "race"), (("cp.async.wait_group 1;", ""), "pending"),
     (("cp.async.wait_group 1;", "cp.async.wait_group 2;"), "pending")],
)  # fmt: skip
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_a_synchronisation_left_out_of_a_pipeline(edit, kind, arch):
    found = [f for f in faults(*gemm_with_copies(), edit, arch) if f.kind == kind]
    assert source_lines(found) & LOADS
    first = next(f for f in found if f.loc.source_line().strip() in LOADS)
    assert re.search(r"of shared memory, in tensor 's[ab]'$", first.buffer)
    if kind == "pending":
        assert "copy_async" in first.other.source_line()


def test_a_stage_that_is_filled_while_it_is_read():
    """Copies two tiles ahead land in the stage that other warps multiply, if none waits for the rest."""
    found = [f for f in faults(*gemm_with_copies(), ("bar.sync \t0;", "")) if "copy_async" in f.loc.source_line()]
    assert found
    assert any("load_shared" in f.other.source_line() for f in found)


def test_a_wait_left_out_of_the_quantized_product():
    case = {"name": "u4", "where": "sm_80", "zero_point": True, "m": 9, "group": 32, "shape": (64, 512),
            "activation": "f16", "bias": True}  # fmt: skip
    program, args = quantized(case)
    wait = re.search(r"cp\.async\.wait_group \d;", compiled(program, "sm_80").ptx)[0]
    for edit in ((wait, ""), (wait, wait.replace("2", "3"))):
        lines = source_lines([f for f in faults(program, args, edit) if f.kind == "pending"])
        assert any(line.startswith("packed = load_shared(sw") for line in lines)


def ragged():
    t, (m, n, k) = dtype("f16"), (33, 47, 65)
    args = [integers(t, m, k), integers(t, k, n), unwritten(t, m, n), m, n, k]
    return matmul.program(T=t, BM=32, BN=32, BK=32), args


def test_a_ragged_tile_without_its_predicate():
    """Every store of the result happens, whether or not its element exists."""
    found = [f for f in faults(*ragged(), ("@p st.global", "st.global")) if f.kind == "bounds"]
    assert source_lines(found) == {"store_global(global_view(c, shape=(m, n)), acc.to(T), offset=(row, col))"}
    assert all(re.fullmatch(rf"byte -?\d+ of 'c', which has {2 * 33 * 47} bytes", f.buffer) for f in found)


def test_extents_that_are_a_lie():
    program, args = ragged()
    args[3] += 40
    _, report = on_simt(program, args)
    found = faults_of(report, compiled(program, "sm_80"))
    assert {f.kind for f in found} == {"bounds"}
    assert {re.search(r"of '(\w)'", f.buffer)[1] for f in found} == {"a", "c"}


def test_the_matmul_does_not_depend_on_data():
    _, report = on_simt(*ragged())
    assert report.ok
    assert report.data_independent
