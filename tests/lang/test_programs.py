"""Whole kernels: their IR, as the verifier accepts it, in golden files."""

from __future__ import annotations

from tilus.dtypes import f32
from tilus.ir.parser import parse
from tilus.ir.printer import to_text
from tilus.ir.program import Program
from tilus.ir.verify import verify
from tilus.layouts import spatial

SCALE_ROWS = """\
def k(x: tilus.ptr[f16], s: tilus.ptr[f32], y: tilus.ptr[f16], m: i32, n: i32, *, BN: int = 512):
    tilus.launch(blocks=(m, tilus.cdiv(n, BN)), warps=4)
    i, j = tilus.block_id(0), tilus.block_id(1) * BN
    gx = tilus.global_view(x, shape=(m, n))
    tile = tilus.load_global(gx, offset=(i, j), shape=(1, BN))
    tilus.store_global(tilus.global_view(y, shape=(m, n)), (tile.to(f32) * s[i]).to(f16), offset=(i, j))
"""

VECTOR_ADD = """\
def k(a: ptr[T], b: ptr[T], c: ptr[T], n: i32, *, T: DataType, BN: int = 256):
    launch(blocks=cdiv(n, BN))
    offset = block_id(0) * BN
    x, y = [load_global(global_view(p, shape=n), offset=offset, shape=BN) for p in (a, b)]
    store_global(global_view(c, shape=(n,)), x + y, offset=(offset,))
"""

SOFTMAX = """\
def k(x: ptr[f16], y: ptr[f16], m: i32, n: i32, *, BN: int = 1024):
    launch(blocks=m, warps=2)
    row = block_id(0)
    source, result = global_view(x, shape=(m, n)), global_view(y, shape=(m, n))
    top = full((1, 1), -1e38, f32)
    total = zeros((1, 1), f32)
    for j in range(0, n, BN):
        tile = load_global(source, offset=(row, j), shape=(1, BN), other=float("-inf")).to(f32)
        higher = maximum(top, tilus.max(tile, dim=-1, keepdims=True))
        total = total * exp(top - higher) + tilus.sum(exp(tile - higher), dim=1, keepdims=True)
        top = higher
    for j in tilus.range(0, n, BN, unroll=True):
        tile = load_global(source, offset=(row, j), shape=(1, BN), other=float("-inf")).to(f32)
        store_global(result, (exp(tile - top) / total).to(f16), offset=(row, j))
"""

MATMUL = """\
def k(a: ptr[f16], b: ptr[f16], c: ptr[f16], m: i32, n: i32, k: i32, *, BM: int = 64, BN: int = 64, STAGES: int = 3):
    BK = 32
    launch(blocks=(cdiv(n, BN), cdiv(m, BM)), warps=4)
    row, col = block_id(1) * BM, block_id(0) * BN
    ga, gb = global_view(a, shape=(m, k)), global_view(b, shape=(k, n))
    sa, sb = alloc_shared(f16, (STAGES, BM, BK)), alloc_shared(f16, (STAGES, BK, BN))
    for s in static_range(STAGES - 1):
        copy_async(sa, ga, src_offset=(row, s * BK), dst_offset=(s, 0, 0), shape=(BM, BK))
        copy_async(sb, gb, src_offset=(s * BK, col), dst_offset=(s, 0, 0), shape=(BK, BN))
        commit_group()
    acc = zeros((BM, BN), f32)
    for t in range(cdiv(k, BK)):
        wait_group(STAGES - 2)
        sync()
        ahead = t + (STAGES - 1)
        copy_async(sa, ga, src_offset=(row, ahead * BK), dst_offset=(ahead % STAGES, 0, 0), shape=(BM, BK))
        copy_async(sb, gb, src_offset=(ahead * BK, col), dst_offset=(ahead % STAGES, 0, 0), shape=(BK, BN))
        commit_group()
        x = load_shared(sa, offset=(t % STAGES, 0, 0), shape=(BM, BK))
        acc = dot(x, load_shared(sb, offset=(t % STAGES, 0, 0), shape=(BK, BN)), acc)
    store_global(global_view(c, shape=(m, n)), acc.to(f16), offset=(row, col))
"""

