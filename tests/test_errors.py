"""Errors: their text to the character, and their place in the tree."""

from __future__ import annotations

import pickle

import pytest

from tilus import errors
from tilus.errors import DTypeError, LangError, LayoutError, LayoutInferenceError, Loc, PassError, TilusError

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, TilusError)]


def test_full_text() -> None:
    error = LangError("cannot add", loc=Loc("k.py", 12, 7, "    y = x + tile\n"), hint="cast one of them")
    assert str(error) == ("k.py:12:7: cannot add\n        y = x + tile\n          ^\nhint: cast one of them")


def test_caret_keeps_tabs() -> None:
    error = TilusError("m", loc=Loc("k.py", 1, 3, "\t\tx"))
    assert str(error).splitlines()[1:] == ["    \t\tx", "    \t\t^"]


def test_source_is_looked_up_where_the_file_is_known() -> None:
    assert str(TilusError("m", loc=Loc(__file__, 1))).splitlines()[1].startswith('    """Errors: their text')


def test_unknown_source_leaves_place_and_message() -> None:
    assert str(TilusError("m", loc=Loc("<nowhere>", 3, 4))) == "<nowhere>:3:4: m"


def test_message_alone() -> None:
    assert str(TilusError("expected 2, got 3")) == "expected 2, got 3"


def test_loc_compares_by_place_only() -> None:
    assert Loc("a", 1, 2, "text") == Loc("a", 1, 2)
    assert hash(Loc("a", 1, 2, "text")) == hash(Loc("a", 1, 2))
    assert Loc("a", 1, 2) != Loc("a", 1, 3)


def test_tree() -> None:
    assert len(CLASSES) == 15
    assert issubclass(LayoutInferenceError, PassError)
    assert issubclass(DTypeError, ValueError)
    assert issubclass(LayoutError, ValueError)
    assert all(cls.__doc__ for cls in CLASSES)


@pytest.mark.parametrize("cls", CLASSES)
def test_pickles_with_all_its_parts(cls: type[TilusError]) -> None:
    error = cls("m", loc=Loc("f", 1, 2, "text"), hint="h")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == str(error)
