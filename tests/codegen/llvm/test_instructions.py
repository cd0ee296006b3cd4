"""Every instruction on the CPU against NumPy: lowered text through the emitter and LLVM."""

import re

import ml_dtypes
import numpy as np
import pytest

from tests.codegen.llvm.harness import lowered, run
from tests.random_data import generator
from tilus.codegen.llvm import EMITTERS, emit
from tilus.dtypes import dtype
from tilus.ir.instructions import INSTRUCTIONS
from tilus.ir.parser import parse
from tilus.ir.target import target

RNG = generator(0)


def test_every_instruction_has_an_emitter():
    assert set(EMITTERS) == set(INSTRUCTIONS)


def unary_or_binary(expression, result="f32", operand="f32"):
    """Return a program that applies an instruction to the tiles a and b of 100 elements."""
    layout = "local(13) * spatial(8)"
    kind = f"register[{operand}, (104,), {layout}]"
    return lowered(
        f"""  ga: global[{operand}, 1] = global_view(ptr=pa, shape=(100,), strides=(1,))
  gb: global[{operand}, 1] = global_view(ptr=pb, shape=(100,), strides=(1,))
  gc: global[{result}, 1] = global_view(ptr=pc, shape=(100,), strides=(1,))
  a: {kind} = load_global(view=ga, offset=(0,), shape=(104,), dims=(0,), other=1.0)
  b: {kind} = load_global(view=gb, offset=(0,), shape=(104,), dims=(0,), other=1.0)
  c: register[{result}, (104,), {layout}] = {expression}
  store_global(view=gc, tile=c, offset=(0,), dims=(0,))""",
        f"pa: ptr[{operand}], pb: ptr[{operand}], pc: ptr[{result}]",
        grid="1,",
    )


FLOAT_OPS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": np.minimum,
    "max": np.maximum,
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": lambda x: np.sqrt(np.abs(x)),
    "rsqrt": lambda x: 1 / np.sqrt(np.abs(x)),
    "exp": np.exp,
    "exp2": np.exp2,
    "log": lambda x: np.log(np.abs(x)),
    "log2": lambda x: np.log2(np.abs(x)),
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
}
BINARY = {"add", "sub", "mul", "div", "min", "max"}


@pytest.mark.parametrize("kind", ["f32", "f64", "f16", "bf16"])
@pytest.mark.parametrize("op", FLOAT_OPS)
def test_float_operators(op, kind):
    numpy_type = dtype(kind).numpy_dtype
    a, b = (RNG.normal(size=100, scale=4).astype(numpy_type) for _ in range(2))
    if op in ("sqrt", "rsqrt", "log", "log2"):
        a = np.abs(a)
    got = np.zeros(100, numpy_type)
    args = "a, b" if op in BINARY else "a,"
    run(unary_or_binary(f'elementwise(op="{op}", args=({args}))', kind, kind), [a, b, got])
    wide = [x.astype(np.float64) for x in ((a, b) if op in BINARY else (a,))]
    expected = FLOAT_OPS[op](*wide)
    ulp = {"f64": 2.0**-52, "f32": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7}[kind]
    exact = op in BINARY | {"neg", "abs", "sqrt", "floor", "ceil", "round"}
    tolerance = (0.51 if exact else 2.5) * ulp * np.abs(expected) + (0 if exact else ulp / 8)
    assert (np.abs(got.astype(np.float64) - expected) <= tolerance).all()
    assert np.abs(got.astype(np.float64)).max() > 0


@pytest.mark.parametrize("base", ["exp", "exp2"])
def test_exponential_over_its_whole_range(base):
    x = np.concatenate(
        [np.linspace(-90, 90, 60), [0, -0.0, 88.7, 88.8, -87.3, -87.4, 1000, -1000], np.full(32, np.nan)]
    )
    x = x[:100].astype(np.float32)
    got = np.zeros(100, np.float32)
    run(unary_or_binary(f'elementwise(op="{base}", args=(a,))'), [x, x, got])
    with np.errstate(all="ignore"):
        expected = getattr(np, base)(x.astype(np.float64))
        expected = np.where(expected > np.finfo(np.float32).max, np.inf, expected)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    good = expected >= np.finfo(np.float32).tiny
    np.testing.assert_allclose(got[good], expected[good], rtol=3e-7)
    assert (got[expected < np.finfo(np.float32).tiny] <= 1.2e-38).all()


