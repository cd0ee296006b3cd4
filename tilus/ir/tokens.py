"""The text form, cut into tokens.

A newline ends a statement, except inside round or square brackets; `#` begins a comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from tilus.errors import Loc, ParseError
from tilus.ir.words import DOTTED

_TOKEN = re.compile(
    r"(?P<space>[ \t\r]+|\#[^\n]*)"
    r"|(?P<newline>\n)"
    r"|(?P<number>\d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\d+)"
    r'|(?P<string>"(?:[^"\\\n]|\\.)*")'
    rf"|(?P<name>{DOTTED.pattern})"
    r"|(?P<sign><<|>>|<=|>=|==|!=|//|[-+*/%&^|<>=(){}\[\],:.])",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Token:
    """One token: `kind` is number, string, name, sign, newline or end; `offset` counts characters of the source."""

    kind: str
    text: str
    offset: int

    @property
    def end(self) -> int:
        """Offset of the character after the token."""
        return self.offset + len(self.text)

    def __str__(self) -> str:
        return {"end": "the end of the text", "newline": "the end of the line"}.get(self.kind, repr(self.text))


@dataclass(frozen=True, slots=True)
class Source:
    """A text and what it is called in messages."""

    text: str
    file: str

    def loc(self, offset: int) -> Loc:
        """Return the place of a character."""
        start = self.text.rfind("\n", 0, offset) + 1
        end = self.text.find("\n", start)
        line = self.text[start:] if end < 0 else self.text[start:end]
        return Loc(self.file, self.text.count("\n", 0, offset) + 1, offset - start + 1, line)

    def fail(self, message: str, offset: int, hint: str | None = None) -> NoReturn:
        """Raise `ParseError` at a character."""
        raise ParseError(message, loc=self.loc(offset), hint=hint)

    def tokens(self) -> list[Token]:
        """Return all tokens; the last one is of kind `end`."""
        return [*self._scan(), Token("end", "", len(self.text))]

    def _scan(self) -> Iterator[Token]:
        place, depth = 0, 0
        while place < len(self.text):
            found = _TOKEN.match(self.text, place)
            if found is None:
                self.fail(f"no token begins with {self.text[place]!r}", place)
            kind, text = str(found.lastgroup), found.group()
            depth += (text in ("(", "[")) - (text in (")", "]"))
            if kind != "space" and not (kind == "newline" and depth > 0):
                yield Token(kind, text, place)
            place = found.end()
