"""Whole programs: generated code, run thread by thread on the CPU, writes what the reference machine writes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.codegen.cuda.compare import compare
from tests.passes.programs import chained, matmul, quantized, softmax, vector_add
from tests.random_data import generator
from tilus.dtypes import bf16, f16, f32
from tilus.layouts import column_local, local, spatial

RNG = generator(1)


@pytest.mark.parametrize(("multiple", "n"), [(1, 1500), (16, 2048), (4, 1012)])
def test_vector_add(multiple: int, n: int) -> None:
    x, y = (RNG.standard_normal(n).astype(np.float32) for _ in range(2))
    compare(vector_add(multiple), [x, y, np.zeros_like(x), n])


@pytest.mark.parametrize("rows", [1, 4])
def test_softmax(rows: int) -> None:
    m, n = 6, 248
    x = RNG.standard_normal((m, n)).astype(np.float16)
    compare(softmax(rows=rows), [m, n, x.reshape(-1), np.zeros(m * n, np.float16)], tolerance=1e-3)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(("m", "n", "k"), [(64, 64, 32), (72, 40, 104)])
def test_matmul(m: int, n: int, k: int, arch: str) -> None:
    a, b = (RNG.standard_normal(s).astype(np.float16).reshape(-1) for s in ((m, k), (k, n)))
    compare(matmul(), [m, n, k, a, b, np.zeros(m * n, np.float16)], arch, tolerance=2e-3)


def test_matmul_without_divisibility() -> None:
    m, n, k = 37, 43, 21
    a, b = (RNG.standard_normal(s).astype(np.float16).reshape(-1) for s in ((m, k), (k, n)))
    compare(matmul(multiple=1), [m, n, k, a, b, np.zeros(m * n, np.float16)], tolerance=2e-3)


def test_matmul_of_f32() -> None:
    m, n, k = 40, 24, 36
    a, b = (RNG.standard_normal(s).astype(np.float32).reshape(-1) for s in ((m, k), (k, n)))
    program = matmul(bm=32, bn=32, bk=16, dtype=f32, multiple=4)
    compare(program, [m, n, k, a, b, np.zeros(m * n, np.float32)], tolerance=1e-5)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("dtype", [f16, bf16, f32], ids=str)
def test_chained_products(dtype, same: bool) -> None:
    n = 32
    arrays = [(RNG.standard_normal(n * n) / 8).astype(dtype.numpy_dtype) for _ in range(2)]
    tolerance = {"f16": 4e-3, "bf16": 3e-2, "f32": 1e-5}[dtype.name]
    compare(chained(n, dtype, same), [*arrays, np.zeros(n * n, dtype.numpy_dtype)], tolerance=tolerance)


def test_quantized() -> None:
    fragment = local(1, 4) * spatial(4, 1) * column_local(2, 2) * spatial(8, 4) * local(1, 2)
    w = RNG.integers(0, 256, 2048).astype(np.uint8)
    x = RNG.integers(-4, 5, 8 * 64).astype(np.float16)
    compare(quantized(spatial(128) * local(16), fragment), [w, x, np.zeros(64 * 8, np.float32)])
