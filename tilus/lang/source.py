"""The text of a function: its syntax tree with the lines and columns of the file it stands in."""

from __future__ import annotations

import ast
import inspect
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tilus.errors import LangError, Loc, TilusError

builtin_names: Mapping[str, Any] = vars(__builtins__) if inspect.ismodule(__builtins__) else __builtins__


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed function.

    Attributes
    ----------
    function : callable
    file : str
        As the interpreter knows it.
    lines : tuple of str
        The function's lines, the first of which is line `first` of the file.
    tree : ast.FunctionDef
        Lines count as in the file.
    """

    function: Callable[..., Any]
    file: str
    lines: tuple[str, ...]
    first: int
    tree: ast.FunctionDef

    def loc(self, node: ast.AST) -> Loc:
        """Return where a node of the tree begins."""
        line: int = getattr(node, "lineno", self.first)
        offset: int = getattr(node, "col_offset", 0)
        text = self.lines[line - self.first]
        # `ast` counts bytes of UTF-8, editors count characters.
        column = len(text.encode()[:offset].decode(errors="ignore")) + 1
        return Loc(self.file, line, column, text.rstrip("\r\n"))

    def names(self) -> Mapping[str, Any]:
        """Return the names visible to the function: closure, globals, builtins."""
        code, closure = self.function.__code__, self.function.__closure__ or ()
        cells: dict[str, Any] = {}
        for name, cell in zip(code.co_freevars, closure, strict=True):
            try:
                cells[name] = cell.cell_contents
            except ValueError:  # assigned later in the enclosing function
                continue
        return ChainMap(cells, self.function.__globals__, dict(builtin_names))


def read_source(function: Callable[..., Any], what: str) -> Source:
    """Read and parse the text of a Python function.

    Parameters
    ----------
    function : callable
        Decorators that keep `__wrapped__` are looked through.
    what : str
        "kernel" or "inline function", for messages.

    Raises
    ------
    LangError : if there is no text to be had.
    """
    function = inspect.unwrap(function)
    if not inspect.isfunction(function):
        raise TilusError(f"a {what} is a Python function, got {type(function).__name__} {function!r}")
    code = function.__code__
    here = Loc(code.co_filename, code.co_firstlineno)
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, IndexError):
        raise LangError(
            f"the source text of {what} {function.__name__!r} is not available",
            loc=here,
            hint="define it in a file or a notebook cell: Python keeps no text from exec(), -c or its prompt",
        ) from None
    tree = _parse(lines, first)
    if not isinstance(tree, ast.FunctionDef) or tree.name != function.__name__:
        raise LangError(
            f"the text at {here} is not a `def {function.__name__}`",
            loc=here,
            hint=f"a {what} is written with `def`; if the file was edited, import it again",
        )
    return Source(function, code.co_filename, tuple(lines), first, tree)


def _parse(lines: list[str], first: int) -> ast.stmt | None:
    # An indented function is put under `if 1:` rather than dedented: columns stay as they are, and so do strings.
    indented = lines[0][:1].isspace()
    try:
        tree = ast.parse(("if 1:\n" if indented else "") + "".join(lines))
    except SyntaxError:  # a lambda inside an expression, or a file that changed
        return None
    ast.increment_lineno(tree, first - 1 - indented)
    top = tree.body[0]
    return top.body[0] if indented and isinstance(top, ast.If) else top
