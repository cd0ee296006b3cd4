"""The table of meanings: one function per instruction."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from tilus.ir.instructions import Instruction
from tilus.ir.stmt import InstStmt

if TYPE_CHECKING:
    from tilus.vm.machine import Block

# From the block, the statement and its instruction to what the statement's `out` is bound to.
Meaning: TypeAlias = "Callable[[Block, InstStmt, Any], Any]"

MEANING: dict[type[Instruction], Meaning] = {}


def meaning(cls: type[Instruction]) -> Callable[[Meaning], Meaning]:
    """Enter a function as the meaning of an instruction."""

    def enter(function: Meaning) -> Meaning:
        MEANING[cls] = function
        return function

    return enter
