"""Kernels from text: each gets the pseudo-file `k.py`, so that the places in messages are short and fixed."""

from __future__ import annotations

import linecache
import textwrap
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from tilus import dtypes, lang, layouts
from tilus.errors import LangError
from tilus.lang import KernelDef, define

TILUS = ModuleType("tilus")
for package in (dtypes, layouts, lang):
    vars(TILUS).update({name: getattr(package, name) for name in package.__all__})


def run_text(text: str, file: str = "k.py", **names: Any) -> dict[str, Any]:
    """Run a module's text as if it stood in a file, and return its names."""
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    space: dict[str, Any] = {"tilus": TILUS, **vars(TILUS), **names, "__name__": "k"}
    # Names of functions stay behind `tilus.`: the plain ones are Python's.
    for name in ("range", "sum", "min", "max", "abs", "round", "print"):
        space.pop(name, None)
    exec(compile(text, file, "exec", dont_inherit=True), space)
    return space


@pytest.fixture
def kernel() -> Callable[..., KernelDef]:
    """A function from text that defines `k` to its kernel definition."""

    def make(text: str, **names: Any) -> KernelDef:
        return define(run_text(text, **names)["k"])

    return make


HEAD = """\
def k(x: ptr[f16], y: ptr[f32], n: i32, *, BN: int = 128):
    launch(blocks=n, warps=4)
    i = block_id(0)
    gx = global_view(x, shape=(n, BN))
    tile = load_global(gx, offset=(i, 0), shape=(1, BN))
"""


@pytest.fixture
def message(kernel: Callable[..., KernelDef]) -> Callable[[str], str]:
    """A wrong kernel to the text of its error. Text that does not define `k` is the body after `HEAD`, from line 6 on."""

    def render(body: str) -> str:
        text = body if body.startswith("def k(") else HEAD + textwrap.indent(body, "    ")
        with pytest.raises(LangError) as caught:
            kernel(text + "\n").specialize({})
        return str(caught.value)

    return render
