"""Layouts of matrix products, judged by walking over threads and registers."""

from __future__ import annotations

from collections import Counter
from math import prod

import pytest

from tilus.dtypes import DataType, bf16, f16, f32, i8, i32
from tilus.ir.atoms import MMA_ATOMS, MMA_BY_NAME, MmaAtom
from tilus.ir.target import TARGETS
from tilus.ir.types import RegisterType
from tilus.layouts import RegisterLayout, column_spatial, local, replicated, spatial
from tilus.passes.dot_layouts import (
    DotLayouts,
    fma_choices,
    fma_from,
    matches_fma,
    matches_mma,
    mma_atoms,
    mma_choices,
    mma_from,
)

SHAPES = [(4, 64, 32), (1, 8, 128), (3, 5, 8), (64, 64, 16), (16, 1, 256), (1, 1, 1), (6, 10, 4)]
F16_MMA = MMA_ATOMS[0]


def held(layout: RegisterLayout, thread: int) -> list[tuple[int, ...]]:
    return [layout(thread, i) for i in range(layout.local_size)]


def multiplied(way: DotLayouts) -> Counter[tuple[int, int, int, int]]:
    """What threads multiply, pairing registers as an emitter does: the pairs of thread 0, used by all threads."""
    a0, b0, c0 = (held(x, 0) for x in (way.a, way.b, way.c))
    triples = [
        (i, j, c0.index((m, n)))
        for i, (m, k) in enumerate(a0)
        for j, (kb, n) in enumerate(b0)
        if k == kb and (m, n) in c0
    ]
    done: Counter[tuple[int, int, int, int]] = Counter()
    for thread in range(way.c.num_threads):
        a, b, c = (held(x, thread) for x in (way.a, way.b, way.c))
        for i, j, o in triples:
            (m, k), (kb, n) = a[i], b[j]
            assert (kb, (m, n)) == (k, c[o]), "registers pair in the same way in every thread"
            done[m, n, k, thread] += 1
    return done


def check_contract(way: DotLayouts, m: int, n: int, k: int) -> None:
    """For every element of the result: each of its threads multiplies every k, or each k falls to exactly one."""
    done = multiplied(way)
    assert set(done.values()) == {1}
    for row in range(m):
        for column in range(n):
            threads, _ = way.c.locate(row, column)
            per_k = [sum(done[row, column, at, t] for t in threads) for at in range(k)]
            assert set(per_k) in ({1}, {len(threads)})


@pytest.mark.parametrize("target", ["cpu", "sm_80"])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES[:3])
def test_fma_choices_compute_every_product(target: str, m: int, n: int, k: int) -> None:
    threads = 8 if target == "cpu" else 32
    ways = list(fma_choices(m, n, k, TARGETS[target], threads))
    assert ways
    for way in ways:
        assert matches_fma(way.a, way.b, way.c)
        check_contract(way, m, n, k)


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
@pytest.mark.parametrize("operand", [0, 1, 2])
def test_lifting_leaves_an_operand_alone(m: int, n: int, k: int, operand: int) -> None:
    for way in fma_choices(m, n, k, TARGETS["sm_80"], 64):
        known = (way.a, way.b, way.c)[operand]
        lifted = fma_from(known, operand, m, n, k, TARGETS["sm_80"])
        assert (lifted.a, lifted.b, lifted.c)[operand] == known
        if matches_fma(lifted.a, lifted.b, lifted.c) and m * n * k <= 1024:
            check_contract(lifted, m, n, k)


def test_lanes_of_a_cpu_go_along_n_else_along_k() -> None:
    cpu = TARGETS["cpu"]
    wide = min(fma_choices(4, 64, 32, cpu, 8), key=lambda way: way.work)
    assert wide.c == local(4, 8) * spatial(1, 8)
    assert wide.a == local(4, 32) * replicated(8, 2)
    narrow = min(fma_choices(16, 1, 256, cpu, 8), key=lambda way: way.work)
    assert narrow.a == local(16, 32) * spatial(1, 8)
    assert narrow.c == local(16, 1) * replicated(8, 2)


def test_packed_weights_with_lanes_along_k_split_k() -> None:
    weights = local(4, 16) * spatial(1, 8)
    way = fma_from(weights, 0, 4, 4, 128, TARGETS["cpu"])
    assert way.c == local(4, 4) * replicated(8, 2)
    assert matches_fma(way.a, way.b, way.c)


def test_mismatches_are_seen() -> None:
    way = min(fma_choices(4, 64, 32, TARGETS["cpu"], 8), key=lambda way: way.work)
    assert not matches_fma(way.a, local(32, 8) * spatial(1, 8).permute(0, 1), way.a.reduce([1], True) * local(1, 64))
    assert not matches_fma(way.a, local(4, 64) * spatial(8, 1), way.c)
    assert not matches_fma(way.a, way.b, local(4, 64) * replicated(8, 2))
    # Half of the replicas split k, and all of it is done twice: the sum over replicas would be twice too large.
    a, b = local(1, 2) * spatial(1, 4) * replicated(2, 2), local(2, 1) * spatial(4, 1) * replicated(2, 2)
    assert not matches_fma(a, b, replicated(8, 2))


