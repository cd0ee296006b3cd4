"""Knobs: environment, scopes, and what a wrong value says."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tilus.errors import TilusError
from tilus.runtime.knobs import KNOBS, knobs, user_cache_folder


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for knob in KNOBS.values():
        monkeypatch.delenv(knob.variable, raising=False)


def test_defaults() -> None:
    assert knobs.target is None
    assert knobs.cache_dir == user_cache_folder()
    assert knobs.cache_size == 2048
    assert knobs.always_compile is False
    assert knobs.dump_dir is None
    assert knobs.print_autotuning is False


def test_the_environment_is_read_when_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TILUS_TARGET", "sm_90a")
    monkeypatch.setenv("TILUS_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TILUS_ALWAYS_COMPILE", "1")
    monkeypatch.setenv("TILUS_DUMP_DIR", "~/dump")
    monkeypatch.setenv("TILUS_PRINT_AUTOTUNING", "on")
    assert knobs.target == "sm_90a"
    assert knobs.cache_dir == tmp_path
    assert knobs.always_compile is True
    assert knobs.dump_dir == Path.home() / "dump"
    assert knobs.print_autotuning is True
    monkeypatch.setenv("TILUS_TARGET", "cpu")
    monkeypatch.setenv("TILUS_ALWAYS_COMPILE", "")
    assert knobs.target == "cpu"
    assert knobs.always_compile is False


@pytest.mark.parametrize(("text", "value"), [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("Off", False)])
def test_booleans(monkeypatch: pytest.MonkeyPatch, text: str, value: bool) -> None:
    monkeypatch.setenv("TILUS_ALWAYS_COMPILE", text)
    assert knobs.always_compile is value


def test_scopes_nest_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILUS_TARGET", "sm_80")
    with knobs.scope(target="vm", always_compile=True):
        assert knobs.target == "vm"
        with knobs.scope(target=None):
            assert knobs.target is None
            assert knobs.always_compile is True
        assert knobs.target == "vm"
    assert knobs.target == "sm_80"
    with pytest.raises(RuntimeError), knobs.scope(target="vm"):
        raise RuntimeError
    assert knobs.target == "sm_80"


def test_a_scope_holds_in_its_own_thread() -> None:
    seen: list[str | None] = []
    with knobs.scope(target="vm"):
        thread = threading.Thread(target=lambda: seen.append(knobs.target))
        thread.start()
        thread.join()
    assert seen == [None]


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("TILUS_TARGET", "sm_42", "TILUS_TARGET must be one of vm, cpu, sm_80, .*, got 'sm_42'"),
        ("TILUS_ALWAYS_COMPILE", "maybe", "TILUS_ALWAYS_COMPILE must be 1 or 0, got 'maybe'"),
        ("TILUS_DUMP_DIR", __file__, "TILUS_DUMP_DIR must be the path of a folder, not of a file, got"),
    ],
)
def test_a_wrong_value_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, message: str
) -> None:
    monkeypatch.setenv(variable, text)
    name = next(name for name, knob in KNOBS.items() if knob.variable == variable)
    with pytest.raises(TilusError, match=message):
        getattr(knobs, name)


def test_a_wrong_value_in_a_scope_overrides_nothing() -> None:
    with (
        pytest.raises(TilusError, match=r"knob target must be one of .*, got 3"),
        knobs.scope(cache_dir="/x", target=3),
    ):
        pass
    with pytest.raises(TilusError, match="no knob tarjet") as caught, knobs.scope(tarjet="cpu"):
        pass
    assert "there are target, cache_dir" in str(caught.value)
    assert knobs.cache_dir == user_cache_folder()


def test_assignment_says_what_to_do_instead() -> None:
    with pytest.raises(TilusError, match="cannot be assigned") as caught:
        knobs.target = "vm"  # type: ignore[misc]
    assert "with tilus.knobs.scope(target=...)" in str(caught.value)


def test_the_cache_folder_of_each_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/cache")
    monkeypatch.setattr("sys.platform", "linux")
    assert user_cache_folder() == Path("/somewhere/cache/tilus")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache_folder() == Path.home() / ".cache" / "tilus"
    monkeypatch.setattr("sys.platform", "darwin")
    assert user_cache_folder() == Path.home() / "Library" / "Caches" / "tilus"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/appdata")
    assert user_cache_folder() == Path("/appdata/tilus")


def test_repr_shows_all() -> None:
    assert repr(knobs).startswith("Knobs(target=None, cache_dir=")


def test_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILUS_CACHE_SIZE", "100")
    assert knobs.cache_size == 100
    with knobs.scope(cache_size=5):
        assert knobs.cache_size == 5
    for wrong in ("0", "-1", "many", "1.5"):
        monkeypatch.setenv("TILUS_CACHE_SIZE", wrong)
        with pytest.raises(TilusError, match=f"TILUS_CACHE_SIZE must be a number of MiB from 1 on, got '{wrong}'"):
            _ = knobs.cache_size
