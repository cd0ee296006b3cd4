"""Runs a program on the machines that must agree, on copies of the same arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import settings

from tests.ir.strategies import FIRST_OUTPUT
from tilus import vm
from tilus.ir.program import Program
from tilus.ir.target import Target
from tilus.runtime.compiled import CompiledKernel


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


def copies_of(args: Sequence[Any]) -> list[Any]:
    return [a.copy() if isinstance(a, np.ndarray) else a for a in args]


def outputs(run: list[Any]) -> np.ndarray[Any, Any]:
    """Return the bytes of what a random program wrote."""
    return np.concatenate([a.view(np.uint8) for a in run[FIRST_OUTPUT:] if isinstance(a, np.ndarray)])
