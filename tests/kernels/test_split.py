"""K shared out to blocks: their sums, added up by a second kernel, are right to the bit and always the same."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

import tilus
from tests.agreement.machines import on_vm
from tests.agreement.test_library import integers
from tests.tolerance import numpy_type
from tilus.dtypes import dtype
from tilus.ir.target import target
from tilus.kernels.calls import Operands
from tilus.kernels.candidates import configurations, default_configuration, named_problem, splits
from tilus.kernels.configure_gpu import fair_split
from tilus.kernels.dispatch import prepare
from tilus.kernels.programs import add_parts
from tilus.passes.pipeline import lower
from tilus.runtime.weights import quantize

# (weight, zero points, group, activation, N, K, blocks that share K, target): whole trips and ragged ones, tiles with and
# without all their groups, zero points, codebooks, trits, scales of rows, groups wider than a tile.
CASES = [
    ("u4", True, 128, "f16", 70, 2048, 4, "sm_90a"),
    ("u4", True, 32, "bf16", 33, 2576, 4, "sm_80"),
    ("i3", True, -1, "f16", 33, 3100, 3, "sm_90a"),
    ("nvfp4", False, 16, "bf16", 33, 1552, 3, "sm_80"),
    *(
        pytest.param(case, marks=pytest.mark.long)
        for case in (
            ("t1.6", False, 64, "f16", 70, 2580, 3, "sm_90a"),
            ("i4", False, 256, "f16", 33, 2608, 4, "sm_80"),
            ("u8", False, 64, "f16", 70, 1664, 3, "sm_90a"),
            ("nf4", False, 128, "f16", 70, 2048, 2, "sm_80"),
            ("i3", True, -1, "f32", 33, 1100, 2, "sm_90a"),
        )
    ),
]


def weight(name: str, zero_point: bool, group: int, activation: str, n: int, k: int) -> Any:
    """Return a weight whose codes' values and scales multiply and add up without rounding, packed for GPUs."""
    options = {"zero_point": zero_point} if name[0] in "ui" else {}
    values = np.random.default_rng([n, k]).normal(0.1, 1, (n, k)).astype(numpy_type(dtype(activation)))
    w = quantize(values, name, group, **options)
    powers = [0x30, 0x38] if w.format.scale else [0.25, 0.5]
    scales = np.random.default_rng(k).choice(powers, w.scales.shape).astype(w.scales.dtype)
    tensor_scale = 1.0 if w.format.tensor_scale == 1.0 else 0.5
    return replace(w, scales=scales, format=replace(w.format, tensor_scale=tensor_scale))


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
def test_products_are_exact(case: tuple[Any, ...]) -> None:
    """By the calls of dispatch: each has the reference machine's bits, and what they come to is exact."""
    name, zero_point, group, activation, n, k, split, arch = case
    t = dtype(activation)
    with tilus.knobs.scope(target=f"simt:{arch}"):
        w = weight(name, zero_point, group, activation, n, k)
        x, bias, y = integers(t, 3, k, most=1), integers(t, n), np.full((3, n), np.nan, numpy_type(t))
        calls = prepare(Operands(x, w.words, w.scales, w.zero_points, bias, y, w.format))
        assert len(calls) == 2
        parts = calls[1][1][0]
        assert parts.shape == (split, 3, n)
        for kernel, args in calls:
            program = kernel.definition.specialize(kernel.constants)
            wanted = on_vm(lower(program, target(arch)) if name == "t1.6" else program, args)
            kernel(*args)
            for found, value in zip(args, wanted, strict=True):
                np.testing.assert_array_equal(found, value)
    assert all(part.any() for part in parts)
    exact = x.astype(float) @ w.dequantize("f64").T + bias.astype(float)
    slack = {"rtol": 2**-9, "atol": 2**-3} if name == "nf4" else {"rtol": 0, "atol": 0}
    np.testing.assert_allclose(y.astype(float), exact.astype(y.dtype).astype(float), **slack)


@pytest.mark.parametrize(("group", "k"), [(96, 384), (48, 256), (192, 768), (160, 400)])
def test_groups_end_within_tiles(group: int, k: int) -> None:
    """The same number of tiles as of groups, or not; in whole trips: scales and zero points are those of the groups."""
    with tilus.knobs.scope(target="simt:sm_90a"):
        w = weight("u4", True, group, "f16", 66, k)
        x = integers(dtype("f16"), 2, k, most=1)
        exact = x.astype(float) @ w.dequantize("f64").T
        assert np.ptp(w.scales.astype(float)) > 0
        assert np.ptp(w.zero_points.astype(float)) > 0
        np.testing.assert_array_equal(tilus.matmul(x, w).astype(float), exact)


@pytest.mark.parametrize("machine", ["vm", "cpu", "simt:sm_80", "simt:sm_90a"])
def test_parts_are_added_up_in_their_order(machine: str) -> None:
    rng = np.random.default_rng(0)
    parts = (rng.normal(size=(5, 3, 300)) * 10.0 ** rng.integers(-6, 6, (5, 3, 300))).astype(np.float32)
    wanted = parts[0].copy()
    for part in parts[1:]:
        wanted += part
    scales = rng.normal(size=(1, 300)).astype(np.float32)
    for group, bias in ((0, True), (32, False)):
        y, added = np.full_like(wanted, np.nan), rng.normal(size=300).astype(np.float32)
        constants = {"XT": dtype("f32"), "ST": dtype("f32"), "SPLIT": 5, "GROUP": group, "SCALED": True, "BIAS": bias}
        with tilus.knobs.scope(target=machine):
            add_parts(parts, scales, added, y, 3, 300, 1, 0.5, **constants)
        total = wanted * (scales if group == 0 else 1) * np.float32(0.5) + (added if bias else 0)
        if bias:  # machines may add the bias and multiply before with one rounding
            np.testing.assert_allclose(y, total, rtol=2**-22, atol=2**-22)
        else:
            np.testing.assert_array_equal(y, total)


def test_the_rule_fills_a_device_and_leaves_every_block_trips() -> None:
    for blocks, trips, multiprocessors in product((1, 7, 64, 96, 128, 500), (1, 2, 5, 8, 9, 28, 56), (72, 132)):
        split = fair_split(blocks, trips, multiprocessors)
        most = -(-trips // split)
        assert split == 1 or (most >= 2 and split * blocks <= 2 * multiprocessors)
        assert (split - 1) * most < trips, "no part is empty"
    assert fair_split(64, 8, 132) == 4  # 4096 x 4096 at 4 bits
    assert fair_split(448, 8, 132) == 1


def test_candidates_share_k_as_the_rule_allows() -> None:
    problem = named_problem("u4", dtype("f16"), 128, (8, 4096, 4096))
    default = default_configuration(problem)
    assert default["SPLIT"] == 6
    assert default["EVEN"]
    assert {c["SPLIT"] for c in splits(problem, default, "sm_80")} == {1, 2, 3, 4, 6, 8}
    assert {c["SPLIT"] for c in configurations(problem, "sm_90a")} >= {1, 2, 3, 4, 8, 16}
    ragged = named_problem("u4", dtype("f16"), 128, (8, 4096, 3584 + 128))
    assert {c["SLICES"]: c["EVEN"] for c in configurations(ragged, "sm_90a")} == {1: True, 2: False, 4: False, 8: False}
