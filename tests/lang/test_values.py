"""What single expressions become: promotion, literals, layouts, and which copies of tiles are made."""

from __future__ import annotations

import pytest

from tilus.errors import LangError
from tilus.ir.instructions import Copy
from tilus.ir.node import walk
from tilus.ir.printer import to_text
from tilus.ir.stmt import InstStmt
from tilus.ir.verify import verify

HEAD = """\
def k(x: ptr[f16], y: ptr[f32], c: ptr[i8], n: i32, m: i64, u: u32, h: f16, p: bool, *, BN: int = 128):
    launch(blocks=n, warps=4)
    tile = load_global(global_view(x, shape=n), offset=0, shape=BN)
    ints = arange(BN)
"""


@pytest.fixture
def body(kernel):
    """Text of the statements that some lines after HEAD become."""

    def compile_(lines: str) -> list[str]:
        text = HEAD + "".join(f"    {line}\n" for line in lines.splitlines())
        program = kernel(text).specialize({})
        verify(program)
        whole = to_text(program).splitlines()
        start = next(i for i, line in enumerate(whole) if "ints: " in line)
        return [line.strip() for line in whole[start + 1 : -1]]

    return compile_


SCALARS = {
    "n + m": "i64(n) + m",
    "m * 2 - n": "m * 2_i64 - i64(n)",
    "n * h": "f16(n) * h",
    "h + y[0]": "f32(h) + y_element",
    "n + 0.5": "f32(n) + 0.5",
    "h * 2": "h * 2.0_f16",
    "n % 3 == 0": "n % 3 == 0",
    "n > m": "m < i64(n)",
    "-n": "neg(n)",
    "~p": "not(p)",
    "not n > 3": "not(3 < n)",
    "n << 3 | 1": "n << 3 | 1",
    "min(n, 4, 7)": "min(min(n, 4), 7)",
    "abs(n)": "abs(n)",
    "max((n, n - 1))": "max(n, n - 1)",
    "cdiv(n, BN)": "(n + 127) // 128",
    "cdiv(n, n)": "(n + n - 1) // n",
    "u + c[3]": None,
    "where(p, n, 0)": "where(p, n, 0)",
    "n if p else 2.5": "where(p, f32(n), 2.5)",
    "p and n > 0": "p & (0 < n)",
    "p and True": "p",
    "0 < n <= 4": "(0 < n) & (n <= 4)",
    "sqrt(16.0) + n": "4.0 + f32(n)",
    "sqrt(n.to(f32))": "sqrt(f32(n))",
    "maximum(2, 3) + n": "3 + n",
    "n.to(i64).to(i64)": "i64(n)",
}


@pytest.mark.parametrize(("text", "expected"), [pair for pair in SCALARS.items() if pair[1]], ids=str)
def test_scalars(body, text: str, expected: str) -> None:
    lines = body(f"z = {text}\nprint(z)")
    printed = lines[-1].removeprefix('print(format="{}", args=(').removesuffix(",))")
    value = lines[-2].partition(" = ")[2] if printed == "z" else printed
    assert value == expected


def test_unsigned_and_signed_of_one_width_do_not_meet(body) -> None:
    with pytest.raises(LangError, match=r"operands of \+ have different types: u32 and i32"):
        body("z = u + n")
    assert body("z = m + u\nprint(z)")[-2] == "z: i64 = m + i64(u)"


def test_annotated_names_give_numbers_a_type(body) -> None:
    lines = body("total: f16 = 0\nfor j in range(n):\n    total += h\nprint(total)")
    assert lines[0] == "total: f16 = 0.0_f16"
    assert "total = total + h" in lines


