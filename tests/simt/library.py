"""Programs of the compiler, compiled to PTX and run on the machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from tests.agreement.machines import copies_of
from tests.codegen.cuda.compare import scalar_of
from tilus import simt
from tilus.codegen.cuda import CudaSource, emit
from tilus.ir.program import Program
from tilus.ir.target import target
from tilus.ir.types import PointerType
from tilus.passes.pipeline import lower
from tilus.runtime.grid import grid_function
from tilus.runtime.nvrtc import compile_cuda


@lru_cache(maxsize=32)
def compiled(program: Program, arch: str) -> tuple[Program, CudaSource, str]:
    """Return the lowered program, its CUDA text, and PTX that names the lines of that."""
    low = lower(program, target(arch))
    source = emit(low, target(arch))
    return low, source, compile_cuda(source.text, arch, ("--generate-line-info",)).ptx


def on_simt(program: Program, args: Sequence[Any], arch: str = "sm_80", *, edit: tuple[str, str] | None = None,
            **options: Any) -> tuple[list[Any], simt.Report]:  # fmt: skip
    """Run a program's PTX, with a change if wanted; return the arguments afterwards, and the report."""
    low, source, ptx = compiled(program, arch)
    if edit is not None:
        assert edit[0] in ptx
        ptx = ptx.replace(*edit)
    grid = grid_function(low)([a if not isinstance(a, np.ndarray) else 0 for a in args])
    after = copies_of(args)
    values = [a if isinstance(p.var.type, PointerType) else scalar_of(p.var.type.dtype, a)
              for p, a in zip(low.params, after, strict=True)]  # fmt: skip
    assert low.num_threads is not None
    report = simt.run(ptx, source.kernel_name, values, grid, low.num_threads,
                      shared_bytes=source.dynamic_shared_bytes, **options)  # fmt: skip
    return after, report