INTEGER_OPS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "floordiv": np.floor_divide,
    "mod": np.mod,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "neg": np.negative,
    "abs": np.abs,
}


@pytest.mark.parametrize("kind", ["i8", "u8", "i16", "i32", "u32", "i64"])
@pytest.mark.parametrize("op", INTEGER_OPS)
def test_integer_operators(op, kind):
    numpy_type = dtype(kind).numpy_dtype
    info = np.iinfo(numpy_type)
    a = RNG.integers(info.min + 1, info.max, 100, dtype=numpy_type)
    b = RNG.integers(max(info.min, -9), 9, 100, dtype=numpy_type)
    b[b == 0] = 3
    got = np.zeros(100, numpy_type)
    unary = op in ("not", "neg", "abs")
    run(unary_or_binary(f'elementwise(op="{op}", args=({"a," if unary else "a, b"}))', kind, kind), [a, b, got])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(got, INTEGER_OPS[op](*((a,) if unary else (a, b))))


@pytest.mark.parametrize("op", ["lt", "le", "eq", "ne"])
@pytest.mark.parametrize("kind", ["i32", "u32", "f32", "f16"])
def test_comparisons(op, kind):
    numpy_type = dtype(kind).numpy_dtype
    a, b = (RNG.integers(0, 4, 100).astype(numpy_type) for _ in range(2))
    if kind == "u32":
        a[:5] = 2**32 - 1
    got = np.zeros(100, np.bool_)
    run(unary_or_binary(f'elementwise(op="{op}", args=(a, b))', "bool", kind), [a, b, got])
    table = {"lt": np.less, "le": np.less_equal, "eq": np.equal, "ne": np.not_equal}
    np.testing.assert_array_equal(got, table[op](a, b))


