"""Lowering keeps the meaning: programs run on the reference machine before and after every pass, on random input.

The machine also checks what the lowered program claims: widths, bounds, races between barriers, replicas that agree.
Inputs are small integers, so that sums in any order are exact and results must be equal, not close.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.agreement.machines import examples
from tests.passes.generator import tile_arguments, tile_programs
from tests.passes.programs import ZERO, chained, matmul, matrix, quantized, softmax, vector_add
from tilus import vm
from tilus.dtypes import f16, f32
from tilus.ir.builder import Builder, op
from tilus.ir.expr import const
from tilus.ir.instructions import LoadGlobal, StoreGlobal
from tilus.ir.parser import parse
from tilus.ir.program import Program
from tilus.ir.target import TARGETS
from tilus.layouts import column_local, local, spatial
from tilus.passes.pipeline import lower

Arrays = list[np.ndarray[Any, Any] | int]


def random_arrays(shapes: list[tuple[tuple[int, ...], str]], seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return [rng.integers(-3, 4, shape).astype(kind) for shape, kind in shapes]


def outputs(program: Program, args: Arrays) -> list[np.ndarray[Any, Any]]:
    """Run a program on copies of its arguments and return the arrays afterwards."""
    copies = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
    vm.run(program, copies)
    return [a for a in copies if isinstance(a, np.ndarray)]


def check(program: Program, args: Arrays, target: str, *, idle: bool = False) -> list[np.ndarray[Any, Any]]:
    """Run a program after each pass; all results must be those of the program as written, which may be `idle`."""
    expected = outputs(program, args)
    given = [a for a in args if isinstance(a, np.ndarray)]
    assert idle or any((a != b).any() for a, b in zip(expected, given, strict=True)), "the program wrote nothing"
    previous = [program]

    def hook(step: str, after: Program) -> None:
        if after is not previous[-1]:
            for wanted, got in zip(expected, outputs(after, args), strict=True):
                np.testing.assert_array_equal(got, wanted, err_msg=f"after {step}")
        previous.append(after)

    lower(program, TARGETS[target], hook=hook)
    return expected


ALL = pytest.mark.parametrize("target", ["sm_80", "cpu", "vm"])


@ALL
@pytest.mark.parametrize("n", [1, 1000, 2048, 3000])
def test_vector_add(n: int, target: str) -> None:
    args = [*random_arrays([((n,), "f4")] * 3), n]
    *_, z = check(vector_add(), args, target)
    np.testing.assert_array_equal(z, args[0] + args[1])


@ALL
def test_vector_add_with_wide_accesses(target: str) -> None:
    check(vector_add(16), [*random_arrays([((3008,), "f4")] * 3), 3008], target)


@ALL
@pytest.mark.parametrize("rows", [1, 8])
def test_softmax(rows: int, target: str) -> None:
    m, n = 11, 200
    program = softmax(rows=rows)
    (x,) = random_arrays([((m, n), "f2")])
    args = [m, n, x, np.zeros((m, n), np.float16)]
    wanted = np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(axis=1, keepdims=True)

    def close(after: Program) -> None:
        got = outputs(after, args)[1].astype(np.float64)
        np.testing.assert_allclose(got, wanted, rtol=2**-10, atol=2**-20)

    close(program)
    close(lower(program, TARGETS[target]))


@ALL
@pytest.mark.parametrize("shape", [(32, 32, 32), (40, 24, 72), (8, 8, 0)])
def test_pipelined_matmul(shape: tuple[int, int, int], target: str) -> None:
    m, n, k = shape
    a, b = random_arrays([((m, k), "f2"), ((k, n), "f2")])
    args = [m, n, k, a, b, np.full((m, n), 7, np.float16)]
    *_, c = check(matmul(32, 32, 16), args, target)
    np.testing.assert_array_equal(c, (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float16))


@ALL
def test_ragged_matmul(target: str) -> None:
    m, n, k = 17, 5, 33
    a, b = random_arrays([((m, k), "f2"), ((k, n), "f2")])
    *_, c = check(matmul(16, 8, 16, multiple=1, warps=2), [m, n, k, a, b, np.full((m, n), 7, np.float16)], target)
    np.testing.assert_array_equal(c, (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float16))


@ALL
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("dtype", [f16, f32])
def test_chained_products(dtype: Any, same: bool, target: str) -> None:
    n = 32
    kind = "f2" if dtype == f16 else "f4"
    a, b = random_arrays([((n, n), kind)] * 2)
    a, b = np.sign(a).astype(kind), np.sign(b).astype(kind)
    *_, c = check(chained(n, dtype, same), [a, b, np.full((n, n), 7, kind)], target)
    first = a.astype(np.float64) @ (a if same else b)
    np.testing.assert_array_equal(c, (first @ b).astype(kind))


FRAGMENTS = {
    "sm_80": (spatial(128) * local(8), local(1, 2) * spatial(4, 1) * column_local(2, 2) * spatial(8, 4) * local(1, 2)),
    "cpu": (spatial(8) * local(32), local(4, 16) * spatial(1, 8)),
}


@pytest.mark.parametrize("target", FRAGMENTS)
def test_packed_weights(target: str) -> None:
    bytes_layout, fragment = FRAGMENTS[target]
    program = quantized(bytes_layout, fragment, warps=4 if target == "sm_80" else 1)
    packed = np.random.default_rng(1).integers(0, 256, bytes_layout.shape, dtype=np.uint8)
    (x,) = random_arrays([((8, fragment.shape[1]), "f2")])
    *_, y = check(program, [packed, x, np.zeros((fragment.shape[0], 8), np.float32)], target)
    weights = np.zeros(fragment.shape)
    for thread in range(fragment.num_threads):
        for i in range(fragment.local_size):
            byte = packed[bytes_layout(thread, i // 2)[0]]
            weights[fragment(thread, i)] = byte >> 4 if i % 2 else byte & 15
    np.testing.assert_array_equal(y, weights @ x.T.astype(np.float64))


# --- random programs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["sm_80", "cpu"])
@examples(0.5)
@given(st.data(), st.integers(0, 3))
def test_random_programs(target: str, data: st.DataObject, seed: int) -> None:
    check(data.draw(tile_programs(TARGETS[target])), tile_arguments(seed), target, idle=True)  # all may be masked


def test_most_random_programs_write() -> None:
    """What is compared above is not nothing."""
    changed = []

    @settings(max_examples=30, derandomize=True, database=None)
    @given(tile_programs(TARGETS["sm_80"]))
    def run(program: Program) -> None:
        args = tile_arguments(0)
        given = [a for a in args if isinstance(a, np.ndarray)]
        changed.append(any((a != b).any() for a, b in zip(outputs(program, args), given, strict=True)))

    run()
    assert np.mean(changed) > 0.9


CONVERSION_BESIDE_A_COPY = """\
program beside(x: ptr[f16] % 16, y: ptr[i32]) {
  grid (1,)
  warps 2
  gx: global[f16, 2] = global_view(ptr=x, shape=(16, 8), strides=(8, 1))
  gy: global[i32, 2] = global_view(ptr=y, shape=(16, 8), strides=(8, 1))
  s: shared[f16, (16, 8)] = alloc_shared(dtype=f16, shape=(16, 8))
  copy_async(dst=s, src=gx, dst_offset=(0, 0), src_offset=(0, 0), shape=(16, 8), dst_dims=(0, 1), src_dims=(0, 1))
  commit_group()
  t: register[i32, (16, 8), local(2,1) * spatial(8,8)] = arange(start=1, shape=(16, 8), dim=0)
  u: register[i32, (16, 8), local(16,1) * replicated(8, rank=2) * spatial(1,8)] = convert_layout(x=t, \
layout=local(16,1) * replicated(8, rank=2) * spatial(1,8))
  wait_group(pending=0)
  sync()
  store_global(view=gy, tile=u, offset=(0, 0), dims=(0, 1))
}"""


def test_a_conversion_has_no_place_until_it_is_planned() -> None:
    check(parse(CONVERSION_BESIDE_A_COPY), [np.ones((16, 8), np.float16), np.zeros((16, 8), np.int32)], "sm_80")


def test_the_comparison_can_fail() -> None:
    """A conversion that is left out, and an operator that is another one, are noticed."""
    program = chained(32, f16)
    a, b = random_arrays([((32, 32), "f2")] * 2)
    args: Arrays = [a, b, np.full((32, 32), 7, np.float16)]
    wrong = Builder("wrong")
    _, gx = matrix(wrong, "a", f16, const(32), const(32))
    for name in "bc":
        matrix(wrong, name, f16, const(32), const(32))
    tile = wrong.inst(LoadGlobal(gx, (ZERO, op("add", ZERO, 1)), (32, 32), (0, 1)))
    wrong.inst(StoreGlobal(gx, tile, (ZERO, ZERO), (0, 1)))
    assert not np.array_equal(outputs(program, args)[2], outputs(wrong.program(), args)[2])
