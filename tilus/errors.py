"""Every error of the project: one tree, one place in the source, one renderer.

An error says three things: what was expected, what came instead (`message`), and what to do next (`hint`).
Where the user's program is known, `loc` points into it and the rendered text shows the line with a caret::

    k.py:12:9: cannot divide spatial(4, 8) by local(3, 1): 4 % 3 != 0
        y = x / tile
            ^
    hint: choose a tile whose extents divide (4, 8)

This module imports nothing of ours: everything else may import it.
"""

from __future__ import annotations

import linecache
from dataclasses import dataclass, field
from typing import Any, NoReturn


@dataclass(frozen=True, slots=True)
class Loc:
    """A place in the user's source.

    Parameters
    ----------
    file : str
        Name of the file as the interpreter knows it, or a pseudo-name such as ``<text>``.
    line, column : int
        Both count from 1, as editors do. (`ast` counts columns from 0: add 1.)
    text : str, optional
        The source line. Without it the renderer asks `linecache`. Not part of equality: the same place is the
        same place whether or not its text was kept.
    """

    file: str
    line: int
    column: int = 1
    text: str | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def source_line(self) -> str | None:
        """Return the source line without its line break, or None where the source is not to be had."""
        text = self.text if self.text is not None else linecache.getline(self.file, self.line)
        return text.rstrip() or None


class TilusError(Exception):
    """Base of every error that this project raises on purpose.

    Parameters
    ----------
    message : str
        What was expected and what came instead.
    loc : Loc, optional
        Where in the user's program.
    hint : str, optional
        The next step.
    """

    def __init__(self, message: str, *, loc: Loc | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.loc = loc
        self.hint = hint

    def __str__(self) -> str:
        return render(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call `cls(*args)`, which loses the keywords (and fails where one is required).
        return _rebuild, (type(self), self.message, self.loc, self.hint)


def _rebuild(cls: type[TilusError], message: str, loc: Loc | None, hint: str | None) -> TilusError:
    error = cls.__new__(cls)
    TilusError.__init__(error, message, loc=loc, hint=hint)
    return error


def render(error: TilusError) -> str:
    """Return the full text of an error: place, message, source line, caret, hint."""
    lines = [f"{error.loc}: {error.message}" if error.loc else error.message]
    source = error.loc.source_line() if error.loc else None
    if error.loc and source is not None:
        lines += [f"    {source}", f"    {_caret(source, error.loc.column)}"]
    if error.hint:
        lines.append(f"hint: {error.hint}")
    return "\n".join(lines)


def _caret(source: str, column: int) -> str:
    # A tab stays a tab, so that the caret stands under its character in every terminal.
    before = source[: max(column - 1, 0)].ljust(column - 1)
    return "".join("\t" if char == "\t" else " " for char in before) + "^"


class LangError(TilusError):
    """The kernel's Python text says something that the language does not have. Always has a place."""

    loc: Loc

    def __init__(self, message: str, *, loc: Loc, hint: str | None = None) -> None:
        super().__init__(message, loc=loc, hint=hint)


class DTypeError(TilusError, ValueError):
    """A data type does not exist, or a value does not fit it."""


class LayoutError(TilusError, ValueError):
    """A layout is illegal, or an operation of the layout algebra has no result."""


class ParseError(TilusError):
    """The text form of a program or a layout could not be read."""


class VerifyError(TilusError):
    """A program breaks a rule of the IR. The message names the rule and, after a pass, that pass."""


class PassError(TilusError):
    """A pass cannot transform a legal program."""


class LayoutInferenceError(PassError):
    """No layouts satisfy all the constraints of a program."""


class CodegenError(TilusError):
    """An instruction has no code on the chosen target."""


class CompileError(TilusError):
    """A back-end compiler (NVRTC, LLVM) rejected generated code. The message holds its output."""


class LaunchError(TilusError):
    """A kernel was called with arguments, or on a device, that it cannot run with."""


class VMError(TilusError):
    """The reference machine or the PTX simulator found a fault.

    An uninitialised read, an access out of bounds, a race, or replicas that disagree.
    """


class QuantizeError(TilusError, ValueError):
    """A weight cannot be quantized as asked."""


class FormatError(TilusError, ValueError):
    """A file is truncated, altered, or not of the expected format."""


class InternalError(TilusError):
    """Our own bug: an invariant of the compiler does not hold."""


def assert_never(value: NoReturn) -> NoReturn:
    """Close a total `match`: the type checker proves it unreachable (`typing.assert_never` needs Python 3.11)."""
    raise InternalError(f"no case for {value!r}")
