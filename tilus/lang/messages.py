"""Python that kernels do not have, and what to write instead."""

from __future__ import annotations

import ast

from tilus.errors import LangError
from tilus.lang.frame import Frame

NO_EXPRESSION: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lambda: ("lambdas", "define a function at module level; with @tilus.inline it may take run-time values"),
    ast.Dict: ("dictionary displays", "build the dictionary outside the kernel and index it with compile-time keys"),
    ast.Set: ("set displays", "build the set outside the kernel"),
    ast.DictComp: ("dictionary comprehensions", "build the dictionary outside the kernel"),
    ast.SetComp: ("set comprehensions", "build the set outside the kernel"),
    ast.NamedExpr: (":= expressions", "assign the name in a statement before"),
    ast.Await: ("await", "copy_async starts asynchronous copies"),
    ast.Yield: ("yield", "a kernel returns nothing: store results with store_global"),
    ast.YieldFrom: ("yield", "a kernel returns nothing: store results with store_global"),
    ast.Starred: ("stars here", "stars unpack tuples in calls and displays"),
}
NO_STATEMENT: dict[type[ast.AST], tuple[str, str]] = {
    ast.FunctionDef: ("inner functions", "define it at module level, decorated with @tilus.inline"),
    ast.AsyncFunctionDef: ("inner functions", "define it at module level, decorated with @tilus.inline"),
    ast.ClassDef: ("inner classes", "define it at module level"),
    ast.Try: ("try statements", "check conditions with if, or stop the kernel with assert"),
    ast.Raise: ("raise statements", "stop the kernel with assert condition, message"),
    ast.With: ("with statements", "nothing needs closing in a kernel"),
    ast.Import: ("imports", "import at the top of the module"),
    ast.ImportFrom: ("imports", "import at the top of the module"),
    ast.Global: ("global statements", "pass values as parameters; results go to memory with store_global"),
    ast.Nonlocal: ("nonlocal statements", "pass values as parameters; results go to memory with store_global"),
    ast.Delete: ("del statements", "registers are freed by themselves: leave it out"),
    ast.Match: ("match statements", "use if and elif"),
    ast.AsyncFor: ("async loops", "use for"),
    ast.AsyncWith: ("with statements", "nothing needs closing in a kernel"),
}


def unsupported(frame: Frame, node: ast.AST, table: dict[type[ast.AST], tuple[str, str]]) -> LangError:
    """Return the error for syntax that the language does not have."""
    name, hint = table.get(
        type(node), (f"{type(node).__name__} syntax", "write it with assignments, if, for and while")
    )
    return frame.error(node, f"kernels have no {name}", hint)
