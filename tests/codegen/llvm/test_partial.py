"""Sums over lanes are put off to the end of the loop, and come out the same."""

import numpy as np
import pytest

from tests.codegen.llvm import harness
from tilus.codegen.llvm import emit
from tilus.codegen.llvm.partial import partial_tensors
from tilus.ir.parser import parse
from tilus.ir.target import target

SPLIT = """  ga: global[f32, 2] = global_view(ptr=pa, shape=(2, 64), strides=(64, 1))
  gb: global[f32, 2] = global_view(ptr=pb, shape=(64, 2), strides=(2, 1))
  gs: global[f32, 1] = global_view(ptr=ps, shape=(4,), strides=(1,))
  gc: global[f32, 2] = global_view(ptr=pc, shape=(2, 2), strides=(2, 1))
  acc: register[f32, (2, 2), local(2, 2) * replicated(8, rank=2)] = full(value=0.0, shape=(2, 2))
  for t in range(0, 4, 1) {{
    a: register[f32, (2, 16), local(2, 2) * spatial(1, 8)] = load_global(view=ga, offset=(0, t * 16), shape=(2, 16), dims=(0, 1), other=0.0)
    b: register[f32, (16, 2), local(2, 2) * spatial(8, 1)] = load_global(view=gb, offset=(t * 16, 0), shape=(16, 2), dims=(0, 1), other=0.0)
    s: register[f32, (1,), replicated(8)] = load_global(view=gs, offset=(t,), shape=(1,), dims=(0,), other=0.0)
    zero: register[f32, (2, 2), local(2, 2) * replicated(8, rank=2)] = full(value=0.0, shape=(2, 2))
    part: register[f32, (2, 2), local(2, 2) * replicated(8, rank=2)] = dot(a=a, b=b, c=zero)
    scaled: register[f32, (2, 2), local(2, 2) * replicated(8, rank=2)] = elementwise(op="mul", args=(part, s))
    {extra}
    acc = elementwise(op="add", args=(acc, scaled))
  }}
  store_global(view=gc, tile=acc, offset=(0, 0), dims=(0, 1))"""
PARAMS = "pa: ptr[f32], pb: ptr[f32], ps: ptr[f32], pc: ptr[f32]"


@pytest.mark.parametrize(("extra", "members"), [
    ("", {"part", "scaled", "acc"}),
    ('scaled = elementwise(op="max", args=(scaled, zero))', {"part"}),
    ('acc = elementwise(op="exp", args=(acc,))', {"part", "scaled"}),
])  # fmt: skip
def test_which_tensors_hold_parts_and_what_comes_out(extra, members):
    text = harness.lowered(SPLIT.format(extra=extra), PARAMS, grid="1,")
    assert {t.name for t in partial_tensors(parse(text))} == members
    rng = np.random.default_rng(0)
    a, b, s = (rng.integers(-4, 4, shape).astype(np.float32) for shape in ((2, 64), (64, 2), (4,)))
    c = np.zeros((2, 2), np.float32)
    harness.run(text, [a, b, s, c])
    expected = np.zeros((2, 2))
    for t in range(4):
        scaled = s[t] * (a[:, 16 * t : 16 * t + 16] @ b[16 * t : 16 * t + 16])
        if "max" in extra:
            scaled = np.maximum(scaled, 0)
        expected = (np.exp(np.clip(expected, None, 80)) if "exp" in extra else expected) + scaled
    if "exp" not in extra:
        assert np.abs(expected).max() > 0
        np.testing.assert_array_equal(c, expected)


def test_the_butterfly_is_once_per_result():
    source = emit(parse(harness.lowered(SPLIT.format(extra=""), PARAMS, grid="1,")), target("cpu")).text
    for swap in ("1, i32 0, i32 3, i32 2", "2, i32 3, i32 0, i32 1", "4, i32 5, i32 6, i32 7"):
        assert source.count(f"<8 x i32> <i32 {swap}") == 4, swap
    end = source.rindex("for")
    assert source.index("<8 x i32> <i32 1, i32 0") > source.rindex(".body:", 0, end)


OUTER = """  ga: global[f32, 2] = global_view(ptr=pa, shape=(2, 16), strides=(16, 1))
  gb: global[f32, 2] = global_view(ptr=pb, shape=(16, 1), strides=(1, 1))
  gs: global[f32, 2] = global_view(ptr=ps, shape=(1, 8), strides=(8, 1))
  gc: global[f32, 2] = global_view(ptr=pc, shape=(2, 8), strides=(8, 1))
  a: register[f32, (2, 16), local(2, 2) * spatial(1, 8)] = load_global(view=ga, offset=(0, 0), shape=(2, 16), dims=(0, 1), other=0.0)
  b: register[f32, (16, 1), local(2, 1) * spatial(8, 1)] = load_global(view=gb, offset=(0, 0), shape=(16, 1), dims=(0, 1), other=0.0)
  s: register[f32, (1, 8), spatial(1, 8)] = load_global(view=gs, offset=(0, 0), shape=(1, 8), dims=(0, 1), other=0.0)
  zero: register[f32, (2, 1), local(2, 1) * replicated(8, rank=2)] = full(value=0.0, shape=(2, 1))
  part: register[f32, (2, 1), local(2, 1) * replicated(8, rank=2)] = dot(a=a, b=b, c=zero)
  outer: register[f32, (2, 8), local(2, 1) * spatial(1, 8)] = elementwise(op="mul", args=(part, s))
  store_global(view=gc, tile=outer, offset=(0, 0), dims=(0, 1))"""


def test_a_factor_whose_parts_lie_in_lanes_of_other_elements_is_added_up_first():
    text = harness.lowered(OUTER, PARAMS)
    assert {t.name for t in partial_tensors(parse(text))} == {"part"}
    a, b, s = (
        np.arange(n, dtype=np.float32).reshape(shape) for n, shape in ((32, (2, 16)), (16, (16, 1)), (8, (1, 8)))
    )
    c = np.zeros((2, 8), np.float32)
    harness.run(text, [a, b, s, c])
    np.testing.assert_array_equal(c, (a @ b) * s)
