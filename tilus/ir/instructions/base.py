"""The base of instructions and the table that holds one row for each.

An instruction is a frozen dataclass: fields that hold nodes are its operands, the others its attributes. Its row says
what it is called in the text form and what type its result has; the columns of other packages (reference meaning,
layout rule, emitters) are registries keyed by the same classes, and a test demands that none is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tilus.ir.node import Node
from tilus.ir.types import Type


@dataclass(frozen=True, slots=True)
class Instruction(Node):
    """Base of the instructions; the class docstring is its documentation."""


@dataclass(frozen=True, slots=True)
class InstructionSpec:
    """A row of the table.

    Attributes
    ----------
    cls : type
        The instruction class.
    name, group : str
        Name in the text form; heading it is documented under.
    result : callable or None
        From an instruction to the type of its result (register layout None unless the instruction fixes it), raising
        `VerifyError` for operands that do not fit. None for instructions without a result; these have `check` instead.
    check : callable or None
        Raises `VerifyError` for operands that do not fit.
    """

    cls: type[Instruction]
    name: str
    group: str
    result: Callable[[Any], Type] | None
    check: Callable[[Any], None] | None


I = TypeVar("I", bound=Instruction)  # noqa: E741 - the letter of the thing
INSTRUCTIONS: dict[type[Instruction], InstructionSpec] = {}
BY_NAME: dict[str, InstructionSpec] = {}


def instruction(
    name: str,
    group: str,
    *,
    result: Callable[[Any], Type] | None = None,
    check: Callable[[Any], None] | None = None,
) -> Callable[[type[I]], type[I]]:
    """Enter an instruction class in the table."""

    def enter(cls: type[I]) -> type[I]:
        INSTRUCTIONS[cls] = BY_NAME[name] = InstructionSpec(cls, name, group, result, check)
        return cls

    return enter


def result_type(inst: Instruction) -> Type | None:
    """Return the type of an instruction's result, None if it has none; `VerifyError` if its operands do not fit."""
    spec = INSTRUCTIONS[type(inst)]
    if spec.check is not None:
        spec.check(inst)
    return spec.result(inst) if spec.result is not None else None
