"""Programs of the compiler, compiled to PTX and run on the machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from tests.agreement.machines import copies_of
from tilus import simt
from tilus.ir.program import Program
from tilus.ir.target import target
from tilus.runtime.arguments import Buffer, check_argument
from tilus.runtime.compiled import CompiledKernel
from tilus.runtime.faults import Fault, faults_of
from tilus.runtime.grid import grid_function
from tilus.runtime.simulate import simulate


@lru_cache(maxsize=32)
def compiled(program: Program, arch: str) -> CompiledKernel:
    return CompiledKernel(program, target(arch))


def on_simt(program: Program, args: Sequence[Any], arch: str = "sm_80", *, edit: tuple[str, str] | None = None,
            **options: Any) -> tuple[list[Any], simt.Report]:  # fmt: skip
    """Run a program's PTX, with a change if wanted; return the arguments afterwards, and the report."""
    kernel = compiled(program, arch)
    if edit is not None:
        assert edit[0] in kernel.ptx
        kernel = CompiledKernel(program, target(arch))
        kernel.files = {**kernel.files, "kernel.ptx": kernel.ptx.replace(*edit).encode()}
    after = copies_of(args)
    values = [check_argument(p.var.name, p.var.type, a) for p, a in zip(program.params, after, strict=True)]
    grid = grid_function(program)([0 if isinstance(v, Buffer) else v for v in values])
    return after, simulate(kernel, values, after, grid, **options)


def faults(program: Program, args: Sequence[Any], edit: tuple[str, str], arch: str = "sm_80") -> list[Fault]:
    """Return what is found in a program's PTX after a change, by lines of the program."""
    _, report = on_simt(program, args, arch, edit=edit)
    return faults_of(report, compiled(program, arch))


def source_lines(found: Sequence[Fault]) -> set[str]:
    """Return the text of the lines that faults name."""
    return {(f.loc.source_line() or "").strip() for f in found if f.loc is not None}


def bits(args: Sequence[Any]) -> np.ndarray:
    return np.concatenate([a.reshape(-1).view(np.uint8) for a in args if isinstance(a, np.ndarray)])
