"""The golden fixture must be able to fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import TESTS, Golden, golden_stem, pytest_collection_modifyitems


def test_golden_missing_file_fails_with_advice(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="--update-golden"):
        Golden(tmp_path / "nothing", update=False).check("text")


def test_golden_writes_then_compares(tmp_path: Path) -> None:
    Golden(tmp_path / "module" / "test", update=True).check("one line", part="after")
    assert (tmp_path / "module" / "test.after.txt").read_text() == "one line\n"
    Golden(tmp_path / "module" / "test", update=False).check("one line\n", part="after")
    with pytest.raises(AssertionError, match="differs"):
        Golden(tmp_path / "module" / "test", update=False).check("another line", part="after")


def test_golden_refuses_the_same_file_twice(tmp_path: Path) -> None:
    golden = Golden(tmp_path / "test", update=True)
    golden.check("a")
    with pytest.raises(AssertionError, match="part="):
        golden.check("b")


def test_golden_path_mirrors_the_test_tree() -> None:
    stem = golden_stem(TESTS / "passes" / "test_vectorise.py", "test_width[u3-a/b]")
    assert stem == TESTS / "golden" / "passes" / "test_vectorise" / "test_width-u3-a-b"


@pytest.mark.parametrize(("expression", "asked"), [("", False), ("gpu", False), ("long", True), ("gpu or long", True)])
def test_long_tests_run_when_asked_for(expression: str, asked: bool) -> None:
    class Config:
        option = type("Option", (), {"markexpr": expression})
        hook = type("Hook", (), {"pytest_deselected": staticmethod(lambda items: gone.extend(items))})

    class Item:
        def get_closest_marker(self, name: str) -> bool:
            return name == "long"

    gone, items = [], [Item()]
    pytest_collection_modifyitems(Config, items)
    assert (len(items), len(gone)) == ((1, 0) if asked else (0, 1))
