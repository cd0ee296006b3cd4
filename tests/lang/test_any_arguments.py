"""Whatever the functions, operators and builtins are given: a program that the verifier accepts, or a `LangError`."""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tilus.errors import LangError
from tilus.ir.verify import verify
from tilus.lang import FUNCTIONS, define

spec = importlib.util.spec_from_file_location("conftest_of_lang", Path(__file__).with_name("conftest.py"))
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)

HEAD = conftest.HEAD + "    s, other = alloc_shared(f16, (4, 8)), full((8, 4), 1.5, f16)\n    ints = arange((4, 4))\n"
VALUES = """
    x | n | i | tile | gx | s | other | ints | ints < n | n > 2 | y[i] | other.T | 0 | 1 | -1 | 7 | 2.5 | True | None | 'a' | ()
    (1, BN) | (i, 0) | (4, 4) | (8,) | (1, 0) | (0,) | (n, 3) | [1, n] | (-1, 4) | (tile, tile) | float('nan') | 10**30 | int
    f16 | i32 | u4 | boolean | nf4 | e8m0 | t1_6 | spatial(8, 4) | local(4, 4) | row_major(4, 8) | tilus | slice(0, 4)
"""
values = st.sampled_from([v.strip() for line in VALUES.strip().splitlines() for v in line.split("|")])
BINARY = ["+", "-", "*", "/", "//", "%", "<<", ">>", "&", "|", "^", "@", "**", "<", "==", ">=", "and", "or", "is", "in"]
BUILTINS = ["min", "max", "abs", "len", "tuple", "range", "print", "sum", "int", "float", "sorted", "zip", "enumerate"]
ATTRIBUTES = ["to(f32)", "T", "shape", "dtype", "to(n)", "reshape(4,8)", "layout", "strides", "x"]


@st.composite
def calls(draw: st.DrawFn) -> str:
    name = draw(st.sampled_from(sorted(set(FUNCTIONS) - {"grid_dependency_wait"})))  # comes first, says the verifier
    parameters = list(inspect.signature(FUNCTIONS[name]).parameters.values())
    required = sum(p.default is p.empty for p in parameters)
    used = parameters[: draw(st.integers(required, len(parameters)))]
    positional = draw(st.integers(0, len(used)))
    args = [draw(values) if at < positional else f"{p.name}={draw(values)}" for at, p in enumerate(used)]
    return f"tilus.{name}({', '.join(args)})"


expressions = st.one_of(
    calls(),
    st.builds("({}) {} ({})".format, values, st.sampled_from(BINARY), values),
    st.builds("({})[{}]".format, values, values),
    st.builds("{}({}, {})".format, st.sampled_from(BUILTINS), values, values),
    st.builds("({}) if ({}) else ({})".format, values, values, values),
    st.builds("({}).{}".format, values, st.sampled_from(ATTRIBUTES)),
    st.builds("-({})".format, values),
)


@settings(max_examples=400)
@given(expressions, st.booleans())
def test_only_lang_errors(expression: str, in_branch: bool) -> None:
    body = f"    z = {expression}\n"
    if in_branch:
        body = f"    if n > 3:\n        z = {expression}\n    else:\n        z = 1\n    print(z)\n"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # Python has its own opinion of 0[x]
        definition = define(conftest.run_text(HEAD + body)["k"])
    caught: LangError | None = None
    try:
        verify(definition.specialize({}))
    except LangError as error:
        caught = error
    if caught is not None:
        assert caught.loc.line >= 8
        assert "k.py" in str(caught)
