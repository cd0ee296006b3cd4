"""Opcodes as data: what the modifiers of an instruction say, and how an instruction of registers alone computes.

A family of instructions is a function from `Opcode` to `Operation`, registered by the opcode's root. It has to take
every modifier: one that nobody takes is an error, so nothing is executed by a meaning that is only half right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tilus.errors import VMError
from tilus.simt.formats import Array
from tilus.simt.syntax import BYTES

_FLOATS = {"f32": np.float32, "f64": np.float64}


def view_type(kind: str) -> np.dtype[Any]:
    """Return the NumPy type as which a register of a PTX type is read; narrow floats are read as their codes."""
    if kind == "pred":
        return np.dtype(bool)
    if kind in _FLOATS:
        return np.dtype(_FLOATS[kind])
    return np.dtype(("i" if kind[0] == "s" else "u") + str(BYTES[kind]))


def word_type(kind: str) -> np.dtype[Any]:
    """Return the NumPy type that holds a register: unsigned words, or `bool`."""
    return np.dtype(bool) if kind == "pred" else np.dtype(f"u{BYTES[kind]}")


def as_word(value: Array, kind: str) -> Array:
    """Return a result as the word that a register of a PTX type holds."""
    wanted = view_type(kind)
    if value.dtype.kind in "fu" and value.dtype.itemsize == wanted.itemsize:
        return value.view(word_type(kind))
    value = value.astype(wanted, copy=False)
    return value.view(word_type(kind)) if kind != "pred" else value


class Opcode:
    """An opcode taken apart; `take`, `choose` and `type` remove what they find."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.root, *self.rest = text.split(".")

    def take(self, name: str) -> bool:
        """Return whether a modifier is there."""
        if name in self.rest:
            self.rest.remove(name)
            return True
        return False

    def choose(self, *names: str, default: str = "") -> str:
        """Return the first of the names that is there."""
        for name in names:
            if self.take(name):
                return name
        return default

    def drop(self, *names: str) -> None:
        """Take modifiers that change no result: hints for caches, and promises that are checked elsewhere."""
        for name in names:
            self.take(name)

    def type(self, *allowed: str) -> str:
        """Return the last modifier, which has to be one of the types."""
        if not self.rest or self.rest[-1] not in (allowed or BYTES):
            raise self.unknown(f"expected a type of {', '.join(allowed)}" if allowed else "expected a type")
        return self.rest.pop()

    def finish(self) -> None:
        """Demand that every modifier was taken."""
        if self.rest:
            raise self.unknown(f"unknown modifier .{self.rest[0]}")

    def unknown(self, reason: str) -> VMError:
        """Return the error for an opcode without a meaning here."""
        return VMError(f"the PTX machine does not know `{self.text}`: {reason}")


@dataclass(frozen=True, slots=True)
class Operation:
    """How an instruction of registers alone computes.

    Attributes
    ----------
    results, operands : tuple of str
        PTX types.
    function : callable
        From arrays of the operands' types, which broadcast, to an array or a tuple of arrays.
    optional : int
        Operands that may be left out at the end.
    """

    results: tuple[str, ...]
    operands: tuple[str, ...]
    function: Callable[..., Any]
    optional: int = 0

    def kinds(self, count: int) -> tuple[str, ...]:
        """Return the types of `count` operands."""
        if not len(self.operands) - self.optional <= count <= len(self.operands):
            raise VMError(f"expected {len(self.operands)} operands, got {count}")
        return self.operands[:count]


Family = Callable[[Opcode], Operation]
FAMILIES: dict[str, Family] = {}


def family(*roots: str) -> Callable[[Family], Family]:
    """Register the meaning of opcodes with these roots."""

    def register(function: Family) -> Family:
        FAMILIES.update(dict.fromkeys(roots, function))
        return function

    return register


@lru_cache(maxsize=1024)
def operation(text: str) -> Operation:
    """Return how an opcode computes.

    Raises
    ------
    VMError
        If it is not known, or a modifier is not.
    """
    opcode = Opcode(text)
    if opcode.root not in FAMILIES:
        raise opcode.unknown("no such instruction")
    found = FAMILIES[opcode.root](opcode)
    opcode.finish()
    return found