TILES = {
    "tile * 2": 'elementwise(op="mul", args=(tile, 2.0_f16))',
    "1 - tile": 'elementwise(op="sub", args=(1.0_f16, tile))',
    "tile + h": 'elementwise(op="add", args=(tile, h))',
    "ints + n": 'elementwise(op="add", args=(ints, n))',
    "ints < n": 'elementwise(op="lt", args=(ints, n))',
    "ints >= 5": 'elementwise(op="le", args=(5, ints))',
    "-tile": 'elementwise(op="neg", args=(tile,))',
    "abs(tile)": 'elementwise(op="abs", args=(tile,))',
    "max(tile, 0)": 'elementwise(op="max", args=(tile, 0.0_f16))',
    "maximum(tile, h)": 'elementwise(op="max", args=(tile, h))',
    "tile.T": "transpose(x=tile, perm=(0,))",
    "tile[32:64]": "slice(x=tile, offset=(32,), shape=(32,))",
    "tile[-32:]": "slice(x=tile, offset=(96,), shape=(32,))",
    "tile.reshape((8, -1))": "reshape(x=tile, shape=(8, 16))",
    "tilus.min(tile, 0)": 'reduce(x=tile, op="min", dim=0, keepdims=false)',
    "arange((2, 3), 1, n)": "arange(start=n, shape=(2, 3), dim=1)",
    "full((2, 2), n, f32)": "full(value=f32(n), shape=(2, 2))",
    "full(4, 1)": "full(value=1, shape=(4,))",
    "where(ints < 3, 1.0, 0)": None,
    "convert_layout(tile, spatial(128))": "convert_layout(x=tile, layout=spatial(128))",
}


@pytest.mark.parametrize(("text", "expected"), [pair for pair in TILES.items() if pair[1]], ids=str)
def test_tiles(body, text: str, expected: str) -> None:
    assert body(f"z = {text}")[-1].partition(" = ")[2] == expected


def test_where_of_numbers(body) -> None:
    assert body("z = where(ints < 3, 1.0, 0)")[-1] == (
        'z: register[f32, (128,)] = elementwise(op="where", args=(t, 1.0, 0.0))'
    )


def test_integer_products_are_summed_in_integers(body) -> None:
    lines = body("a = load_global(global_view(c, shape=(16, 32)), offset=(0, 0), shape=(16, 32))\nz = a @ a.T")
    assert lines[-1].startswith("z: register[i32, (16, 16)] = dot(")


def test_matrices_of_a_batch_are_transposed(body) -> None:
    lines = body("a = tile.reshape((2, 16, 4))\nz = a @ a.mT")
    assert [line.partition(" = ")[2] for line in lines[1:]] == [
        "transpose(x=a, perm=(0, 2, 1))", "full(value=0.0, shape=(2, 16, 16))", "dot(a=a, b=t, c=t_1)"
    ]  # fmt: skip
    with pytest.raises(LangError, match=r"mT transposes matrices, got shape \(128,\)"):
        body("z = tile.mT")
    with pytest.raises(LangError, match=r"batches differ: got shapes \(2, 16, 4\) and \(4, 4, 8\)"):
        body("z = tilus.dot(tile.reshape((2, 16, 4)), tile.reshape((4, 4, 8)))")


def test_annotate(body) -> None:
    fresh = body("z = annotate(exp(tile), spatial(128))\nw = z + 1")
    assert fresh[0].startswith("z: register[f16, (128,), spatial(128)] = elementwise")
    later = body("z = exp(tile)\nw = z + 1\nannotate(z, spatial(128))\nprint(z)")
    assert later[0].startswith("z: register[f16, (128,), spatial(128)] = elementwise")
    loop = body(
        "acc = zeros(BN, f16)\nannotate(acc, spatial(128))\nfor j in range(n):\n    acc = acc + tile\nprint(acc)"
    )
    assert loop[0].startswith("acc: register[f16, (128,), spatial(128)] = full")
    given = body("z = load_global(global_view(x, shape=n), offset=0, shape=64, layout=spatial(64))")
    assert given[-1].startswith("z: register[f16, (64,), spatial(64)] = load_global")


