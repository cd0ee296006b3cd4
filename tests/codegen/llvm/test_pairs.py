"""Products of 16-bit integers: pairs by one instruction, from registers, codes and memory, modulo 2^32."""

import numpy as np
import pytest

from tests.codegen.llvm import harness
from tests.random_data import generator
from tilus.codegen.llvm import emit
from tilus.dtypes import dtype
from tilus.ir.parser import parse
from tilus.ir.target import target
from tilus.layouts import BitLayout
from tilus.layouts.bits import pattern_of, whole_unit
from tilus.runtime.cpu_features import Cpu, host_cpu
from tilus.runtime.llvm_jit import assembly

RNG = generator(0)
WAYS = [(lanes, features) for lanes in (4, 8, 16) for features in ((), host_cpu().present)]


def each_way(function):
    return pytest.mark.parametrize(("lanes", "features"), WAYS, ids=lambda v: f"{v if isinstance(v, int) else len(v)}")(
        function
    )


def load(name, kind, rows, columns, layout):
    return [
        f"  g{name}: global[{kind}, 2] = global_view(ptr=p{name}, shape=({rows}, {columns}), strides=({columns}, 1))",
        f"  {name}: register[{kind}, ({rows}, {columns}), {layout}] = load_global(view=g{name}, offset=(0, 0), "
        f"shape=({rows}, {columns}), dims=(0, 1), other=0.0)",
    ]


def product(a, m, n, k, order, rows):
    """Return the lines that multiply the tile `a` [m, k], lanes along m, by b [n, k], which all lanes have."""
    shared, lanes = f"replicated({rows}, rank=2)", f"spatial({rows}, 1)"
    total = f"register[i32, ({m}, {n}), local({m // rows}, {n}) * {lanes}]"
    return [
        *load("b", "i16", n, k, f"local({n}, {k}) * {shared}"),
        f"  t: register[i16, ({k}, {n}), {order}({k}, {n}) * {shared}] = transpose(x=b, perm=(1, 0))",
        f"  zero: {total} = full(value=0, shape=({m}, {n}))",
        f"  y: {total} = dot(a={a}, b=t, c=zero)",
        f"  gy: global[i32, 2] = global_view(ptr=py, shape=({m}, {n}), strides=({n}, 1))",
        "  store_global(view=gy, tile=y, offset=(0, 0), dims=(0, 1))",
    ]


def modular(a, b):
    return (a.astype(np.int64) @ b.astype(np.int64).T).astype(np.uint32).view(np.int32)


@each_way
@pytest.mark.parametrize("k", [1, 7])
def test_registers(lanes, features, k):
    body = load("a", "i16", lanes, k, f"spatial({lanes}, 1) * local(1, {k})")
    body += product("a", lanes, 3, k, "column_local", lanes)
    text = harness.lowered("\n".join(body), "pa: ptr[i16], pb: ptr[i16], py: ptr[i32]", lanes=lanes)
    a, b = (RNG.integers(-(2**15), 2**15, shape, np.int16) for shape in ((lanes, k), (3, k)))
    a[0], b[0] = -(2**15), -(2**15)  # two such products are 2^31
    y = np.zeros((lanes, 3), np.int32)
    harness.run(text, [a, b, y], features=features)
    np.testing.assert_array_equal(y, modular(a, b))


