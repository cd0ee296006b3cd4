"""Runs a program on the machines that must agree, on copies of the same arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import settings

from tests.ir.strategies import FIRST_OUTPUT
from tilus import vm
from tilus.ir.program import Program
from tilus.ir.target import Target
from tilus.runtime.arguments import Buffer, check_argument
from tilus.runtime.compiled import CompiledKernel
from tilus.runtime.launch_cuda import device_target


def examples(share: float) -> settings:
    """Return settings for a share of the examples that the profile asks for: `long` asks for many."""
    return settings(max_examples=max(1, int(share * settings.default.max_examples)))


def on_vm(program: Program, args: Sequence[Any]) -> list[Any]:
    """Run on the reference machine; return the arguments afterwards."""
    copies = copies_of(args)
    vm.run(program, copies)
    return copies


def on_cpu(program: Program, target: Target, args: Sequence[Any]) -> list[Any]:
    """Run compiled for this CPU, or one with fewer lanes; return the arguments afterwards."""
    copies = copies_of(args)
    CompiledKernel(program, target).launch(*copies)
    return copies


def on_device(program: Program, args: Sequence[Any]) -> list[Any]:
    """Run compiled for the first GPU; return the arguments afterwards. Needs CuPy and a device, but no torch."""
    import cupy

    kernel = CompiledKernel(program, device_target("cuda:0"))
    values = [check_argument(p.var.name, p.var.type, a) for p, a in zip(program.params, args, strict=True)]
    held: list[Any] = []
    for i, (value, arg) in enumerate(zip(values, args, strict=True)):
        if isinstance(value, Buffer):
            # Elements of less than a byte are stored by whole words, of which a buffer on a GPU always has all.
            there = cupy.asarray(np.resize(raw(arg), -(-arg.nbytes // 4) * 4) if arg.nbytes else np.zeros(4, np.uint8))
            held.append(there)
            values[i] = replace(value, address=there.data.ptr, device="cuda:0")
    kernel.run(values, args)
    cupy.cuda.runtime.deviceSynchronize()
    found = copies_of(args)
    for array, there in zip((a for a in found if isinstance(a, np.ndarray)), held, strict=True):
        raw(array)[:] = there.get()[: array.nbytes]
    return found


def raw(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the bytes of a contiguous array, sharing memory."""
    assert array.flags.c_contiguous
    return array.reshape(-1).view(np.uint8)


def copies_of(args: Sequence[Any]) -> list[Any]:
    return [a.copy() if isinstance(a, np.ndarray) else a for a in args]


def outputs(run: list[Any]) -> np.ndarray[Any, Any]:
    """Return the bytes of what a random program wrote."""
    return np.concatenate([a.view(np.uint8) for a in run[FIRST_OUTPUT:] if isinstance(a, np.ndarray)])
