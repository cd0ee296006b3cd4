"""Counts how many examples the property tests ran, and says so at the end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

_examples = 0


def _counted(law: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(law)
    def run(*args: Any, **kwargs: Any) -> Any:
        global _examples
        _examples += 1
        return law(*args, **kwargs)

    run.counts_examples = True  # type: ignore[attr-defined]
    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        handle = getattr(getattr(item, "obj", None), "hypothesis", None)
        if handle is not None and not hasattr(handle.inner_test, "counts_examples"):
            handle.inner_test = _counted(handle.inner_test)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _examples:
        terminalreporter.write_line(f"property examples run: {_examples}")
