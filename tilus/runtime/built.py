"""What a compiled kernel is to those that launch it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from tilus.ir.program import Program
from tilus.ir.target import Target
from tilus.runtime.arguments import Buffer
from tilus.runtime.resources import Resources

# What the disk cache keeps: `meta.json` and the artefacts of the target.
Files: TypeAlias = dict[str, bytes]
# Takes the checked values (buffers and numbers), the arrays behind them, and the grid's extents.
Launch: TypeAlias = Callable[[Sequence["Buffer | int | float"], Sequence[Any], Sequence[int]], None]


class Built(Protocol):
    """A program with its files; it is lowered (`ir`) when somebody asks for that."""

    program: Program
    target: Target

    @property
    def ir(self) -> Program:
        """The lowered program."""

    @property
    def files(self) -> Files:
        """The artefacts by file name."""

    @property
    def resources(self) -> Resources:
        """What the GPU machine code takes."""