MOVES = {
    # (body with x: register[f32, (8, 16), spatial(4, 2) * local(2, 8)], result shape, NumPy meaning)
    "convert": (
        "convert_layout(x=x, layout=local(8, 2) * spatial(1, 8))",
        (8, 16),
        "local(8, 2) * spatial(1, 8)",
        lambda x: x,
    ),
    "transpose": ("transpose(x=x, perm=(1, 0))", (16, 8), "spatial(2, 4).permute", lambda x: x.T),
    "reshape": ("reshape(x=x, shape=(4, 2, 16))", (4, 2, 16), None, lambda x: x.reshape(4, 2, 16)),
    "slice": ("slice(x=x, offset=(0, 0), shape=(8, 16))", (8, 16), None, lambda x: x),
    "copy": ("copy(x=x)", (8, 16), "spatial(4, 2) * local(2, 8)", lambda x: x),
    "sum": ('reduce(x=x, op="sum", dim=1, keepdims=false)', (8,), None, lambda x: x.sum(1)),
    "max": ('reduce(x=x, op="max", dim=0, keepdims=true)', (1, 16), None, lambda x: x.max(0, keepdims=True)),
    "min": ('reduce(x=x, op="min", dim=1, keepdims=true)', (8, 1), None, lambda x: x.min(1, keepdims=True)),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves_and_reductions(name):
    from tilus.layouts import local, spatial

    body, shape, _, meaning = MOVES[name]
    x_layout = spatial(4, 2) * local(2, 8)
    layout = {
        "convert": local(8, 2) * spatial(1, 8),
        "transpose": x_layout.permute(1, 0),
        "reshape": x_layout.reshape(4, 2, 16),
        "sum": x_layout.reduce([1]),
        "max": x_layout.reduce([0], keepdims=True),
        "min": x_layout.reduce([1], keepdims=True),
    }.get(name, x_layout)
    strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    view = f"shape={(*shape,)}, strides={(*strides,)}"
    zeros = ", ".join("0" for _ in shape) + ","
    text = lowered(
        f"""  gx: global[f32, 2] = global_view(ptr=px, shape=(8, 16), strides=(16, 1))
  gy: global[f32, {len(shape)}] = global_view(ptr=py, {view})
  x: register[f32, (8, 16), {x_layout}] = load_global(view=gx, offset=(0, 0), shape=(8, 16), dims=(0, 1), other=0.0)
  y: register[f32, {(*shape,)}, {layout}] = {body}
  store_global(view=gy, tile=y, offset=({zeros}), dims={(*range(len(shape)),)})""",
        "px: ptr[f32], py: ptr[f32]",
        grid="1,",
    )
    x = RNG.integers(-50, 50, (8, 16)).astype(np.float32)
    got = np.zeros(shape, np.float32)
    run(text, [x, got])
    np.testing.assert_array_equal(got, meaning(x))


@pytest.mark.parametrize(("a", "b", "c"), [
    ("local(4, 6) * replicated(8, rank=2)", "local(6, 2) * spatial(1, 8)", "local(4, 2) * spatial(1, 8)"),
    ("local(4, 2) * spatial(1, 8)", "local(2, 16) * spatial(8, 1)", "local(4, 16) * replicated(8, rank=2)"),
    ("local(1, 4) * spatial(4, 2) * local(1, 2)", None, None),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["f32", "f16", "i8"])
def test_dot(a, b, c, kind):
    """Lanes along n; lanes along k (their sums are added up); lanes along m and k."""
    from tilus.layouts import local, parse, replicated

    if b is None:
        row = parse(a).reduce([1], keepdims=True)
        c = str(row * local(1, 16))
        b = str(parse(a).reduce([0], keepdims=True).permute(1, 0) * local(1, 16))
    m, k = parse(a).shape
    n = parse(b).shape[1]
    acc = "i32" if kind == "i8" else "f32"
    text = lowered(
        f"""  ga: global[{kind}, 2] = global_view(ptr=pa, shape=({m}, {k}), strides=({k}, 1))
  gb: global[{kind}, 2] = global_view(ptr=pb, shape=({k}, {n}), strides=({n}, 1))
  gc: global[{acc}, 2] = global_view(ptr=pc, shape=({m}, {n}), strides=({n}, 1))
  a: register[{kind}, ({m}, {k}), {a}] = load_global(view=ga, offset=(0, 0), shape=({m}, {k}), dims=(0, 1), other=0.0)
  b: register[{kind}, ({k}, {n}), {b}] = load_global(view=gb, offset=(0, 0), shape=({k}, {n}), dims=(0, 1), other=0.0)
  c: register[{acc}, ({m}, {n}), {c}] = load_global(view=gc, offset=(0, 0), shape=({m}, {n}), dims=(0, 1), other=0.0)
  c = dot(a=a, b=b, c=c)
  store_global(view=gc, tile=c, offset=(0, 0), dims=(0, 1))""",
        f"pa: ptr[{kind}], pb: ptr[{kind}], pc: ptr[{acc}]",
        grid="1,",
    )
    numpy_type = dtype(kind).numpy_dtype
    x, y = RNG.integers(-8, 8, (m, k)).astype(numpy_type), RNG.integers(-8, 8, (k, n)).astype(numpy_type)
    z = RNG.integers(-99, 99, (m, n)).astype(dtype(acc).numpy_dtype)
    expected = x.astype(np.int64) @ y.astype(np.int64) + z
    run(text, [x, y, z])
    np.testing.assert_array_equal(z, expected)
    assert replicated(8, 2).num_threads == 8


@pytest.mark.parametrize("corner", [(-3, -5), (0, 0), (2, 3), (5, 30), (20, 20)])
@pytest.mark.parametrize("kind", ["f32", "f16", "u8", "u4", "u3"])
def test_ragged_tiles(corner, kind):
    """A tile that crosses any border reads `other` outside and writes nothing there; narrow types bit by bit."""
    rows, columns, t = 9, 21, dtype(kind)
    text = lowered(
        f"""  gx: global[{kind}, 2] = global_view(ptr=px, shape=({rows}, {columns}), strides=({columns}, 1))
  gy: global[{kind}, 2] = global_view(ptr=py, shape=(8, 16), strides=(16, 1))
  gz: global[{kind}, 2] = global_view(ptr=pz, shape=({rows}, {columns}), strides=({columns}, 1))
  x: register[{kind}, (8, 16), local(8, 2) * spatial(1, 8)] = load_global(view=gx, offset=(i, j), shape=(8, 16), dims=(0, 1), other=1.0)
  store_global(view=gy, tile=x, offset=(0, 0), dims=(0, 1))
  store_global(view=gz, tile=x, offset=(i, j), dims=(0, 1))""",
        f"px: ptr[{kind}], py: ptr[{kind}], pz: ptr[{kind}], i: i32, j: i32",
        grid="1,",
    )
    codes = RNG.integers(0, 2 ** min(t.nbits, 8), (rows, columns)).astype(t.code_dtype)
    if kind == "f32":
        codes = RNG.normal(size=(rows, columns)).astype(np.float32).view(np.uint32)
    x, y, z = t.pack(codes.ravel()), t.pack(np.zeros(128, t.code_dtype)), t.pack(np.zeros(codes.size, t.code_dtype))
    run(text, [x, y, z, *corner])
    one = int(t.encode(1.0))
    i, j = corner
    window = np.full((8, 16), one, t.code_dtype)
    kept = np.zeros_like(codes)
    for r in range(8):
        for c in range(16):
            if 0 <= i + r < rows and 0 <= j + c < columns:
                window[r, c] = kept[i + r, j + c] = codes[i + r, j + c]
    np.testing.assert_array_equal(t.unpack(y, 128).reshape(8, 16), window)
    np.testing.assert_array_equal(t.unpack(z, codes.size).reshape(codes.shape), kept)


def test_shared_swizzle_and_asynchronous_copy():
    text = lowered(
        """  gx: global[f16, 2] = global_view(ptr=px, shape=(13, 64), strides=(64, 1))
  gy: global[f16, 2] = global_view(ptr=py, shape=(16, 64), strides=(64, 1))
  s: shared[f16, (2, 16, 64), row_major(2,16,64).swizzled(3, 3, 3)] = alloc_shared(dtype=f16, shape=(2, 16, 64), byte_offset=128)
  copy_async(dst=s, src=gx, dst_offset=(1, 0, 0), src_offset=(0, 0), shape=(16, 64), dst_dims=(1, 2), src_dims=(0, 1))
  commit_group()
  wait_group(pending=0)
  sync()
  x: register[f16, (16, 64), local(16, 8) * spatial(1, 8)] = load_shared(src=s, offset=(1, 0, 0), shape=(16, 64), dims=(1, 2))
  store_shared(dst=s, tile=x, offset=(0, 0, 0), dims=(1, 2))
  y: register[f16, (16, 64), local(16, 8) * spatial(1, 8)] = load_shared(src=s, offset=(0, 0, 0), shape=(16, 64), dims=(1, 2))
  store_global(view=gy, tile=y, offset=(0, 0), dims=(0, 1))""",
        "px: ptr[f16], py: ptr[f16]",
        grid="1,",
        shared=128 + 2 * 2 * 16 * 64,
    )
    x, y = RNG.normal(size=(13, 64)).astype(np.float16), np.ones((16, 64), np.float16)
    run(text, [x, y])
    np.testing.assert_array_equal(y[:13], x)
    np.testing.assert_array_equal(y[13:], 0)


def test_control_flow():
    text = lowered(
        """  gy: global[i32, 1] = global_view(ptr=py, shape=(8,), strides=(1,))
  total: register[i32, (8,), spatial(8)] = arange(start=0, shape=(8,), dim=0)
  n: i32 = 0
  for i in range(10, 0, -3) {
    if i == 4 { continue } else { }
    n = n + i
  }
  while n < 1000 {
    n = n * 2
    if 300 < n { break }
  }
  one: register[i32, (8,), spatial(8)] = full(value=n, shape=(8,))
  total = elementwise(op="add", args=(total, one))
  store_global(view=gy, tile=total, offset=(0,), dims=(0,))""",
        "py: ptr[i32]",
        grid="1,",
    )
    y = np.zeros(8, np.int32)
    run(text, [y])
    n = 10 + 7 + 1
    while n < 1000:
        n *= 2
        if n > 300:
            break
    np.testing.assert_array_equal(y, np.arange(8) + n)


@pytest.mark.parametrize("kind", ["f32", "i32", "f16", "bf16"])
def test_atomic_add(kind):
    t = dtype(kind)
    text = lowered(
        f"""  gy: global[{kind}, 1] = global_view(ptr=py, shape=(13,), strides=(1,))
  x: register[{kind}, (16,), local(2) * spatial(8)] = full(value={"2" if kind == "i32" else "2.0_" + kind}, shape=(16,))
  atomic_add(view=gy, tile=x, offset=(0,), dims=(0,))""".replace("_f32", ""),
        f"py: ptr[{kind}]",
        grid="5,",
    )
    y = np.ones(14, t.numpy_dtype)
    run(text, [y], (5, 1, 1))
    np.testing.assert_array_equal(y.astype(np.float32), [11.0] * 13 + [1.0])


def test_assertion_reports_the_block():
    text = lowered('  assert_(cond=block_id(0) < 3, message="too far")', "n: i32", grid="5,")
    fault = run(text, [0], (5, 1, 1))
    assert fault[0] == 1
    assert fault[1] == 3


def test_print(capfd):
    text = lowered(
        """  x: register[i32, (8,), spatial(8)] = arange(start=5, shape=(8,), dim=0)
  print(format="{{x}} = {} at {} 100%", args=(x, block_id(0)))""",
        "n: i32",
        grid="1,",
    )
    run(text, [0])
    assert capfd.readouterr().out == "{x} = [5, 6, 7, 8, 9, 10, 11, 12] at 0 100%\n"


def test_load_element():
    text = lowered(
        """  e: bf16 = load_element(ptr=px, index=2)
  gy: global[bf16, 1] = global_view(ptr=py, shape=(8,), strides=(1,))
  y: register[bf16, (8,), spatial(8)] = full(value=e, shape=(8,))
  store_global(view=gy, tile=y, offset=(0,), dims=(0,))""",
        "px: ptr[bf16], py: ptr[bf16]",
        grid="1,",
    )
    x, y = np.array([1, 2, 3.25], ml_dtypes.bfloat16), np.zeros(8, ml_dtypes.bfloat16)
    run(text, [x, y])
    np.testing.assert_array_equal(y.astype(np.float32), 3.25)


@pytest.mark.parametrize("n", [16, 13])
def test_rows_of_lanes_are_stored_as_vectors(n):
    """Lanes that hold rows exchange their elements before a store, into the view or into the copy beside it."""
    kind = "register[f32, (8, 16), spatial(8, 1) * local(1, 16)]"
    text = lowered(
        f"""  gx: global[f32, 2] = global_view(ptr=px, shape=(8, 16), strides=(16, 1))
  gy: global[f32, 2] = global_view(ptr=py, shape=(8, {n}), strides=(s, 1))
  x: {kind} = load_global(view=gx, offset=(0, 0), shape=(8, 16), dims=(0, 1), other=0.0)
  store_global(view=gy, tile=x, offset=(0, 0), dims=(0, 1))""",
        "px: ptr[f32], py: ptr[f32], s: i32",
        grid="1,",
    )
    x, y = np.arange(128, dtype=np.float32).reshape(8, 16), np.full((8, 20), -1, np.float32)
    run(text, [x, y, 20])
    assert (y[:, :n] == x[:, :n]).all()
    assert (y[:, n:] == -1).all()
    assert len(re.findall(r"store <8 x float> \S+ ptr \S+ align 1\n", emit(parse(text), target("cpu")).text)) == 16
