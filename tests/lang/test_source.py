"""Where a kernel's text may come from, and how its constants and annotations are read."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from tilus.dtypes import DataType, f16, f32, i32
from tilus.errors import InternalError, LangError, TilusError
from tilus.ir.printer import to_text
from tilus.lang import block_id, cdiv, define, exp, global_view, inline, launch, load_global, ptr, store_global
from tilus.lang.primitives import LangFunction
from tilus.lang.tiles import to

WIDTH = 64


def in_this_file(x: ptr[T], n: i32, *, T: DataType, BN: int = WIDTH):  # noqa: F821
    """A kernel of a file with the future import: its annotations are text, and T is a constant."""
    launch(blocks=cdiv(n, BN))
    view = global_view(x, shape=(n,))
    tile = load_global(view, offset=block_id(0) * BN, shape=BN)
    store_global(view, exp(tile.to(f32)).to(T), offset=block_id(0) * BN)


def test_kernel_of_a_file() -> None:
    definition = define(in_this_file)
    assert [str(t) for t in definition.param_types({"T": f16})] == ["ptr[f16]", "i32"]
    program = definition.specialize({"T": f32, "BN": 128})
    assert "x: ptr[f32]" in to_text(program)
    assert "(128,)" in to_text(program)
    code = in_this_file.__code__
    assert program.body[-1].loc.file == code.co_filename
    assert program.body[-1].loc.line == code.co_firstlineno + 5


def test_closure() -> None:
    def make(factor: float, kind: DataType):
        def k(x: ptr[kind], n: i32):
            launch(blocks=n)
            view = global_view(x, shape=(n,))
            store_global(view, load_global(view, offset=0, shape=WIDTH) * factor, offset=0)

        # Annotations are text here, and what only they name is no closure of the function.
        k.__annotations__["x"] = ptr[kind]
        return k

    program = define(make(2.5, f32)).specialize({})
    assert 'elementwise(op="mul", args=(' in to_text(program)
    assert "2.5" in to_text(program)
    assert "3.0_f16" in to_text(define(make(3.0, f16)).specialize({}))


def test_closure_of_a_later_value_is_read_when_it_is_needed() -> None:
    def k(x: ptr[f32], n: i32):
        launch(blocks=n * later)

    definition = define(k)
    with pytest.raises(LangError, match="name 'later' is not defined"):
        definition.specialize({})
    later = 3
    assert "n * 3" in to_text(definition.specialize({}))


def passing_on(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@passing_on
@passing_on
def decorated(n: i32):
    launch(blocks=n)


def test_stacked_decorators() -> None:
    definition = define(decorated)
    assert definition.name == "decorated"
    assert "grid (n,)" in to_text(definition.specialize({}))
    assert definition.specialize({}).loc.source_line() == "def decorated(n: i32):"


def test_no_source() -> None:
    space = {"launch": launch, "i32": i32}
    exec(compile("def k(n: i32):\n    launch(blocks=n)\n", "<stdin>", "exec", dont_inherit=True), space)
    with pytest.raises(LangError) as caught:
        define(space["k"])
    assert str(caught.value) == (
        "<stdin>:1:1: the source text of kernel 'k' is not available\n"
        "hint: define it in a file or a notebook cell: Python keeps no text from exec(), -c or its prompt"
    )


def test_edited_file(tmp_path: Path) -> None:
    path = tmp_path / "edited.py"
    path.write_text(
        "from tilus.dtypes import i32\nfrom tilus.lang import launch\ndef k(n: i32):\n    launch(blocks=n)\n"
    )
    spec = importlib.util.spec_from_file_location("edited", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["edited"] = module
    try:
        spec.loader.exec_module(module)
        path.write_text("from tilus.dtypes import i32\n\n\n\nanother = 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10\n")
        with pytest.raises(LangError, match=r"not available|is not a `def k`"):
            define(module.k)
    finally:
        del sys.modules["edited"]


def test_lambda_and_other_things() -> None:
    with pytest.raises(LangError, match=r"is not a `def <lambda>`"):
        define(lambda n: launch(blocks=n))
    with pytest.raises(TilusError, match="a kernel is a Python function, got type"):
        define(int)


def test_columns_count_characters(kernel) -> None:
    text = 'def k(n: i32):\n    launch(blocks=n)\n    print("größe ✓", n.colour)\n'
    with pytest.raises(LangError) as caught:
        kernel(text).specialize({})
    assert str(caught.value).splitlines() == [
        "k.py:3:22: a run-time i32 has no attribute 'colour'",
        '        print("größe ✓", n.colour)',
        "                         ^",
        "hint: it has dtype, to",
    ]


def test_indented_text_keeps_its_strings_and_columns(kernel) -> None:
    text = "if True:\n    def k(n: i32):\n        '''Text\nthat is not indented.'''\n        launch(blocks=m)\n"
    with pytest.raises(LangError) as caught:
        kernel(text).specialize({})
    assert (caught.value.loc.line, caught.value.loc.column) == (5, 23)


# --- constants -------------------------------------------------------------------------------------------------------


def message(call) -> str:
    with pytest.raises(LangError) as caught:
        call()
    return caught.value.message + (f" | {caught.value.hint}" if caught.value.hint else "")


def test_constants_are_checked() -> None:
    definition = define(in_this_file)
    assert message(lambda: definition.specialize({})) == (
        "kernel 'in_this_file' needs a value for the constant 'T' | pass T=..."
    )
    assert message(lambda: definition.param_types({"T": f16, "BK": 3})) == (
        "kernel 'in_this_file' has no constant 'BK' | its constants are T, BN"
    )
    assert (
        message(lambda: definition.specialize({"T": f16, "BN": 2.5})) == "constant 'BN' must be int, got 2.5, a float"
    )
    assert message(lambda: definition.specialize({"T": "f16"})) == "constant 'T' must be DataType, got 'f16', a str"
    assert (
        message(lambda: definition.specialize({"T": f16}, {"y": 16}))
        == "kernel 'in_this_file' has no parameter 'y' | its parameters are x, n"
    )


def test_numpy_numbers_are_numbers(kernel) -> None:
    text = "def k(x: ptr[f32], n: i32, *, SCALE: float = 1.0):\n    launch(blocks=n)\n    y = x[0] * SCALE + OFFSET\n"
    program = kernel(text, OFFSET=np.float32(0.5)).specialize({"SCALE": np.float64(2.0)})
    assert to_text(program.body[-1]) == "y: f32 = x_element * 2.0 + 0.5"


def test_python_types_annotate_scalars(kernel) -> None:
    definition = kernel("def k(a: int, b: float, c: bool, /, d: i64):\n    launch(blocks=a)\n")
    assert [str(t) for t in definition.param_types({})] == ["i32", "f32", "bool", "i64"]


# --- outside kernels -------------------------------------------------------------------------------------------------


@inline
def helper(x):
    return x + 1


def test_functions_refuse_outside_kernels() -> None:
    with pytest.raises(TilusError, match="exp works only inside a kernel"):
        exp(1.0)
    with pytest.raises(TilusError, match="inline function 'helper' works only inside a kernel"):
        helper(3)
    assert cdiv(7, 2) == 4
    with pytest.raises(TilusError, match="takes a data type"):
        ptr["f16"]


def test_our_own_failures_say_so(kernel, monkeypatch) -> None:
    def broken(b, x, dtype):
        raise KeyError("planted")

    monkeypatch.setattr(to, "implement", broken)
    assert isinstance(to, LangFunction)
    with pytest.raises(
        InternalError, match=r"(?s)k.py:3:9: the compiler failed here: KeyError: 'planted'.*bug of tilus"
    ):
        kernel("def k(n: i32):\n    launch(blocks=n)\n    y = n.to(f32)\n").specialize({})


def test_errors_carry_no_frames_of_the_evaluator(kernel) -> None:
    with pytest.raises(LangError) as caught:
        kernel("def k(n: i32):\n    launch(blocks=n)\n    y = n / 2\n").specialize({})
    files = {entry.path.name for entry in caught.traceback}
    assert not files & {"expressions.py", "statements.py", "arithmetic.py"}
    assert caught.value.__suppress_context__
