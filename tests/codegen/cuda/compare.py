"""Runs a program on the reference machine and as generated CUDA on the CPU, and compares what they write."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from tests.codegen.cuda.host import run_kernel
from tilus import vm
from tilus.codegen.cuda import CudaSource, emit
from tilus.dtypes import DataType
from tilus.ir.program import Program
from tilus.ir.target import target
from tilus.ir.types import PointerType
from tilus.passes.pipeline import lower
from tilus.runtime.grid import grid_function
from tilus.runtime.nvrtc import compile_cuda
from tilus.runtime.resources import Resources, read_resources


@lru_cache(maxsize=32)
def lowered(program: Program, arch: str = "sm_80") -> tuple[Program, CudaSource]:
    low = lower(program, target(arch))
    return low, emit(low, target(arch))


def scalar_of(kind: DataType, value: Any) -> Any:
    return np.asarray(kind.encode(value), kind.code_dtype)[()]


def run_generated(program: Program, args: Sequence[Any], arch: str = "sm_80", *, backwards: bool = False) -> str:
    """Run a program's CUDA on arrays, in place; return what it prints."""
    return run_lowered(*lowered(program, arch), args, backwards=backwards)


def run_lowered(low: Program, source: CudaSource, args: Sequence[Any], *, backwards: bool = False) -> str:
    assert low.num_threads is not None
    grid = grid_function(low)([a if not isinstance(a, np.ndarray) else 0 for a in args])
    kinds = [p.var.type for p in low.params]
    values = [a if isinstance(k, PointerType) else scalar_of(k.dtype, a) for k, a in zip(kinds, args, strict=True)]
    return run_kernel(source, low.num_threads, grid, values, backwards=backwards)


@lru_cache(maxsize=32)
def _resources(text: str, arch: str) -> Resources:
    return read_resources(compile_cuda(text, arch).cubin)


def check_machine_code(source: CudaSource, arch: str, *, local_memory: bool = False) -> None:
    """Demand that NVRTC takes the code, and that nothing lies in local memory (but the library's sine keeps some)."""
    found = _resources(source.text, arch)
    assert found.spills == 0
    assert found.stack == 0 or local_memory


def compare(
    program: Program,
    args: Sequence[Any],
    arch: str = "sm_80",
    *,
    tolerance: float = 0.0,
    same_nan: bool = False,
    local_memory: bool = False,
) -> None:
    """Demand that generated code, with threads run in both orders, writes what the reference machine writes.

    `tolerance` is relative to the largest magnitude of an array; 0 demands equal bits, but with `same_nan` of NaNs
    only that both are.
    """
    want = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
    vm.run(program, want)
    low, source = lowered(program, arch)
    check_machine_code(source, arch, local_memory=local_memory)
    changed = False
    for backwards in (False, True):
        got = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
        run_lowered(low, source, got, backwards=backwards)
        for before, w, g in zip(args, want, got, strict=True):
            if isinstance(w, np.ndarray):
                changed |= bool((before.view(np.uint8) != w.view(np.uint8)).any())
                _same(w, g, tolerance, same_nan)
    assert changed, "the program writes nothing: there is nothing to compare"


def _same(want: np.ndarray, got: np.ndarray, tolerance: float, same_nan: bool) -> None:
    if want.dtype.kind not in "fV" or (tolerance == 0 and not same_nan):
        np.testing.assert_array_equal(got.view(np.uint8), want.view(np.uint8))
        return
    w, g = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(w)
    np.testing.assert_array_equal(np.where(finite, 0, g), np.where(finite, 0, w))
    scale = np.abs(w[finite]).max(initial=1e-30)
    assert np.abs(np.where(finite, g, 0) - np.where(finite, w, 0)).max(initial=0) <= tolerance * scale
