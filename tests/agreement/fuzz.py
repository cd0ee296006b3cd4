"""Random programs that every machine must run alike: vm, the PTX of two architectures, and this CPU.

A program that machines once disagreed about is kept as text in `programs/`, with its kind and seed in the first line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.agreement.machines import on_cpu, on_vm, raw
from tests.ir.strategies import arguments, programs
from tests.passes.generator import tile_arguments, tile_programs
from tests.simt.library import on_simt
from tilus.ir.parser import parse
from tilus.ir.program import Program
from tilus.ir.target import TARGETS
from tilus.passes.pipeline import lower
from tilus.runtime.targets import find_target

KEPT = Path(__file__).parent / "programs"
GPUS = ("sm_80", "sm_90a")
ARGUMENTS: dict[str, Callable[[int], list[Any]]] = {"operations": arguments, "tiles": tile_arguments}
_PROGRAMS = {"operations": programs, "tiles": tile_programs}
_HEAD = re.compile(r"# (\w+), seed (\d+), (portable|for GPUs)(?:: (.*))?\n")


@dataclass(frozen=True, slots=True)
class Case:
    """A program and the seed of its arguments; a portable one runs on machines of any number of threads."""

    kind: str
    program: Program
    seed: int
    portable: bool

    def text(self, why: str = "") -> str:
        """Return the case as the text of a file."""
        where = "portable" if self.portable else "for GPUs"
        return f"# {self.kind}, seed {self.seed}, {where}" + (f": {why}" if why else "") + f"\n{self.program}\n"

    def __repr__(self) -> str:
        return "\n" + self.text()


def read(text: str) -> Case:
    """Return the case that a text describes."""
    head = _HEAD.match(text)
    assert head is not None
    return Case(head[1], parse(text), int(head[2]), head[3] == "portable")


@st.composite
def cases(draw: st.DrawFn, kind: str) -> Case:
    """Draw a case."""
    portable = draw(st.booleans())
    return Case(kind, draw(_PROGRAMS[kind](TARGETS["sm_80"], portable=portable)), draw(st.integers(0, 3)), portable)


def check(case: Case) -> None:
    """Demand that all machines write the same bits, and that nothing is found on the way."""
    args = ARGUMENTS[case.kind](case.seed)
    wanted = _bytes(on_vm(case.program, args))
    for gpu in GPUS:
        lowered = _bytes(on_vm(lower(case.program, TARGETS[gpu]), args))
        np.testing.assert_array_equal(lowered, wanted, err_msg=f"lowered for {gpu}")
        found, report = on_simt(case.program, args, gpu, landing=("late", "early")[case.seed % 2])
        assert report.ok, f"{gpu}: {report}"
        np.testing.assert_array_equal(_bytes(found), wanted, err_msg=gpu)
    if case.portable:
        np.testing.assert_array_equal(_bytes(on_cpu(case.program, find_target("cpu"), args)), wanted, err_msg="cpu")


def _bytes(args: list[Any]) -> np.ndarray[Any, Any]:
    return np.concatenate([raw(a) for a in args if isinstance(a, np.ndarray)])
