"""Machine code of the test kernels, each compiled once per run."""

from __future__ import annotations

from functools import cache

from tilus.runtime.nvrtc import CudaBinary, compile_cuda
from tilus.runtime.sass import disassemble

ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a")


@cache
def binary(source: str, arch: str, *options: str) -> CudaBinary:
    return compile_cuda(source, arch, options)


@cache
def sass(source: str, arch: str) -> str:
    return disassemble(binary(source, arch).cubin)