QUANTIZED = """\
def k(x: ptr[f16], w: ptr[u8], y: ptr[f32], tiles: i32, *, FRAGMENT: RegisterLayout, BYTES: RegisterLayout):
    launch(blocks=tiles, warps=1)
    BK, BN = FRAGMENT.shape
    gw, gx = global_view(w, shape=(tiles, *BYTES.shape)), global_view(x, shape=(16, BK))
    packed = load_global(gw, offset=(block_id(0), 0), shape=BYTES.shape, dims=(1,))
    annotate(packed, BYTES)
    codes = view(packed, u3, FRAGMENT)
    halves = (codes[0:8].to(f16) - 4.0, codes[8:16, :].to(f16) - 4.0)
    a = load_global(gx, offset=(0, 0), shape=(16, BK))
    acc = dot(a[:, 0:8], halves[0])
    acc = dot(a[:, 8:16], halves[1], acc)
    s = alloc_shared(f32, (16, BN))
    store_shared(s, acc)
    sync()
    sums = reshape(tilus.sum(load_shared(s), dim=0), (1, -1))
    atomic_add(global_view(y, shape=(tiles, BN)), sums, offset=(block_id(0), 0))
"""

CONTROL = """\
def k(x: ptr[f32], n: i32, *, MODE: str = "fast"):
    '''Everything that branches.'''
    launch(blocks=n)
    g = global_view(x, shape=(n,))
    best, found = zeros(32, f32), False
    low, high = 0, n
    while low < high and x[low] > 0.0:
        middle = (low + high) // 2
        if x[middle] < 0.5:
            low = middle + 1
        elif MODE == "fast" and middle == low:
            break
        else:
            low, high = middle, high - 1
            if not found:
                continue
        best = where(best > 1.0, best, load_global(g, offset=low, shape=32))
        found = True
    scale = x[low] if low < n else 1.0
    shift = 1 if low < 4 else low
    print("found", found, f"at {low} of {n}, mode {MODE!r}, braces {{}}")
    assert 0 <= low <= n, "out of range"
    store_global(g, best * scale + shift.to(f32), offset=low)
"""


def check(golden, program: Program) -> None:
    verify(program)
    text = to_text(program)
    assert to_text(parse(text)) == text
    golden.check(text)


def test_scale_rows(kernel, golden) -> None:
    check(golden, kernel(SCALE_ROWS).specialize({"BN": 256}, {"x": 16, "n": 8}))


def test_vector_add(kernel, golden) -> None:
    text = "from __future__ import annotations\nfrom tilus.dtypes import DataType\n" + VECTOR_ADD
    check(golden, kernel(text).specialize({"T": f32}))


def test_softmax(kernel, golden) -> None:
    check(golden, kernel(SOFTMAX).specialize({}))


def test_matmul(kernel, golden) -> None:
    check(golden, kernel(MATMUL).specialize({}))


def test_quantized(kernel, golden) -> None:
    # 8 weights of 3 bits in a lane are 3 bytes.
    fragment = spatial(4, 8).local(4, 2)
    bytes_ = spatial(32).local(3)
    check(golden, kernel(QUANTIZED).specialize({"FRAGMENT": fragment, "BYTES": bytes_}))


def test_control(kernel, golden) -> None:
    check(golden, kernel(CONTROL).specialize({}))


def test_constants_choose_what_is_compiled(kernel) -> None:
    definition = kernel(CONTROL)
    fast, slow = to_text(definition.specialize({})), to_text(definition.specialize({"MODE": "slow"}))
    assert (fast.count("break"), slow.count("break")) == (2, 1)
    assert "mode 'slow'" in slow


def test_places_are_the_users(kernel) -> None:
    program = kernel(SCALE_ROWS).specialize({})
    store = program.body[-1]
    assert str(store.loc) == "k.py:6:5"
    assert store.loc.source_line().strip().startswith("tilus.store_global")
    assert [str(p.loc) for p in program.params][1] == "k.py:1:26"


def test_promises(kernel) -> None:
    program = kernel(SCALE_ROWS).specialize({}, {"x": 16, "n": 8})
    assert [p.multiple for p in program.params] == [16, 1, 1, 1, 8]


def test_signature(kernel) -> None:
    definition = kernel(SCALE_ROWS)
    assert definition.name == "k"
    assert [p.name for p in definition.params] == ["x", "s", "y", "m", "n"]
    assert [(c.name, c.default, c.annotation) for c in definition.constants] == [("BN", 512, int)]
    assert [str(t) for t in definition.param_types({})] == ["ptr[f16]", "ptr[f32]", "ptr[f16]", "i32", "i32"]
