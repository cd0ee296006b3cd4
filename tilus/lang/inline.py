"""`@tilus.inline`: functions that kernels may call with run-time values."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from tilus.errors import TilusError
from tilus.lang.source import Source, read_source


class InlineFunction:
    """A Python function whose body is evaluated in place of a call, in the language of kernels."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self.signature = inspect.signature(function)

    @functools.cached_property
    def source(self) -> Source:
        """The parsed text."""
        return read_source(self._function, "inline function")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: only kernels call inline functions."""
        raise TilusError(f"inline function {self._function.__name__!r} works only inside a kernel")


def inline(function: Callable[..., Any]) -> InlineFunction:
    """Let kernels call a function with tiles, scalars and pointers; each call evaluates its body in place."""
    return InlineFunction(function)
