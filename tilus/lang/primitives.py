"""What a function of the language is: a Python signature and an implementation that writes IR."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from tilus.errors import TilusError
from tilus.lang.values import Value

Implementation = Callable[..., Value]


class LangFunction:
    """A function that kernels call.

    Parameters
    ----------
    implement : callable
        Gets the builder, then the arguments as values of `tilus.lang.values`.
    name : str
    outside : callable, optional
        What it does on plain Python values outside a kernel.
    """

    def __init__(self, implement: Implementation, name: str, outside: Callable[..., Any] | None = None) -> None:
        functools.update_wrapper(self, implement)
        self.__name__ = name
        self.implement = implement
        parameters = list(inspect.signature(implement).parameters.values())
        self.__signature__ = inspect.Signature([p.replace(annotation=p.empty) for p in parameters[1:]])
        self._outside = outside

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse, or compute on plain numbers: the evaluator calls `implement`."""
        if self._outside is None:
            raise TilusError(
                f"{self.__name__} works only inside a kernel", hint="call it in a function decorated with @tilus.kernel"
            )
        return self._outside(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<tilus function {self.__name__}>"


def function(
    name: str | None = None, *, outside: Callable[..., Any] | None = None
) -> Callable[[Implementation], LangFunction]:
    """Make a function of the language of an implementation."""
    return lambda implement: LangFunction(implement, name or implement.__name__, outside)


class BoundMethod:
    """A method of a run-time value, `tile.to`: its function with the value as first argument."""

    __slots__ = ("function", "owner")

    def __init__(self, function: LangFunction, owner: Value) -> None:
        self.function = function
        self.owner = owner