def halves(nbits, elements):
    """Return the bit layout in which each half of a word is a stream of every other code."""
    words = whole_unit(nbits, 16)
    slots = 16 * words // nbits
    cells = [[divmod(slot * nbits + bit, 16) for bit in range(nbits)] for slot in range(slots)]
    return BitLayout(nbits, 16, pattern_of(cells, words, 16), elements // (2 * slots))


def codes(name, lanes):
    """Return a product of codes less a zero point, and the bit layout of the codes of a lane."""
    kind, k = dtype(name), max(dtype(name).num_codes, 64)
    bits = halves(kind.nbits, k)
    words, layout = bits.num_words, f"spatial({lanes}, 1) * local(1, {k})"
    body = load("w", "u32", lanes, words, f"spatial({lanes}, 1) * local(1, {words})")
    body += load("z", "i16", lanes, 1, f"spatial({lanes}, 1)")
    body += [
        f"  c: register[{name}, ({lanes}, {k}), {layout}] = view(x=w, dtype={name}, layout={layout}, bits={bits})",
        f"  v: register[i16, ({lanes}, {k}), {layout}] = cast(x=c, dtype=i16)",
        f'  a: register[i16, ({lanes}, {k}), {layout}] = elementwise(op="sub", args=(v, z))',
    ]
    body += product("a", lanes, 1, k, "local", lanes)
    params = "pw: ptr[u32], pz: ptr[i16], pb: ptr[i16], py: ptr[i32]"
    return harness.lowered("\n".join(body), params, lanes=lanes), bits


@pytest.mark.parametrize(("name", "lanes", "features"), [
    *((name, 16, host_cpu().present) for name in ("u1", "i2", "u3", "u4", "i4", "i5", "u6", "u7", "u8", "i8")),
    *((name, 8, ()) for name in ("u3", "i4")),
], ids=lambda v: f"{len(v) if isinstance(v, tuple) else v}")  # fmt: skip
def test_codes_less_a_zero_point(name, lanes, features):
    kind, (text, bits) = dtype(name), codes(name, lanes)
    k = bits.num_elements
    given = np.stack([RNG.permutation(k) % kind.num_codes for _ in range(lanes)]).astype(np.uint8)
    z, b = RNG.integers(-300, 300, (lanes, 1), np.int16), RNG.integers(-(2**15), 2**15, (1, k), np.int16)
    y = np.zeros((lanes, 1), np.int32)
    harness.run(text, [bits.pack(given), z, b, y], features=features)
    np.testing.assert_array_equal(y, modular(kind.decode(given).astype(np.int64) - z, b))


def panel(lanes):
    """Return a product too large to unroll, of words in shared memory, and its extents."""
    m, n, k = 4 * lanes, 6, 128
    columns = f"local(1, 4) * local({k // 2}, 1) * spatial(1, {lanes})"
    body = load("w", "u32", k // 2, m, columns)
    body += [
        f"  s: shared[u32, ({k // 2}, {m}), row_major({k // 2}, {m})] = alloc_shared(dtype=u32, "
        f"shape=({k // 2}, {m}), byte_offset=0)",
        "  store_shared(dst=s, tile=w, offset=(0, 0), dims=(0, 1))",
        f"  p: register[u32, ({k // 2}, {m}), {columns}] = load_shared(src=s, offset=(0, 0), shape=({k // 2}, {m}), "
        "dims=(0, 1))",
        f"  q: register[u32, ({m}, {k // 2}), local(4, {k // 2}) * spatial({lanes}, 1)] = transpose(x=p, perm=(1, 0))",
        f"  a: register[i16, ({m}, {k}), local(4, {k}) * spatial({lanes}, 1)] = view(x=q, dtype=i16, "
        f"layout=local(4, {k}) * spatial({lanes}, 1))",
        *product("a", m, n, k, "local", lanes),
    ]
    params, shared = "pw: ptr[u32], pb: ptr[i16], py: ptr[i32]", 4 * k // 2 * m
    return harness.lowered("\n".join(body), params, lanes=lanes, shared=shared), m, n, k


@each_way
def test_words_in_memory(lanes, features):
    text, m, n, k = panel(lanes)
    a, b = (RNG.integers(-(2**15), 2**15, shape, np.int16) for shape in ((m, k), (n, k)))
    y = np.zeros((m, n), np.int32)
    harness.run(text, [np.ascontiguousarray(a.view(np.uint32).T), b, y], features=features)
    np.testing.assert_array_equal(y, modular(a, b))


@pytest.mark.skipif("sse2" not in host_cpu().present, reason="instructions of x86")
@pytest.mark.parametrize(("lanes", "cpu", "features", "name"), [
    (16, "cascadelake", ("avx512f", "avx512bw", "avx512vl", "avx512vnni"), "vpdpwssd"),
    (16, "skylake-avx512", ("avx512f", "avx512bw"), "vpmaddwd"),
    (8, "alderlake", ("avx2", "avxvnni"), "vpdpwssd"),
    (8, "haswell", ("avx2",), "vpmaddwd"),
    (4, "x86-64", ("sse2",), "pmaddwd"),
])  # fmt: skip
def test_instructions(lanes, cpu, features, name):
    for text, least in ((panel(lanes)[0], 4), (codes("u4", lanes)[0], 32)):
        source = emit(parse(text), target("cpu"), features)
        counted = assembly(source.text, cpu=Cpu(cpu, ",".join(f"+{f}" for f in features))).split()
        assert counted.count(name) >= least
        assert not {"pmulld", "vpmulld"} & set(counted)