def test_annotate_later_is_checked_against_views(body) -> None:
    with pytest.raises(LangError, match="view must keep threads and bits per thread"):
        body("z = exp(tile)\nw = view(z, f32, spatial(128))\nannotate(z, spatial(128))")
    with pytest.raises(LangError, match="view must keep threads and bits per thread"):
        body("z = exp(tile)\nannotate(z, spatial(128))\nw = view(z, f32, spatial(128))")


# --- variables -------------------------------------------------------------------------------------------------------


def copies(kernel, lines: str) -> int:
    text = HEAD + "".join(f"    {line}\n" for line in lines.splitlines())
    program = kernel(text).specialize({})
    verify(program)
    return sum(isinstance(node, InstStmt) and isinstance(node.inst, Copy) for node in walk(program))


COPIES = {
    "an accumulator needs none": ("acc = zeros(BN, f16)\nfor j in range(n):\n    acc += tile\nprint(acc)", 0),
    "nor over nested loops and branches": (
        "acc = zeros(BN, f16)\nfor j in range(n):\n    for l in range(j):\n        if l > 2:\n"
        "            acc = acc + tile\nprint(acc)",
        0,
    ),
    "a second name of the value does": (
        "acc = zeros(BN, f16)\nold = acc\nfor j in range(n):\n    acc += tile\nprint(acc, old)",
        1,
    ),
    "so does remembering the last turn's": (
        "acc = zeros(BN, f16)\nold = tile * 2\nfor j in range(n):\n    old = acc\n    acc = acc + tile\nprint(acc, old)",
        1,
    ),
    "a value that nobody reads again is no variable": (
        "tmp = tile * 2\nfor j in range(n):\n    tmp = tile * 3\n    print(tmp)",
        0,
    ),
    "what may overwrite its operand is copied": (
        "acc = zeros((8, 8), f16)\nfor j in range(n):\n    acc = transpose(acc)\nprint(acc)",
        1,
    ),
}


@pytest.mark.parametrize(("lines", "count"), COPIES.values(), ids=COPIES)
def test_copies(kernel, lines: str, count: int) -> None:
    assert copies(kernel, lines) == count


def test_types_may_change_where_nothing_is_carried(body) -> None:
    lines = body(
        "z = tile\nfor j in range(n):\n    z = tile.to(f32)\n    print(z)\nif n > 3:\n    z = ints\n    print(z)\n"
        "z = n\nprint(z)"
    )
    assert lines[-1] == 'print(format="{}", args=(n,))'


def test_bounds_of_a_loop_are_read_once(body) -> None:
    lines = body("stop = n\nfor j in range(stop):\n    for l in range(stop):\n        stop = stop + 1\nprint(stop)")
    assert lines[:5] == [
        "stop: i32 = n",
        "for j in range(0, n, 1) {",
        "bound: i32 = stop",
        "for l in range(0, bound, 1) {",
        "stop = stop + 1",
    ]


def test_a_view_keeps_its_extents(body) -> None:
    lines = body(
        "rows = n\nfor j in range(n):\n    g = global_view(x, shape=(rows, 4))\n    rows = rows - 1\n"
        "    print(load_global(g, offset=(0, 0), shape=(1, 4)), g.shape[0])"
    )
    assert lines[2].startswith("shape: i32 = rows")
    assert "shape=(shape, 4)" in lines[3]
    assert lines[-2].endswith("args=(t, shape))")


def test_python_numbers_become_variables(body) -> None:
    lines = body(
        "count, scale, on = 0, 1.0, False\nfor j in range(n):\n    count += 1\n    scale *= 0.5\n    on = j > 3\nprint(count, scale, on)"
    )
    assert lines[:3] == ["count: i32 = 0", "on: bool = false", "scale: f32 = 1.0"]


def test_unrolled_loops_keep_numbers_at_compile_time(body) -> None:
    lines = body(
        "total = 0\nfor a, b in zip((1, 2, 3), [n, n, 4]):\n    if a == 2:\n        continue\n    total = total + a * b\nprint(total)"
    )
    assert lines == ["total: i32 = n + 12", 'print(format="{}", args=(total,))']


