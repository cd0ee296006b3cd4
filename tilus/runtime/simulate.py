"""Launches on the CPU what was compiled for a GPU: the PTX that ships, thread by thread, checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilus import simt
from tilus.errors import LaunchError
from tilus.ir.types import PointerType
from tilus.runtime.arguments import Buffer, as_numpy, device_of
from tilus.runtime.built import Built, Launch
from tilus.runtime.faults import as_error, faults_of
from tilus.runtime.launch_cuda import CudaKernel

_WORD = 4


def simulate(
    built: Built, values: Sequence[Buffer | int | float], arrays: Sequence[Any], grid: Sequence[int], **options: Any
) -> simt.Report:
    """Run a kernel's PTX on checked arguments; options are those of `simt.run`. Arrays are written to.

    Raises
    ------
    LaunchError
        If arrays live on a GPU.
    """
    if device_of(values) != "cpu":
        raise LaunchError(f"the arguments live on {device_of(values)}, the PTX runs on the CPU", hint="pass CPU arrays")
    meta = json.loads(built.files["meta.json"])
    args: list[Any] = []
    padded: list[tuple[np.ndarray, np.ndarray]] = []
    for param, value, array in zip(built.program.params, values, arrays, strict=True):
        kind = param.var.type
        if not isinstance(kind, PointerType):
            args.append(CudaKernel.argument(kind.dtype, value))  # type: ignore[arg-type]
            continue
        own = as_numpy(array)
        args.append(own)
        if kind.dtype.nbits < 8 and own.nbytes % _WORD:
            # Elements of less than a byte are stored by whole words, of which a buffer on a GPU always has all.
            args[-1] = np.resize(own.reshape(-1).view(np.uint8), -(-own.nbytes // _WORD) * _WORD)
            padded.append((own, args[-1]))
    report = simt.run(
        built.files["kernel.ptx"].decode(), meta["kernel"], args, (*grid, 1, 1)[:3], meta["threads"],
        shared_bytes=meta["shared"], target=built.target.code.name, windows=meta["windows"],
        dependent=meta["dependent"], **options,
    )  # fmt: skip
    for own, longer in padded:
        own.reshape(-1).view(np.uint8)[:] = longer[: own.nbytes]
    return report


def load_simt(built: Built) -> Launch:
    """Return a launch that prints what the kernel prints, and raises what the machine finds."""

    def launch(values: Sequence[Buffer | int | float], arrays: Sequence[Any], grid: Sequence[int]) -> None:
        report = simulate(built, values, arrays, grid)
        print("".join(report.printed), end="")
        if not report.ok:
            raise as_error(faults_of(report, built))

    return launch