@pytest.mark.parametrize("atom", MMA_ATOMS, ids=lambda atom: atom.name)
@pytest.mark.parametrize("warps", [1, 2, 4])
def test_mma_choices_are_fragments(atom: MmaAtom, warps: int) -> None:
    m, n, k = 32, 32, 2 * atom.shape[2]
    ways = list(mma_choices(m, n, k, warps, atom))
    assert ways
    for way in ways:
        assert matches_mma(atom, way.a, way.b, way.c)
        assert {way.a.num_threads, way.b.num_threads, way.c.num_threads} == {32 * warps}
        assert not matches_mma(atom, way.b.permute(1, 0), way.b, way.c)
        for operand in range(3):
            (again,) = mma_from((way.a, way.b, way.c)[operand], operand, m, n, k, atom)
            assert (again.a, again.b, again.c)[operand] == (way.a, way.b, way.c)[operand]
            assert matches_mma(atom, again.a, again.b, again.c)


@pytest.mark.parametrize(("batch", "warps", "apart"), [(4, 4, 4), (3, 4, 1), (2, 8, 2), (8, 2, 2)])
def test_batches_are_spread_over_warps_first(batch: int, warps: int, apart: int) -> None:
    sm_80 = TARGETS["sm_80"]
    for way in mma_choices(32, 32, 16, warps, F16_MMA, (batch,)):
        assert {layout.shape[0] for layout in (way.a, way.b, way.c)} == {batch}
        assert matches_mma(F16_MMA, way.a, way.b, way.c)
        assert prod(d.size for d in way.c.spatial_digits if d.dim == 0) == apart
        for operand in range(3):
            (again,) = mma_from((way.a, way.b, way.c)[operand], operand, 32, 32, 16, F16_MMA, (batch,))
            assert (again.a, again.b, again.c)[operand] == (way.a, way.b, way.c)[operand]
            assert matches_mma(F16_MMA, again.a, again.b, again.c)
    for way in fma_choices(4, 8, 16, sm_80, 32 * warps, (batch,)):
        assert matches_fma(way.a, way.b, way.c)
        shifted = way.b.reduce([0], keepdims=True) * local(batch, 1, 1)
        assert apart == 1 or not matches_fma(way.a, shifted, way.c)  # all threads hold matrix 0 of b
        for operand in range(3):
            known = (way.a, way.b, way.c)[operand]
            again = fma_from(known, operand, 4, 8, 16, sm_80, (batch,))
            assert (again.a, again.b, again.c)[operand] == known


def test_fragments_of_one_product_agree_on_m_n_and_k() -> None:
    """Walk over the fragments of every warp: those of a and b with equal k meet in one of c."""
    for way in mma_choices(32, 16, 32, 4, F16_MMA):
        a, b, c = way.a / F16_MMA.a, way.b / F16_MMA.b, way.c / F16_MMA.c
        for warp in range(4):
            tiles = {(m, n) for m, ka in held(a, warp) for kb, n in held(b, warp) if ka == kb}
            assert tiles == set(held(c, warp))


def test_more_warps_than_fragments_repeat_one_another() -> None:
    (way, *_) = mma_choices(16, 8, 16, 4, F16_MMA)
    assert way.c.replication == 4
    assert matches_mma(F16_MMA, way.a, way.b, way.c)


def test_a_packed_weight_decides_the_warps() -> None:
    packed = local(1, 2) * spatial(4, 1) * F16_MMA.a
    (way,) = mma_from(packed, 0, 64, 16, 32, F16_MMA)
    assert way.a == packed
    assert way.c == local(1, 2) * spatial(4, 1) * F16_MMA.c
    assert not list(mma_from(spatial(1, 4) * F16_MMA.a, 0, 16, 16, 64, F16_MMA))  # warps along k: not for mma
    assert not list(mma_from(column_spatial(64, 2), 0, 64, 16, 2, F16_MMA))


CASES = [
    (f16, f32, (64, 64, 32), "sm_80", "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"),
    (f16, f16, (16, 8, 16), "sm_80", "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16"),
    (bf16, f32, (16, 8, 16), "sm_90a", "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"),
    (i8, i32, (16, 8, 32), "sm_86", "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32"),
    (i8, i32, (16, 8, 16), "sm_86", None),
    (f32, f32, (64, 64, 32), "sm_80", None),
    (f16, f32, (8, 8, 16), "sm_80", None),
    (f16, f32, (64, 64, 32), "cpu", None),
    (f16, f32, (64, 64, 32), "vm", None),
]


@pytest.mark.parametrize(("dtype", "acc", "shape", "target", "expected"), CASES)
def test_types_and_extents_choose_the_instruction(
    dtype: DataType, acc: DataType, shape: tuple[int, int, int], target: str, expected: str | None
) -> None:
    m, n, k = shape
    types = RegisterType(dtype, (m, k)), RegisterType(dtype, (k, n)), RegisterType(acc, (m, n))
    found = mma_atoms(*types, TARGETS[target])
    assert found == ([] if expected is None else [MMA_BY_NAME[expected]])
