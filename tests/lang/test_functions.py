"""The table of functions and what the package exports agree, and every function is documented."""

from __future__ import annotations

import inspect

import tilus
from tilus import lang
from tilus.lang import FUNCTIONS
from tilus.lang.primitives import LangFunction


def test_every_function_is_exported_under_its_name() -> None:
    exported = {name for name in lang.__all__ if isinstance(getattr(lang, name), LangFunction)}
    assert exported == set(FUNCTIONS)
    assert all(getattr(lang, name) is function for name, function in FUNCTIONS.items())
    assert all(getattr(tilus, name) is function for name, function in FUNCTIONS.items())


def test_every_function_is_documented() -> None:
    for name, function in FUNCTIONS.items():
        assert function.__doc__, name
        assert function.__doc__.rstrip().endswith((".", "`.")) or "Parameters" in function.__doc__, name
        signature = inspect.signature(function)
        assert "build" not in signature.parameters, name
        assert name in repr(function)
