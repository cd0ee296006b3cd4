"""PTX text to tokens, and the CUDA lines that `.loc` directives name."""

from __future__ import annotations

import re
from typing import NamedTuple

from tilus.errors import ParseError
from tilus.simt.syntax import Source

_TOKEN = re.compile(
    r"""(?:[ \t\r\f\v]+|//[^\n]*)*
      (?:(?P<newline>\n)
      | (?P<name>[%$._A-Za-z](?:[\w$.%]|::)*)
      | (?P<number>0[fF][0-9a-fA-F]{8}\b|0[dD][0-9a-fA-F]{16}\b|0[xX][0-9a-fA-F]+U?|0[bB][01]+U?
                  |\d+\.\d*(?:[eE][+-]?\d+)?|\d+U?(?![\w$]))
      | (?P<comment>/\*.*?\*/)
      | (?P<punctuation>[{}()\[\]<>,;:=+\-!|@*/~&^?])
      | (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<end>\Z)
      | (?P<unknown>.))""",
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """A word of the text, with its line and its place in it."""

    kind: str
    text: str
    line: int
    start: int


def scan(text: str) -> list[Token]:
    """Return the tokens of a text, the last one an `end`; there is one for every line break outside of comments."""
    tokens, line = [], 1
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        word, start = match[kind], match.start(kind)
        if kind == "unknown":
            raise ParseError(f"PTX line {line}: unexpected character {word!r}")
        if kind != "comment":
            tokens.append(Token(kind, word, line, start))
        if kind in ("newline", "comment", "string"):
            line += word.count("\n")
        if kind == "end":
            break
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
