"""The body of one cast function while it is written: `void cast_S_D_xN(u32* d, const u32* s)`."""

from __future__ import annotations

from dataclasses import dataclass, field

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.context import Context
from tilus.codegen.cuda.cpp import Expr, Name, Stmt
from tilus.codegen.cuda.words import element, window, word_count
from tilus.dtypes import DataType

SOURCE, TARGET = Name("s"), Name("d")


@dataclass(slots=True)
class CastBody:
    """Statements that convert `count` elements of `source` to `target`, and add `offset` (to whole numbers only)."""

    ctx: Context
    source: DataType
    target: DataType
    count: int
    offset: int = 0
    statements: list[Stmt] = field(default_factory=list)
    _named: dict[Expr, Name] = field(default_factory=dict)

    @property
    def words(self) -> int:
        """Words of the source."""
        return word_count(self.source.nbits, self.count)

    def let(self, value: Expr) -> Expr:
        """Name a word that is used more than once."""
        if isinstance(value, cpp.Int | cpp.Name | cpp.Index):
            return value
        if value not in self._named:
            self._named[value] = Name(f"x{len(self._named)}")
            self.statements.append(cpp.Declare("u32", self._named[value].text, value, constant=True))
        return self._named[value]

    def put(self, word: int, value: Expr) -> None:
        """Set a word of the target."""
        self.statements.append(cpp.Set(TARGET[word], value))

    def window(self, start: int, needed: int) -> Expr:
        """Return 32 bits of the source from bit `start` on; see `words.window`."""
        return window(SOURCE, self.words, start, needed)

    def code(self, i: int) -> Expr:
        """Return the code of a source element."""
        return element(SOURCE, self.words, i, self.source.nbits)


def both(low: int, high: int | None = None) -> cpp.Int:
    """Return a word of two 16-bit patterns."""
    return cpp.bits(low | (low if high is None else high) << 16)
