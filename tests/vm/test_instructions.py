"""Every instruction against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.random_data import generator
from tests.vm.helpers import as_buffer, evaluate, run_text, whole
from tilus import vm
from tilus.dtypes import bf16, dtype, f16, f32, i8, i32, i64, u3, u4, u8, u32
from tilus.ir.builder import Builder, op
from tilus.ir.expr import const
from tilus.ir.instructions import (
    INSTRUCTIONS,
    AllocShared,
    Arange,
    AtomicAdd,
    Cast,
    CommitGroup,
    ConvertLayout,
    Copy,
    CopyAsync,
    Dot,
    Elementwise,
    Full,
    GlobalView,
    LoadElement,
    LoadGlobal,
    LoadShared,
    Reduce,
    Reshape,
    Slice,
    StoreGlobal,
    StoreShared,
    Sync,
    Transpose,
    View,
    WaitGroup,
)
from tilus.layouts import column_local, column_spatial, local, replicated, row_major_swizzle, spatial

RNG = generator(7)


def codes(kind, *shape: int) -> np.ndarray:
    return RNG.integers(0, kind.num_codes - 1, shape, np.uint64, endpoint=True).astype(kind.code_dtype)


def floats(kind, *shape: int) -> np.ndarray:
    return kind.encode(RNG.standard_normal(shape))


def test_every_instruction_has_a_meaning() -> None:
    assert set(vm.MEANING) == set(INSTRUCTIONS)
    assert all(meaning.__doc__ for meaning in vm.MEANING.values())


# Register tensors


def test_full_and_arange() -> None:
    x = codes(i32, 3, 4)
    got = evaluate(lambda b, t: b.inst(Elementwise("add", (t, b.inst(Arange(const(-2), (3, 4), 1))))), (i32, x))
    np.testing.assert_array_equal(got, x + np.arange(-2, 2).astype(np.uint32))
    got = evaluate(lambda b: b.inst(Arange(const(250, u8), (8, 2), 0)))
    np.testing.assert_array_equal(got, np.arange(250, 258).astype(np.uint8)[:, None].repeat(2, 1))
    assert (evaluate(lambda b: b.inst(Full(const(1.5, f16), (2, 2)))).view(np.float16) == 1.5).all()


def test_copy_is_a_value() -> None:
    """A copy keeps its elements when the original is redefined."""

    def build(b, t):
        kept = b.inst(Copy(t))
        b.inst(Full(const(0, i32), (4,)), out=t)
        return kept

    x = codes(i32, 4)
    np.testing.assert_array_equal(evaluate(build, (i32, x)), x)


@pytest.mark.parametrize("kind", [u3, dtype("f4e2m1"), dtype("nf4"), i8, bf16], ids=str)
def test_cast(kind) -> None:
    x = codes(kind, 6, 5)
    got = evaluate(lambda b, t: b.inst(Cast(t, f32)), (kind, x)).view(np.float32)
    np.testing.assert_array_equal(got, np.asarray(kind.decode(x), np.float32))


@pytest.mark.parametrize(
    ("name", "meaning"),
    [("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("max", np.maximum), ("lt", np.less)],
)
def test_elementwise_broadcasts(name: str, meaning) -> None:
    a, b, c = floats(f32, 3, 4), floats(f32, 1, 4), floats(f32, 4)
    for left, right in ((a, b), (b, a), (a, c), (c, b)):
        got = evaluate(lambda bld, x, y: bld.inst(Elementwise(name, (x, y))), (f32, left), (f32, right))
        want = meaning(left.view(np.float32), right.view(np.float32))
        np.testing.assert_array_equal(got, want if want.dtype == np.bool_ else want.view(np.uint32))


def test_elementwise_with_scalars_and_where() -> None:
    x = codes(i32, 4, 4)

    def build(b, t):
        odd = b.inst(Elementwise("eq", (b.inst(Elementwise("and", (t, const(1)))), const(1))))
        return b.inst(Elementwise("where", (odd, t, const(-7))))

    got = evaluate(build, (i32, x)).view(np.int32)
    np.testing.assert_array_equal(got, np.where(x % 2 == 1, x.view(np.int32), -7))


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize(("name", "meaning"), [("sum", np.sum), ("max", np.max), ("min", np.min)])
def test_reduce(name: str, meaning, dim: int, keepdims: bool) -> None:
    x = codes(i32, 2, 3, 4)
    got = evaluate(lambda b, t: b.inst(Reduce(t, name, dim, keepdims)), (i32, x)).view(np.int32)
    want = meaning(x.view(np.int32).astype(np.int64), axis=dim, keepdims=keepdims).astype(np.int32)
    np.testing.assert_array_equal(got, want)


def test_shapes() -> None:
    x = codes(u4, 2, 3, 4)
    for build, want in (
        (lambda b, t: b.inst(Transpose(t, (2, 0, 1))), x.transpose(2, 0, 1)),
        (lambda b, t: b.inst(Reshape(t, (6, 4))), x.reshape(6, 4)),
        (lambda b, t: b.inst(Slice(t, (1, 0, 2), (1, 2, 2))), x[1:, :2, 2:]),
    ):
        np.testing.assert_array_equal(evaluate(build, (u4, x)), want)


@pytest.mark.parametrize(("kind", "acc"), [(f16, f32), (bf16, f32), (f16, f16), (f32, f32)], ids=str)
def test_dot(kind, acc) -> None:
    a, b, c = floats(kind, 5, 9), floats(kind, 9, 3), floats(acc, 5, 3)
    got = evaluate(lambda bld, x, y, z: bld.inst(Dot(x, y, z)), (kind, a), (kind, b), (acc, c))
    exact = kind.decode(a) @ kind.decode(b) + acc.decode(c)
    np.testing.assert_array_equal(got, acc.encode(exact))
    assert np.any(got != c)


def test_integer_dot() -> None:
    a, b, c = codes(i8, 4, 40), codes(i8, 40, 6), codes(i32, 4, 6)
    got = evaluate(lambda bld, x, y, z: bld.inst(Dot(x, y, z)), (i8, a), (i8, b), (i32, c))
    want = a.view(np.int8).astype(np.int64) @ b.view(np.int8).astype(np.int64) + c.view(np.int32)
    np.testing.assert_array_equal(got, want.astype(np.int32).view(np.uint32))


# view: bits of a thread, looked at another way


def thread_bits(layout, kind, x: np.ndarray) -> list[int]:
    """The bits of each thread as one large number, element by element."""
    found = []
    for thread in range(layout.num_threads):
        word = 0
        for place in range(layout.local_size):
            word |= int(x[layout(thread, place)]) << place * kind.nbits
        found.append(word)
    return found


VIEWS = [
    (u8, spatial(4) * local(3), u3, spatial(4) * local(8)),
    (u32, local(2, 1) * spatial(4, 8) * local(1, 3), dtype("u6"), spatial(4, 8) * column_local(4, 8)),
    (u8, column_spatial(4, 8) * local(3, 1), dtype("f6e3m2"), spatial(8, 4) * local(1, 4)),
    (f32, spatial(2, 2) * local(2, 2), f16, local(2, 1) * column_spatial(2, 2) * local(1, 4)),
    (i64, spatial(2) * local(1), dtype("u1"), spatial(2) * local(64)),
    (u8, replicated(2) * spatial(4) * local(2), u4, replicated(2) * spatial(4) * local(4)),
    (u4, local(4, 4), i32, local(2, 1)),
]


@pytest.mark.parametrize(("source", "before", "target", "after"), VIEWS)
def test_view(source, before, target, after) -> None:
    x = codes(source, *before.shape)
    got = evaluate(lambda b, t: b.inst(View(t, target, after)), (source, x), layouts=(before,))
    want = thread_bits(before, source, x)
    assert thread_bits(after, target, got) == want
    assert len(set(want)) > 1 or before.num_threads == 1


def test_view_without_layout_is_one_thread() -> None:
    x = codes(u8, 2, 6)
    got = evaluate(lambda b, t: b.inst(View(t, u3, local(8, 4))), (u8, x))
    np.testing.assert_array_equal(got.reshape(-1), u3.unpack(x.reshape(-1), 32))


def test_convert_layout_keeps_values() -> None:
    x = codes(f16, 8, 8)
    got = evaluate(lambda b, t: b.inst(ConvertLayout(t, spatial(8, 4) * local(1, 2))), (f16, x))
    np.testing.assert_array_equal(got, x)


# Global memory


@pytest.mark.parametrize("kind", [f16, u3, dtype("u1"), dtype("f7e2m4"), i64], ids=str)
def test_load_outside_of_the_view(kind) -> None:
    """Elements outside of the view are `other`, on all sides."""
    x = codes(kind, 5, 6)
    b = Builder("p")
    view, _, _, dims = whole(b, "x", kind, (5, 6))
    tile = b.inst(LoadGlobal(view, (const(-2), const(3)), (4, 8), dims, 1.0))
    out = whole(b, "y", kind, (4, 8))
    b.inst(_store(out, tile))
    y = as_buffer(kind, np.zeros((4, 8)))
    vm.run(b.program(), [as_buffer(kind, x), y])
    want = np.full((4, 8), kind.encode(1.0))
    want[2:4, 0:3] = x[0:2, 3:6]
    np.testing.assert_array_equal(y, as_buffer(kind, want))


def _store(access, tile) -> StoreGlobal:
    view, offset, _, dims = access
    return StoreGlobal(view, tile, offset, dims)


@pytest.mark.parametrize("kind", [f32, u3, dtype("u7"), u4], ids=str)
def test_store_leaves_neighbours_alone(kind) -> None:
    """A tile that hangs over the edge writes what is inside only; sub-byte neighbours in the same byte survive."""
    before, tile = codes(kind, 7, 5), codes(kind, 3, 4)
    b = Builder("p")
    view, _, _, dims = whole(b, "y", kind, (7, 5))
    t = b.inst(LoadGlobal(*whole(b, "x", kind, (3, 4))))
    b.inst(_store((view, (const(5), const(2)), None, dims), t))
    y = as_buffer(kind, before)
    vm.run(b.program(), [y, as_buffer(kind, tile)])
    want = before.copy()
    want[5:7, 2:5] = tile[:2, :3]
    np.testing.assert_array_equal(y, as_buffer(kind, want))


def test_dims_and_strides() -> None:
    """A tile that runs along the second dimension of a transposed view."""
    x = codes(i32, 4, 6)  # the view is its transpose
    b = Builder("p")
    pointer = b.pointer("x", i32)
    view = b.inst(GlobalView(pointer, (const(6), const(4)), (const(1), const(6))))
    t = b.inst(LoadGlobal(view, (const(2), const(1)), (3,), (1,)))
    b.inst(_store(whole(b, "y", i32, (3,)), t))
    y = np.zeros(3, np.int32)
    vm.run(b.program(), [x.view(np.int32), y])
    np.testing.assert_array_equal(y, x.view(np.int32)[1:4, 2])


@pytest.mark.parametrize("kind", [f32, f16, bf16, i8, u3], ids=str)
def test_atomic_add(kind) -> None:
    """Also where elements of one tile fall on the same place."""
    b = Builder("p")
    pointer = b.pointer("y", kind)
    one_row = b.inst(GlobalView(pointer, (const(4), const(3)), (const(0), const(1))))
    t = b.inst(Full(const(1, kind), (4, 3)))
    b.inst(AtomicAdd(one_row, t, (const(0), const(1)), (0, 1)))
    y = as_buffer(kind, kind.encode([1, 2, 3, 1]))
    vm.run(b.program((2,)), [y])
    codes_ = kind.unpack(y, 4) if kind.nbits < 8 else y.view(kind.code_dtype)
    want = [1, 10, 11, 1] if kind != u3 else [1, 10 % 8, 11 % 8, 1]
    assert kind.decode(codes_).tolist() == want


def test_load_element() -> None:
    x = codes(u3, 9)
    b = Builder("p")
    v = b.inst(LoadElement(b.pointer("x", u3), op("mul", b.block_id(0), 4)))
    t = b.inst(Full(v, (1,)))
    view = b.inst(GlobalView(b.pointer("y", u3), (const(3),), (const(1),)))
    b.inst(_store((view, (b.block_id(0),), None, (0,)), t))
    y = np.zeros(2, np.uint8)
    vm.run(b.program((3,)), [u3.pack(x), y])
    np.testing.assert_array_equal(u3.unpack(y, 3), x[[0, 4, 8]])


# Shared memory


@pytest.mark.parametrize("layout", [None, row_major_swizzle((8, 64), 2)])
def test_through_shared_memory(layout) -> None:
    x = codes(f16, 8, 64)

    def build(b, t):
        s = b.inst(AllocShared(f16, (8, 64)), layout=layout)
        b.inst(StoreShared(s, t, (const(0), const(0)), (0, 1)))
        b.inst(Sync())
        return b.inst(LoadShared(s, (const(2), const(8)), (4, 16), (0, 1)))

    np.testing.assert_array_equal(evaluate(build, (f16, x)), x[2:6, 8:24])


def test_asynchronous_copies() -> None:
    """Two stages; past the end of the view there are zeros."""
    x = codes(f16, 5, 8)
    b = Builder("p")
    view = whole(b, "x", f16, (5, 8))[0]
    s = b.inst(AllocShared(f16, (2, 4, 8)))
    for stage in range(2):
        at = (const(stage), const(0), const(0))
        b.inst(CopyAsync(s, view, at, (const(4 * stage), const(0)), (4, 8), (1, 2), (0, 1)))
        b.inst(CommitGroup())
    b.inst(WaitGroup(1))
    b.inst(Sync())
    first = b.inst(LoadShared(s, (const(0), const(0), const(0)), (4, 8), (1, 2)))
    b.inst(WaitGroup(0))
    b.inst(Sync())
    second = b.inst(LoadShared(s, (const(1), const(0), const(0)), (4, 8), (1, 2)))
    for name, tile in (("y", first), ("z", second)):
        b.inst(_store(whole(b, name, f16, (4, 8)), tile))
    y, z = np.ones((4, 8), np.float16), np.ones((4, 8), np.float16)
    vm.run(b.program(), [x.view(np.float16), y, z])
    np.testing.assert_array_equal(y.view(np.uint16), x[:4])
    np.testing.assert_array_equal(z.view(np.uint16), np.concatenate([x[4:], np.zeros((3, 8), np.uint16)]))


# Control


def test_blocks_and_control() -> None:
    """Collatz lengths, one per block of a grid of two axes."""
    text = """program collatz(y: ptr[i32]) {
      grid (3, 4)
      warps 1
      n: i32 = block_id(0) * 4 + block_id(1) + 1
      i: i32 = n - 1
      steps: i32 = 0
      while true {
        if n == 1 {
          break
        }
        if n % 2 == 0 {
          n = n // 2
        } else {
          n = 3 * n + 1
        }
        steps = steps + 1
      }
      t: register[i32, (1,)] = full(value=steps, shape=(1,))
      v: global[i32, 1] = global_view(ptr=y, shape=(12,), strides=(1,))
      store_global(view=v, tile=t, offset=(i,), dims=(0,))
    }"""
    y = np.full(12, -1, np.int32)
    run_text(text, y)
    assert y.tolist() == [0, 1, 7, 2, 5, 8, 16, 3, 19, 6, 14, 9]
    y[:] = -1
    run_text(text, y, blocks=[(0, 2), (2, 3)])
    assert y.tolist() == [-1, -1, 7, *[-1] * 8, 9]


def test_loops() -> None:
    text = """program p(y: ptr[i64], n: i64) {
      grid (1,)
      warps 1
      sum: i64 = 0_i64
      for k: i64 in range(n, -3_i64, -2) unroll {
        if k == 1_i64 {
          continue
        }
        sum = sum * 10_i64 + k
      }
      for j in range(0, 100, 1) {
        if j == 3 {
          break
        }
        sum = sum + i64(j)
      }
      t: register[i64, (1,)] = full(value=sum, shape=(1,))
      v: global[i64, 1] = global_view(ptr=y, shape=(1,), strides=(1,))
      store_global(view=v, tile=t, offset=(0_i64,), dims=(0,))
    }"""
    y = np.zeros(1, np.int64)
    run_text(text, y, 5)
    assert y[0] == 529 + 3  # 5, 3, (1), -1 make ((5 * 10) + 3) * 10 - 1


def test_print(capsys) -> None:
    run_text(
        """program p(n: i32, r: f32) {
          grid (2,)
          warps 1
          t: register[u3, (2, 2)] = full(value=5_u3, shape=(2, 2))
          print(format="{{}} block {} of {}:", args=(block_id(0), n))
          print(format="{} {}", args=(t, r))
        }""",
        -3,
        0.25,
    )
    text = "{{}} block {} of -3:\n[5, 5, 5, 5] 0.25\n".replace("{{}}", "{}", 1)
    assert capsys.readouterr().out == "".join(text.replace("block {}", f"block {i}") for i in range(2))


def test_scalars_wrap_and_round() -> None:
    text = """program p(y: ptr[i32], n: i32, r: f16) {
      grid (1,)
      warps 1
      a: i32 = n * n
      b: f16 = r + 0.0001_f16
      t: register[i32, (2,)] = arange(start=a + i32(b * 1000.0_f16), shape=(2,), dim=0)
      v: global[i32, 1] = global_view(ptr=y, shape=(2,), strides=(1,))
      store_global(view=v, tile=t, offset=(0,), dims=(0,))
    }"""
    y = np.zeros(2, np.int32)
    run_text(text, y, 65537, 1.0)
    assert y.tolist() == [131073 + 1000, 131074 + 1000]  # 65537^2 modulo 2^32; 1.0001 rounds to 1


def test_arguments_of_all_kinds() -> None:
    text = """program p(x: ptr[f8e4m3], y: ptr[f32], ok: bool, big: u64) {
      grid (2,)
      warps 1
      gx: global[f8e4m3, 1] = global_view(ptr=x, shape=(4,), strides=(1,))
      gy: global[f32, 1] = global_view(ptr=y, shape=(4,), strides=(1,))
      t: register[f8e4m3, (4,)] = load_global(view=gx, offset=(0,), shape=(4,), dims=(0,), other=0.0)
      u: register[f32, (4,)] = cast(x=t, dtype=f32)
      if ok & big == 18446744073709551615_u64 {
        store_global(view=gy, tile=u, offset=(0,), dims=(0,))
      }
    }"""
    text = text.replace("ok & big", "ok & (big").replace("_u64 {", "_u64) {")
    for as_type in (np.uint8, dtype("f8e4m3").numpy_dtype):
        y = np.zeros((2, 2), np.float32)
        run_text(text, np.array([0x38, 0x7E, 0, 0x80], np.uint8).view(as_type), y, True, 2**64 - 1)
        assert y.tolist() == [[1.0, 448.0], [0.0, -0.0]]
