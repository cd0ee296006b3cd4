"""Layouts from their text: the expressions that `str` prints, and everything that the constructors accept.

expression := postfix (("*" | "/") postfix)*
postfix    := atom ("." NAME "(" arguments ")")*
atom       := INTEGER | "True" | "False" | "[" list "]" | "(" list ")" | NAME "(" arguments ")"
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeVar

from tilus.errors import Loc, ParseError
from tilus.layouts import register, shared
from tilus.layouts.register import RegisterLayout
from tilus.layouts.shared import SharedLayout

_TOKEN = re.compile(r"\s*(?:(-?\d+)|([A-Za-z_]\w*)|([*/.,=()\[\]]))")

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Replicated": register.Replicated,
    "auto_local_spatial": register.auto_local_spatial,
    "column_local": register.column_local,
    "column_spatial": register.column_spatial,
    "concat": register.concat,
    "left_divide": RegisterLayout.left_divide,
    "local": register.local,
    "reduce": RegisterLayout.reduce,
    "register_layout": register.register_layout,
    "replicated": register.replicated,
    "spatial": register.spatial,
    "Swizzle": shared.Swizzle,
    "column_major": shared.column_major,
    "row_major": shared.row_major,
    "row_major_swizzle": shared.row_major_swizzle,
    "shared_layout": shared.shared_layout,
    "strided": shared.strided,
}
_METHODS: dict[type, tuple[str, ...]] = {
    RegisterLayout: (
        *("spatial", "local", "column_spatial", "column_local", "replicated", "left_divide"),
        *("reduce", "reduce_to", "permute", "reshape", "squeeze", "unsqueeze"),
    ),
    SharedLayout: ("swizzled", "permute", "reshape", "unsqueeze", "prepend_dim"),
}
_T = TypeVar("_T")


def parse(text: str) -> RegisterLayout:
    """Return the register layout that an expression such as ``local(2,1) * spatial(8,4)`` says.

    Raises
    ------
    ParseError
        If the text is not an expression, or not one of a register layout.
    LayoutError
        If an operation in it has no result.
    """
    return _Reader(text).read(RegisterLayout, "a register layout such as spatial(8,4) * local(1,2)")


def parse_shared(text: str) -> SharedLayout:
    """Return the shared layout that an expression such as ``row_major(8,64).swizzled(3, 3, 3)`` says."""
    return _Reader(text).read(SharedLayout, "a shared layout such as row_major(8,64)")


class _Token(NamedTuple):
    kind: str  # "integer", "name", "sign" or "end"
    text: str
    column: int


class _Reader:
    """Reads one expression and evaluates it on the way."""

    def __init__(self, text: str) -> None:
        self.source = text
        self.tokens = list(self._scan(text))
        self.position = 0

    def _scan(self, text: str) -> list[_Token]:
        tokens, place, end = [], 0, len(text.rstrip())
        while place < end:
            found = _TOKEN.match(text, place)
            if found is None:
                at = len(text) - len(text[place:].lstrip())
                self._fail(f"{text[at]!r} does not belong in a layout", at + 1)
            kind = ("integer", "name", "sign")[(found.lastindex or 1) - 1]
            tokens.append(_Token(kind, found[found.lastindex or 1], found.start(found.lastindex or 1) + 1))
            place = found.end()
        return [*tokens, _Token("end", "the end", end + 1)]

    def read(self, expected: type[_T], what: str) -> _T:
        value = self._expression()
        if self._peek().kind != "end":
            self._fail(f"expected an operator or the end, got {self._peek().text!r}")
        if not isinstance(value, expected):
            self._fail(f"expected {what}, got {value!r}", 1)
        return value

    def _expression(self) -> Any:
        value = self._postfix()
        while (sign := self._peek()).text in ("*", "/"):
            self.position += 1
            right = self._postfix()
            try:
                value = value * right if sign.text == "*" else value / right
            except TypeError:
                self._fail(f"{sign.text} joins two layouts of one kind, got {value!r} and {right!r}", sign.column)
        return value

    def _postfix(self) -> Any:
        value = self._atom()
        while self._accept("."):
            name = self._next()
            if name.text not in _METHODS.get(type(value), ()):
                self._fail(f"{value!r} has no operation {name.text!r}", name.column)
            value = self._call(getattr(value, name.text), name)
        return value

    def _atom(self) -> Any:
        token = self._next()
        if token.kind == "integer":
            return int(token.text)
        if token.text in ("True", "False"):
            return token.text == "True"
        if token.text == "[":
            return self._items("]")
        if token.text == "(":
            items = self._items(")")
            return items[0] if len(items) == 1 and self.tokens[self.position - 2].text != "," else tuple(items)
        if token.kind == "name" and token.text in _FUNCTIONS:
            return self._call(_FUNCTIONS[token.text], token)
        known = ", ".join(sorted(_FUNCTIONS))
        self._fail(f"expected a layout, got {token.text!r}", token.column, f"the constructors are {known}")

    def _items(self, close: str) -> list[Any]:
        items: list[Any] = []
        while not self._accept(close):
            items.append(self._expression())
            if not self._accept(",") and self._peek().text != close:
                self._fail(f"expected , or {close}, got {self._peek().text!r}")
        return items

    def _call(self, function: Callable[..., Any], name: _Token) -> Any:
        if not self._accept("("):
            self._fail(f"expected ( after {name.text}, got {self._peek().text!r}")
        positional: list[Any] = []
        named: dict[str, Any] = {}
        while not self._accept(")"):
            if self._peek().kind == "name" and self.tokens[self.position + 1].text == "=":
                keyword = self._next().text
                self.position += 1
                named[keyword] = self._expression()
            else:
                positional.append(self._expression())
            if not self._accept(",") and self._peek().text != ")":
                self._fail(f"expected , or ), got {self._peek().text!r}")
        try:
            return function(*positional, **named)
        except (TypeError, AttributeError) as error:
            self._fail(f"{name.text} does not take these arguments: {error}", name.column)

    def _peek(self) -> _Token:
        return self.tokens[self.position]

    def _next(self) -> _Token:
        token = self.tokens[self.position]
        if token.kind == "end":
            self._fail("expected a layout, got the end")
        self.position += 1
        return token

    def _accept(self, text: str) -> bool:
        if self._peek().kind == "end" or self._peek().text != text:
            return False
        self.position += 1
        return True

    def _fail(self, message: str, column: int | None = None, hint: str | None = None) -> NoReturn:
        at = self._peek().column if column is None else column
        raise ParseError(message, loc=Loc("<layout>", 1, at, self.source), hint=hint)
