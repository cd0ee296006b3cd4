"""PTX text to tokens, and the CUDA lines that `.loc` directives name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tilus.errors import ParseError
from tilus.simt.syntax import Source

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\f\v]+|//[^\n]*|/\*.*?\*/)
      | (?P<newline>\n)
      | (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<number>0[fF][0-9a-fA-F]{8}\b|0[dD][0-9a-fA-F]{16}\b|0[xX][0-9a-fA-F]+U?|0[bB][01]+U?
                  |\d+\.\d*(?:[eE][+-]?\d+)?|\d+U?(?![\w$]))
      | (?P<name>[%$._A-Za-z](?:[\w$.%]|::)*)
      | (?P<punctuation>[{}()\[\]<>,;:=+\-!|@*/~&^?])""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Token:
    """A word of the text, with its line and its place in it."""

    kind: str
    text: str
    line: int
    start: int


def scan(text: str) -> list[Token]:
    """Return the tokens of a text; a directive that a line break ends gets a `newline` token."""
    tokens, line, position = [], 1, 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ParseError(f"PTX line {line}: unexpected character {text[position]!r}")
        kind, word = str(match.lastgroup), match.group()
        if kind != "space":
            tokens.append(Token(kind, word, line, position))
        line += word.count("\n")
        position = match.end()
    tokens.append(Token("end", "", line, len(text)))
    return tokens


class SourceMap:
    """What `.file` and `.loc` say. Code of an inlined function belongs to the line of the kernel that calls it."""

    def __init__(self, text: str) -> None:
        pattern = r'^\s*\.file\s+(\d+)\s+"([^"]*)"'
        self._files = {int(n): name for n, name in re.findall(pattern, text, re.MULTILINE)}
        self._callers: dict[tuple[int, ...], tuple[int, ...]] = {}

    def read(self, words: list[str]) -> Source | None:
        """Read the words after `.loc`: `file line column [, function_name label[+n], inlined_at file line column]`."""
        place = tuple(map(int, words[:3]))
        if "inlined_at" in words:
            at = words.index("inlined_at") + 1
            self._callers[place] = tuple(map(int, words[at : at + 3]))
            place = self._callers[place]
        else:
            self._callers.pop(place, None)
        seen = set()
        while place in self._callers and place not in seen:
            seen.add(place)
            place = self._callers[place]
        return Source(self._files.get(place[0], f"file {place[0]}"), place[1]) if place[1] else None
