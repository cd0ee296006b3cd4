"""Python that kernels do not have, and what to write instead."""

from __future__ import annotations

import ast

from tilus.errors import LangError
from tilus.lang.frame import Frame

NO_EXPRESSION: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lambda: ("a lambda", "define a function at module level; with @tilus.inline it may take run-time values"),
    ast.Dict: ("a dictionary display", "build the dictionary outside the kernel and index it with compile-time keys"),
    ast.Set: ("a set display", "build the set outside the kernel"),
    ast.DictComp: ("a dictionary comprehension", "build the dictionary outside the kernel"),
    ast.SetComp: ("a set comprehension", "build the set outside the kernel"),
    ast.NamedExpr: ("the := operator", "assign the name in a statement before"),
    ast.Await: ("await", "a kernel is one plain function; copy_async starts asynchronous copies"),
    ast.Yield: ("yield", "a kernel returns nothing: store results with store_global"),
    ast.YieldFrom: ("yield from", "a kernel returns nothing: store results with store_global"),
    ast.Starred: ("a star here", "stars unpack tuples in calls and displays"),
}
NO_STATEMENT: dict[type[ast.AST], tuple[str, str]] = {
    ast.FunctionDef: ("a function inside a kernel", "define it at module level, decorated with @tilus.inline"),
    ast.AsyncFunctionDef: ("a function inside a kernel", "define it at module level, decorated with @tilus.inline"),
    ast.ClassDef: ("a class inside a kernel", "define it at module level"),
    ast.Try: ("try", "check conditions with if, or stop the kernel with assert"),
    ast.Raise: ("raise", "stop the kernel with assert condition, message"),
    ast.With: ("with", "there are no context managers in kernels"),
    ast.Import: ("an import inside a kernel", "import at the top of the module"),
    ast.ImportFrom: ("an import inside a kernel", "import at the top of the module"),
    ast.Global: ("global", "pass values as parameters; results go to memory with store_global"),
    ast.Nonlocal: ("nonlocal", "pass values as parameters; results go to memory with store_global"),
    ast.Delete: ("del", "registers are freed by themselves: leave it out"),
    ast.Match: ("match", "use if and elif"),
    ast.AsyncFor: ("async for", "use for"),
    ast.AsyncWith: ("async with", "there are no context managers in kernels"),
}


def unsupported(frame: Frame, node: ast.AST, table: dict[type[ast.AST], tuple[str, str]]) -> LangError:
    """Return the error for syntax that the language does not have."""
    name, hint = table.get(type(node), (type(node).__name__, "see the documentation of the language"))
    return frame.error(node, f"kernels have no {name.removeprefix('a ').removeprefix('an ')}", hint)
