"""Products whose copies a producer starts, as the PTX that ships: the reference machine's bits, no findings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilus
from tests.agreement.machines import on_vm
from tests.agreement.test_library import integers
from tests.kernels.test_split import weight
from tests.simt.library import bits, compiled, on_simt
from tests.tolerance import check, numpy_type
from tilus.dtypes import dtype, f16, f32
from tilus.ir.program import Program
from tilus.kernels.candidates import Configuration, Problem, default_configuration
from tilus.kernels.cost import PROMISES

POINTERS = dict.fromkeys(("x", "w", "scales", "zero_points", "bias", "y"), 16)
# (weight, zero points, group, activation, M, N, K, other constants): N and K end in tiles and in trips, batches in
# their tile; parts of activations, a table of values, groups narrower than a tile, blocks that share K.
USUAL = [
    ("u4", True, 128, "f16", 3, 80, 1040, {}),
    ("u2", True, 64, "f16", 8, 64, 1024, {"SLICES": 4, "WARPS": 4, "STAGES": 2}),
    ("i8", False, -1, "bf16", 16, 144, 528, {}),
    ("u1", True, 128, "f16", 1, 64, 4096, {"SPLIT": 2, "STAGES": 3}),
]
AT_LENGTH = [
    ("u2", True, 64, "f16", 8, 64, 2048, {"SLICES": 8, "WARPS": 8, "STAGES": 2}),
    ("u3", True, 32, "bf16", 5, 96, 1536, {}),
    ("i5", False, 128, "f16", 16, 64, 640, {}),
    ("u7", True, 128, "f16", 9, 128, 1024, {}),
    ("f6e3m2", False, 128, "f16", 7, 80, 784, {"STAGES": 4}),
    ("f8e6m1", False, 64, "f16", 2, 64, 256, {}),
    ("nf4", False, 64, "f16", 8, 64, 512, {"PRODUCERS": 1}),
    ("mxfp4", False, 32, "bf16", 4, 96, 512, {}),
    ("i4", False, 128, "f32", 6, 64, 512, {}),
    ("u6", True, 128, "f16", 16, 64, 3072, {"SPLIT": 3}),
]
# On sm_90a, where weights are bulk copies, all that are usual; on sm_80 one.
JOBS = [
    pytest.param(case, arch, marks=pytest.mark.long if case not in (USUAL if arch == "sm_90a" else USUAL[:1]) else ())
    for arch in ("sm_90a", "sm_80")
    for case in (*USUAL, *AT_LENGTH)
]


@pytest.mark.parametrize(("case", "arch"), JOBS, ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x[:-1])))
def test_products_are_exact(case, arch):
    name, zero_point, group, activation, m, n, k, changed = case
    t = dtype(activation)
    with tilus.knobs.scope(target=f"simt:{arch}"):
        w = weight(name, zero_point, group, activation, n, k)
    problem = Problem(w.format, t, w.format.scale or t, True, m, n, k)
    configuration = default_configuration(problem, target=arch).alone.replace(**changed)
    assert configuration["PRODUCERS"] == 1
    program = check_products(configuration, w, m, n, k, activation, arch)
    ptx = compiled(program, arch).ptx
    assert "cp.async.mbarrier.arrive" in ptx
    if arch == "sm_90a":
        assert "cp.async.bulk.shared" in ptx
        assert "L2::evict_first" in ptx, "one block reads weights, if it has all of the batch"


@pytest.mark.parametrize(("k", "arch"), [(1040, "sm_80"), (4112, "sm_90a")])
def test_no_block_that_shares_k_ends_before_its_copies(k, arch):
    """Where trips are no whole ones, tables end with a block's part, too."""
    with tilus.knobs.scope(target=f"simt:{arch}"):
        w = weight("u6", True, 128, "f16", 64, k)
    configuration = default_configuration(Problem(w.format, f16, f16, True, 16, 64, k), target=arch)
    check_products(configuration.replace(SPLIT=3, PRODUCERS=0), w, 16, 64, k, "f16", arch)


@pytest.mark.parametrize(("name", "m", "k", "arch"), [("u2", 1, 16, "sm_80"), ("nf4", 33, 520, "sm_90a")])
def test_no_group_is_copied_for_trips_that_there_are_not(name, m, k, arch):
    """A group that ends behind the last trip is one of the next trip too, which is asked for in advance."""
    with tilus.knobs.scope(target=f"simt:{arch}"):
        w = tilus.quantize(np.random.default_rng(0).normal(size=(7, k)).astype(np.float32), name, 256)
        x = integers(f32, m, k)
        check(tilus.matmul(x, w), x, w)  # a copy that is under way where a thread ends would be an error


def check_products(configuration: Configuration, w: Any, m: int, n: int, k: int, activation: str, arch: str) -> Program:
    """Return the program that was checked, with the promises of real layers."""
    t, parts = dtype(activation), 1 if configuration["CLUSTERED"] else configuration["SPLIT"]
    configuration = configuration.replace(EVEN=k % (configuration["SLICES"] * w.format.pack.tile[1]) == 0)
    program = configuration.program.definition.specialize(dict(configuration.constants), POINTERS | PROMISES)
    y = np.full((parts, m, n), np.nan, np.float32 if parts > 1 else numpy_type(t))
    x, bias = integers(t, m, k), integers(t, n)
    zeros = w.words if w.zero_points is None else w.zero_points
    args = [x, w.words, w.scales, zeros, bias, y, m, n, k, w.format.groups(k), w.format.tensor_scale]
    expected = on_vm(program, args)
    for landing in ("early", "late"):
        found, report = on_simt(program, args, arch, landing=landing, metrics=True)
        assert report.ok, str(report)
        assert report.wavefronts[0] == report.wavefronts[1]
        np.testing.assert_array_equal(bits(found), bits(expected))
    assert not np.isnan(found[5].astype(np.float32)).any()
    return program


CLUSTERS = [  # weight, zero points, group, activation, M, N, K, blocks that share K, other constants
    ("u4", True, 128, "f16", 40, 208, 1024, 2, {"SLICES": 1, "TILES": 2, "STEP": 16}),
    ("i4", False, -1, "f16", 5, 80, 3072, 3, {}),
    *(
        pytest.param(case, marks=pytest.mark.long)
        for case in (
            ("u2", True, 64, "bf16", 16, 64, 4096, 4, {"STAGES": 2}),
            ("f6e3m2", False, 128, "f16", 33, 144, 1040, 2, {"SLICES": 1, "TILES": 4, "WARPS": 8, "STEP": 128}),
            ("u8", True, 32, "f16", 8, 64, 2064, 8, {"SLICES": 1}),
        )
    ),
]


@pytest.mark.parametrize("case", CLUSTERS, ids=lambda c: "-".join(map(str, c[:-1])))
def test_a_cluster_adds_up_its_sums(case):
    """What one kernel makes of them is what two make: a product, and `add_parts`."""
    name, zero_point, group, activation, m, n, k, split, changed = case
    with tilus.knobs.scope(target="simt:sm_90a"):
        w = weight(name, zero_point, group, activation, n, k)
    t = dtype(activation)
    problem = Problem(w.format, t, w.format.scale or t, True, m, n, k)
    alone = default_configuration(problem, target="sm_90a").alone.replace(**changed)
    program = check_products(alone.replace(SPLIT=split, CLUSTERED=1), w, m, n, k, activation, "sm_90a")
    assert ".reqnctapercluster 1, 1, " in compiled(program, "sm_90a").ptx
