"""Straight-line programs on 32-bit words, one machine instruction a step, with their exact meaning and their cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from tilus.dtypes import DataType, bf16, f16
from tilus.errors import InternalError

Pipe: TypeAlias = Literal["alu", "fma"]
Words: TypeAlias = np.ndarray  # of uint32, any shape
Operand: TypeAlias = str | int  # a register, or an immediate

# --- the instructions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Op:
    """A machine instruction: the pipe that executes it, and what it makes of its operands."""

    pipe: Pipe
    meaning: Callable[..., Words]


def _prmt(a: Words, b: Words, selector: Words) -> Words:
    """Pick four of the eight bytes of a and b; the fourth bit of a selector's nibble spreads that byte's sign."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    out = np.zeros(np.broadcast(a, b, selector).shape, np.uint32)
    for place in range(4):
        nibble = selector >> np.uint32(4 * place)
        byte = both >> (8 * (nibble & 7)).astype(np.uint64) & np.uint64(0xFF)
        byte = np.where(nibble & 8, np.where(byte & np.uint64(0x80), 0xFF, 0), byte)
        out |= byte.astype(np.uint32) << np.uint32(8 * place)
    return out


def _fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return a * b + c of products that float64 holds, rounded to odd: rounding it again is rounding once."""
    product = a * b
    total: np.ndarray = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    even = (total.view(np.int64) & 1) == 0
    inexact = np.isfinite(total) & (error != 0) & even
    odd: np.ndarray = np.where(inexact, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
    return odd


def _values(dtype: DataType, words: Words) -> np.ndarray:
    """Return the two floats [..., 2] in words."""
    values: np.ndarray = dtype.decode(np.ascontiguousarray(words, np.uint32)[..., None].view(np.uint16))
    return values


def _spell(dtype: DataType, values: np.ndarray) -> Words:
    """Return the words that hold floats [..., 2], each rounded to nearest even."""
    words: Words = np.ascontiguousarray(dtype.encode(values).astype(np.uint16)).view(np.uint32)[..., 0]
    return words


def _fma(dtype: DataType) -> Callable[[Words, Words, Words], Words]:
    def meaning(a: Words, b: Words, c: Words) -> Words:
        with np.errstate(invalid="ignore", over="ignore"):
            return _spell(dtype, _fused(*np.broadcast_arrays(*(_values(dtype, x) for x in (a, b, c)))))

    return meaning


# A left shift by a constant is a multiplication, which frees the pipe of logical instructions; a right shift is not.
OPS: Mapping[str, Op] = {
    "and": Op("alu", lambda a, b: a & b),
    "and_or": Op("alu", lambda a, b, c: (a & b) | c),
    "and_xor": Op("alu", lambda a, b, c: (a & b) ^ c),
    "mad": Op("fma", lambda a, b, c: a * b + c),
    "shl": Op("fma", lambda a, n: a << n),
    "shr": Op("alu", lambda a, n: a >> n),
    "prmt": Op("alu", _prmt),
    "fma_f16x2": Op("fma", _fma(f16)),
    "fma_bf16x2": Op("fma", _fma(bf16)),
}


# --- recipes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """`out = op(args)`."""

    out: str
    op: str
    args: tuple[Operand, ...]

    def __str__(self) -> str:
        return f"{self.out} = {self.op} {', '.join(x if isinstance(x, str) else f'{x:#x}' for x in self.args)}"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps that compute results from the words `w0`, `w1` and so on.

    Attributes
    ----------
    words : int
        How many words go in.
    steps : tuple of Step
        A register is set once.
    results : tuple of str
        Registers that come out.
    """

    words: int
    steps: tuple[Step, ...]
    results: tuple[str, ...]

    @property
    def issue(self) -> int:
        """Instructions."""
        return len(self.steps)

    @property
    def alu(self) -> int:
        """Instructions on the pipe that logical operations, right shifts and byte permutations share."""
        return sum(OPS[step.op].pipe == "alu" for step in self.steps)

    def evaluate(self, words: Sequence[Words]) -> list[Words]:
        """Return the results, uint32 arrays, for arrays of words."""
        known = {f"w{i}": np.asarray(word, np.uint32) for i, word in enumerate(words)}
        for step in self.steps:
            args = (known[x] if isinstance(x, str) else np.uint32(x) for x in step.args)
            known[step.out] = OPS[step.op].meaning(*map(np.asarray, args))
        return [known[name] for name in self.results]

    def __str__(self) -> str:
        return "\n".join([*map(str, self.steps), f"-> {' '.join(self.results)}"])


@dataclass(slots=True)
class RecipeBuilder:
    """Steps under construction; what has been computed is not computed again."""

    words: int
    steps: list[Step] = field(default_factory=list)
    _known: dict[tuple[str, tuple[Operand, ...]], str] = field(default_factory=dict)

    def put(self, op: str, *args: Operand) -> str:
        """Return the register that holds `op(args)`."""
        if op not in OPS:
            raise InternalError(f"no instruction {op!r}")
        key = op, args
        if key not in self._known:
            self._known[key] = f"t{len(self.steps)}"
            self.steps.append(Step(self._known[key], op, args))
        return self._known[key]

    def run(self, recipe: Recipe) -> list[str]:
        """Take over the steps of a recipe for the same words; return the registers that hold its results."""
        names = {f"w{i}": f"w{i}" for i in range(self.words)}
        for step in recipe.steps:
            names[step.out] = self.put(step.op, *(names[x] if isinstance(x, str) else x for x in step.args))
        return [names[name] for name in recipe.results]

    def build(self, results: Sequence[str]) -> Recipe:
        """Return the recipe, without steps that no result needs."""
        needed, kept = set(results), []
        for step in reversed(self.steps):
            if step.out in needed:
                needed.update(x for x in step.args if isinstance(x, str))
                kept.append(step)
        return Recipe(self.words, tuple(reversed(kept)), tuple(results))
