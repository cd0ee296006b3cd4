"""Tokens, with their lines and places: those of a text as it stands, spaces and comments left out."""

from __future__ import annotations

import pytest

from tilus.errors import ParseError
from tilus.simt.scanner import scan

TEXT = """.file 1 "a // b \\" c"
  @!%p1 add.u32 %r1,%r2, 0x1F; // one, "two
/* over
   lines */ L: mov.f32 x, 0f3F800000; bra L;
.b8 s[] = "first
second"; ret;//"""


def test_every_token_has_its_line_and_its_place() -> None:
    *tokens, end = scan(TEXT)
    assert [(t.kind, t.text) for t in tokens if t.kind in ("string", "number")] == [
        ("number", "1"),
        ("string", '"a // b \\" c"'),
        ("number", "0x1F"),
        ("number", "0f3F800000"),
        ("string", '"first\nsecond"'),
    ]
    assert [t.text for t in tokens if t.kind == "name"] == [
        ".file", "%p1", "add.u32", "%r1", "%r2", "L", "mov.f32", "x", "bra", "L", ".b8", "s", "ret",
    ]  # fmt: skip
    for token in tokens:
        assert TEXT.startswith(token.text, token.start)
        assert token.line == 1 + TEXT.count("\n", 0, token.start)
    assert (end.kind, end.line, end.start) == ("end", 6, len(TEXT))


def test_line_breaks_are_tokens_but_not_within_comments_and_strings() -> None:
    assert [t.line for t in scan(TEXT) if t.kind == "newline"] == [1, 2, 4]


@pytest.mark.parametrize(
    ("text", "line", "character"),
    [
        ('mov;\n/* a\n*/ x "open', 3, '"'),
        ("a;\n b # c", 2, "#"),
        ("\n\n\\", 3, "\\"),
        ("\n12ab", 2, "1"),
        ("\n0f12;", 2, "0"),
        ('"two\nlines" `', 2, "`"),
    ],
)
def test_what_is_no_token_is_named_with_its_line(text: str, line: int, character: str) -> None:
    with pytest.raises(ParseError) as caught:
        scan(text)
    assert str(caught.value).startswith(f"PTX line {line}: unexpected character {character!r}")


@pytest.mark.parametrize("text", ["", " \t", "// only", "/* only */", "x // last", "x /* last */ "])
def test_texts_end_with_one_end(text: str) -> None:
    kinds = [t.kind for t in scan(text)]
    assert kinds.count("end") == 1
    assert kinds[-1] == "end"
