# ruff: noqa: F821
"""Batches of matrix products: one meaning on the reference machine, on CPUs, as generated CUDA and as PTX."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilus
from tests.agreement.machines import copies_of, on_cpu, on_vm
from tests.codegen.cuda.compare import lowered, run_lowered
from tests.simt.library import on_simt
from tilus import f16, f32, ptr
from tilus.dtypes import DataType, dtype
from tilus.ir.program import Program
from tilus.lang import (
    alloc_shared,
    commit_group,
    copy_async,
    dot,
    global_view,
    launch,
    load_global,
    load_shared,
    store_global,
    sync,
    wait_group,
)
from tilus.runtime.kernel import kernel
from tilus.runtime.targets import host_target


@kernel
def products(a: ptr[T], b: ptr[T], y: ptr[f32], *, T: DataType, S: int, M: int, N: int, K: int, WARPS: int):
    """Write the sum over a batch of a product scaled by the number of its matrix."""
    launch(blocks=1, warps=WARPS)
    left = load_global(global_view(a, shape=(S, M, K)), offset=(0, 0, 0), shape=(S, M, K))
    there = alloc_shared(T, (S, N, K))
    copy_async(there, global_view(b, shape=(S, N, K)), src_offset=(0, 0, 0), shape=(S, N, K))
    commit_group()
    wait_group(0)
    sync()
    right = load_shared(there, offset=(0, 0, 0), shape=(S, N, K))
    total = dot(left, right.mT, acc_dtype=f32)
    total = dot(left, right.mT, total * 2.0)
    store_global(global_view(y, shape=(M, N)), tilus.sum(total, 0), offset=(0, 0))


def case(name: str, s: int, m: int, n: int, k: int, warps: int) -> tuple[Program, list[Any], np.ndarray[Any, Any]]:
    """Return the program, arguments whose sums are exact in any order, and what is to come out."""
    rng, kind = np.random.default_rng(s + m + n), dtype(name)
    a, b = (rng.integers(-3, 4, shape) for shape in ((s, m, k), (s, n, k)))
    expected = 3.0 * np.einsum("smk,snk->mn", a, b)
    y = np.zeros((m, n), np.float32)
    return products.program(T=kind, S=s, M=m, N=n, K=k, WARPS=warps), [
        *(x.astype(np.float16 if kind == f16 else np.float32) for x in (a, b)), y], expected  # fmt: skip


CASES = [("f16", 4, 32, 8, 32, 4), ("f16", 3, 16, 16, 16, 2), ("f32", 4, 8, 8, 32, 4), ("f32", 3, 4, 8, 8, 1)]  # fmt: skip


@pytest.mark.parametrize(("name", "s", "m", "n", "k", "warps"), CASES)
def test_on_gpus(name: str, s: int, m: int, n: int, k: int, warps: int) -> None:
    program, args, expected = case(name, s, m, n, k, warps)
    assert (on_vm(program, args)[2] == expected).all()
    copies = copies_of(args)
    run_lowered(*lowered(program, "sm_80"), copies)
    assert (copies[2] == expected).all()
    found, report = on_simt(program, args, "sm_80")
    assert (found[2] == expected).all()
    assert not report.findings


@pytest.mark.parametrize(("name", "s", "m", "n", "k", "warps"), CASES)
def test_on_the_cpu(name: str, s: int, m: int, n: int, k: int, warps: int) -> None:
    program, args, expected = case(name, s, m, n, k, 1)
    assert (on_cpu(program, host_target(), args)[2] == expected).all()


def test_warps_take_matrices_of_their_own() -> None:
    """With as many warps as matrices, nothing is held twice, and there is a tensor-core instruction for each fragment."""
    _, cuda = lowered(case("f16", 4, 32, 8, 32, 4)[0], "sm_80")
    assert "right = load_shared: ldmatrix.x4 (0 bank conflicts)" in cuda.text
    assert cuda.text.count("ptx_mma_m16n8k16_f32_f16(") - 1 == 2 * 2 * 2