def test_tuples_are_carried(body) -> None:
    lines = body(
        "accs = (zeros(8, f32), 0)\nfor j in range(n):\n    accs = (accs[0] + 1.0, accs[1] + 1)\nprint(accs[0], accs[1])"
    )
    assert lines[1] == "accs_1: i32 = 0"
    assert lines[3:7] == [
        't: register[f32, (8,)] = elementwise(op="add", args=(accs, 1.0))',
        "accs_2: i32 = accs_1 + 1",
        "accs = copy(x=t)",
        "accs_1 = accs_2",
    ]


ANNOTATED = {
    "z: f32 = 3; w = z / 2 + n": "3.0 / 2.0 + f32(n)",
    "z: float = 3; w = n * z": "f32(n) * 3.0",
    "z: float = 3; w = n + z // 2": "f32(n) + 1.0",
    "z: int = 3; w = n + z // 2": "n + 1",
    "z: 'f16' = 3; w = z + h": "3.0_f16 + h",
    "z: int = n; w = z + 1": "n + 1",
    "z: 'a count' = 3; w = n + z": "n + 3",
}


@pytest.mark.parametrize(("line", "expected"), ANNOTATED.items(), ids=ANNOTATED)
def test_annotations_of_names_give_numbers_their_type(body, line, expected):
    found = body(f"{line}\nstore_global(global_view(y, shape=1), full(1, w, f32), offset=0)")
    assert [text.split(" = ")[1] for text in found if text.startswith("w: ")] == [expected]


CONSTANT = """\
def k(y: ptr[f32], *, C: {kind} = {value}):
    launch(blocks=1, warps=1)
    store_global(global_view(y, shape=4), full(4, C // 2 if {whole} else C / 2, f32), offset=0)
"""


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [("f32", "3", "1.5"), ("float", "3", "1.5"), ("i32", "7", "3.0"), ("int", "7", "3.0"), ("u8", "255", "127.0")],
)
def test_annotations_of_constants_give_numbers_their_type(kernel, kind, value, expected):
    whole = kind in ("i32", "int", "u8")
    program = kernel(CONSTANT.format(kind=kind, value=value, whole=whole)).specialize({})
    assert f"full(value={expected}, shape=(4,))" in to_text(program)


def test_a_float_constant_stays_a_float(kernel):
    program = kernel(CONSTANT.format(kind="f32", value="3", whole=True)).specialize({})
    assert "full(value=1.0, shape=(4,))" in to_text(program)
    with pytest.raises(LangError, match=r"shape must be an integer, got the float 4\.0"):
        kernel(
            "def k(y: ptr[f32], *, C: f32 = 4):\n    launch(blocks=1, warps=1)\n    t = full(C, 1.0, f32)\n"
        ).specialize({})


@pytest.mark.parametrize(
    ("kind", "value", "match"),
    [("u8", "256", "256 does not fit u8"), ("i32", "3.0", "must be i32, got 3.0"), ("f32", "True", "must be f32, got True"),
     ("bool", "1", "must be bool, got 1, an int"), ("int", "False", "must be int, got False"), ("f16", "70000", "does not fit f16")],
)  # fmt: skip
def test_constants_that_their_annotation_refuses(kernel, kind, value, match):
    with pytest.raises(LangError, match=match):
        kernel(CONSTANT.format(kind=kind, value=value, whole=False)).specialize({})


@pytest.mark.parametrize(("name", "call"), [("sum", "np.sum(tile)"), ("exp", "np.exp(tile)"), ("exp", "math.exp(n)"),
                                            ("where", "np.where(p, tile, tile)"), ("transpose", "np.transpose(tile)")])  # fmt: skip
def test_functions_of_other_libraries_point_to_ours(kernel, name, call):
    import math

    import numpy as np

    with pytest.raises(LangError, match=rf"hint: tilus\.{name}\(.*\) does that in a kernel"):
        kernel(HEAD + f"    w = {call}\n", np=np, math=math).specialize({})
