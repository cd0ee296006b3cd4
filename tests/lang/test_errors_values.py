"""Wrong programs: values that do not fit. Every message is checked whole, with its line and caret."""

from __future__ import annotations

import pytest

CASES = {
    "unequal dtypes of tiles": (
        "total = tile + tile.to(f32)",
        """\
k.py:6:13: operands of + have different types: f16 and f32
        total = tile + tile.to(f32)
                ^
hint: convert one of them, for instance with .to(f32)""",
    ),
    "float scalar with a tile of another type": (
        "scaled = tile * y[i]",
        """\
k.py:6:14: operands of * have different types: f16 and f32
        scaled = tile * y[i]
                 ^
hint: convert one of them, for instance with .to(f32)""",
    ),
    "integer literal for a float operation": (
        "z = n / 2",
        """\
k.py:6:9: / of i32 has no integer result
        z = n / 2
            ^
hint: use // to round down, or convert the operands with .to(f32)""",
    ),
    "float literal with an integer tile": (
        "idx = arange(BN) * 0.5",
        """\
k.py:6:11: 0.5 is no i32
        idx = arange(BN) * 0.5
              ^
hint: convert the other operand with .to(f32), or write an integer""",
    ),
    "arithmetic on a storage type": (
        "w = tile.to(u4) + 1",
        """\
k.py:6:9: + is not defined on u4, which is a type for storage
        w = tile.to(u4) + 1
            ^
hint: convert with .to(f16) or .to(f32) first""",
    ),
    "exp of integers": (
        "e = exp(arange(BN))",
        """\
k.py:6:9: exp takes floats, not i32
        e = exp(arange(BN))
            ^
hint: convert with .to(f32)""",
    ),
    "shapes that do not broadcast": (
        "z = tile + load_global(gx, offset=(i, 0), shape=(1, 3))",
        """\
k.py:6:9: shapes (1, 128) and (1, 3) do not broadcast
        z = tile + load_global(gx, offset=(i, 0), shape=(1, 3))
            ^
hint: aligned at the last dimension, extents must be equal or 1""",
    ),
    "run-time shape": (
        "z = load_global(gx, offset=(i, 0), shape=(1, n))",
        """\
k.py:6:46: shape must be a compile-time integer, got a run-time i32
        z = load_global(gx, offset=(i, 0), shape=(1, n))
                                                 ^
hint: make it a keyword-only parameter of the kernel""",
    ),
    "offset of the wrong rank": (
        "z = load_global(gx, offset=i, shape=(1, BN))",
        """\
k.py:6:32: the view has 2 dimensions, but offset has 1
        z = load_global(gx, offset=i, shape=(1, BN))
                                   ^""",
    ),
    "load from a pointer": (
        "z = load_global(x, offset=(i, 0), shape=(1, BN))",
        """\
k.py:6:21: view must be a global view, got a pointer to f16
        z = load_global(x, offset=(i, 0), shape=(1, BN))
                        ^
hint: make one with global_view(pointer, shape=...)""",
    ),
    "store of the wrong type": (
        "store_global(gx, tile.to(f32), offset=(i, 0))",
        """\
k.py:6:22: cannot store f32 to a global view of f16
        store_global(gx, tile.to(f32), offset=(i, 0))
                         ^
hint: convert it with .to(f16)""",
    ),
    "store of a view": (
        "store_global(gx, gx, offset=(i, 0))",
        """\
k.py:6:22: tile must be a register tile, got a 2-dimensional global view of f16
        store_global(gx, gx, offset=(i, 0))
                         ^
hint: load it first: load_global(view, offset=..., shape=...)""",
    ),
    "misspelt function": (
        "z = tilus.load_globl(gx, offset=(i, 0), shape=(1, BN))",
        """\
k.py:6:9: module 'tilus' has no attribute 'load_globl'
        z = tilus.load_globl(gx, offset=(i, 0), shape=(1, BN))
            ^
hint: did you mean load_global?""",
    ),
    "misspelt name": (
        "z = tiel + 1",
        """\
k.py:6:9: name 'tiel' is not defined
        z = tiel + 1
            ^
hint: did you mean tile?""",
    ),
    "missing argument": (
        "z = load_global(gx, offset=(i, 0))",
        """\
k.py:6:9: load_global: missing a required argument: 'shape'
        z = load_global(gx, offset=(i, 0))
            ^
hint: its parameters are (view, offset, shape, dims=None, other=0, layout=None)""",
    ),
    "unknown keyword": (
        "z = load_global(gx, offset=(i, 0), shape=(1, BN), mask=True)",
        """\
k.py:6:9: load_global: got an unexpected keyword argument 'mask'
        z = load_global(gx, offset=(i, 0), shape=(1, BN), mask=True)
            ^
hint: its parameters are (view, offset, shape, dims=None, other=0, layout=None)""",
    ),
    "unknown attribute": (
        "z = tile.size",
        """\
k.py:6:9: a tile of f16 with shape (1, 128) has no attribute 'size'
        z = tile.size
            ^
hint: it has dtype, shape, layout, T, mT, to, reshape, transpose""",
    ),
    "element of a tile": (
        "z = tile[0, 3]",
        """\
k.py:6:9: a tile is indexed by slices, got the int 0
        z = tile[0, 3]
            ^
hint: x[i:i+1] keeps the dimension; reshape drops it""",
    ),
    "run-time slice": (
        "z = tile[:, i:i + 8]",
        """\
k.py:6:9: the bounds of a tile's slice must be compile-time integers
        z = tile[:, i:i + 8]
            ^
hint: load the part you need with load_global or load_shared""",
    ),
    "slice outside the tile": (
        "z = slice_tile(tile, (0, 100), (1, 64))",
        """\
k.py:6:9: the slice at (0, 100) of shape (1, 64) leaves the tile of shape (1, 128)
        z = slice_tile(tile, (0, 100), (1, 64))
            ^""",
    ),
    "bad reduction dimension": (
        "z = tilus.sum(tile, dim=2)",
        """\
k.py:6:29: dim 2 is outside a tile of 2 dimensions
        z = tilus.sum(tile, dim=2)
                                ^""",
    ),
    "max of two values": (
        "z = tilus.max(n, 3)",
        """\
k.py:6:19: x must be a tile, got a run-time i32
        z = tilus.max(n, 3)
                      ^
hint: for the larger of two values use maximum(a, b)""",
    ),
    "dot of different types": (
        "z = dot(tile, tile.T.to(f32))",
        """\
k.py:6:19: dot multiplies tiles of one type, got f16 and f32
        z = dot(tile, tile.T.to(f32))
                      ^
hint: convert one of them with .to(...)""",
    ),
    "inner extents of dot": (
        "z = dot(tile, tile)",
        """\
k.py:6:19: dot multiplies (m, k) by (k, n), got shapes (1, 128) and (1, 128)
        z = dot(tile, tile)
                      ^
hint: x.T transposes, x.reshape(...) changes the number of dimensions""",
    ),
    "layout of another shape": (
        "z = annotate(tile, spatial(4, 32))",
        """\
k.py:6:24: the layout has shape (4, 32), the tile (1, 128)
        z = annotate(tile, spatial(4, 32))
                           ^""",
    ),
    "reshape to another size": (
        "z = reshape(tile, (3, 5))",
        """\
k.py:6:23: cannot reshape (1, 128) to (3, 5): 128 elements are not 15
        z = reshape(tile, (3, 5))
                          ^
hint: one extent may be -1: it is computed""",
    ),
    "shared memory of sub-byte type": (
        "s = alloc_shared(u4, (32, 32))",
        """\
k.py:6:9: shared tensors hold whole bytes, not u4: allocate u8 and use view
        s = alloc_shared(u4, (32, 32))
            ^""",
    ),
    "tile too large for shared tensor": (
        """\
s = alloc_shared(f16, (64,))
store_shared(s, tile.reshape(BN))""",
        """\
k.py:7:5: a tile of shape (128,) does not fit a shared tensor of shape (64,)
        store_shared(s, tile.reshape(BN))
        ^""",
    ),
    "literal does not fit": (
        "z = n + 3000000000",
        """\
k.py:6:9: 3000000000 does not fit i32 (-2147483648 to 2147483647)
        z = n + 3000000000
            ^
hint: use a number in that range, or a wider type than i32""",
    ),
    "power": (
        "z = tile ** 2",
        """\
k.py:6:9: ** has no run-time form
        z = tile ** 2
            ^
hint: write x * x, or exp2(y * log2(x))""",
    ),
    "pointer arithmetic": (
        "z = x + 4",
        """\
k.py:6:9: pointers have no arithmetic
        z = x + 4
            ^
hint: p[i] reads an element; global_view(p, shape=...) makes a tensor""",
    ),
    "to on a constant": (
        "z = BN.to(f32)",
        """\
k.py:6:9: the int 128 is a compile-time number: it has no .to
        z = BN.to(f32)
            ^
hint: it takes the type of what it meets""",
    ),
    "run-time index into a shape": (
        "z = n + load_global(global_view(x, shape=(n,)), offset=i, shape=8).shape[n]",
        """\
k.py:6:13: cannot index the tuple (8,) with a run-time i32
        z = n + load_global(global_view(x, shape=(n,)), offset=i, shape=8).shape[n]
                ^
hint: an index into Python values is a compile-time integer: loop with static_range""",
    ),
    "index counted from the end": (
        "z = y[-1]",
        """\
k.py:6:9: a pointer's index counts from its first element, got -1
        z = y[-1]
            ^""",
    ),
    "division by zero": (
        "z = n // 0",
        """\
k.py:6:9: // by zero
        z = n // 0
            ^""",
    ),
    "shift too far": (
        "z = n << 40",
        """\
k.py:6:9: a shift of i32 is by 0 to 31 bits, got 40
        z = n << 40
            ^""",
    ),
    "view of a tile as wrong bits": (
        "z = view(annotate(tile, spatial(1, 128)), f32, spatial(1, 128))",
        """\
k.py:6:9: view must keep threads and bits per thread: 128 threads with 1 f16 each became 128 threads with 1 f32 each
        z = view(annotate(tile, spatial(1, 128)), f32, spatial(1, 128))
            ^""",
    ),
    "second layout": (
        "z = annotate(annotate(tile, spatial(1, 128)), local(1, 4).spatial(1, 32))",
        """\
k.py:6:51: the tile has the layout spatial(1,128) already
        z = annotate(annotate(tile, spatial(1, 128)), local(1, 4).spatial(1, 32))
                                                      ^
hint: convert_layout(x, layout) makes a tile with another one""",
    ),
    "atomic of wrong rank": (
        "atomic_add(gx, tile, offset=(i,))",
        """\
k.py:6:33: the view has 2 dimensions, but offset has 1
        atomic_add(gx, tile, offset=(i,))
                                    ^""",
    ),
    "async copy of another type": (
        """\
s = alloc_shared(f32, (1, 128))
copy_async(s, gx, src_offset=(i, 0))""",
        """\
k.py:7:19: cannot copy f16 to a shared tensor of f32
        copy_async(s, gx, src_offset=(i, 0))
                      ^""",
    ),
    "dims that do not increase": (
        "z = load_global(gx, offset=(i, 0), shape=(4, 4), dims=(1, 0))",
        """\
k.py:6:59: dims (1, 0) must increase within 0..1
        z = load_global(gx, offset=(i, 0), shape=(4, 4), dims=(1, 0))
                                                              ^""",
    ),
    "keepdims at run time": (
        "z = tilus.sum(tile, dim=1, keepdims=n > 3)",
        """\
k.py:6:41: keepdims must be True or False at compile time, got a run-time bool
        z = tilus.sum(tile, dim=1, keepdims=n > 3)
                                            ^""",
    ),
    "call of a tile": (
        "z = tile(3)",
        """\
k.py:6:9: a tile of f16 with shape (1, 128) cannot be called
        z = tile(3)
            ^""",
    ),
}


@pytest.mark.parametrize(("body", "expected"), CASES.values(), ids=CASES)
def test_message(message, body: str, expected: str) -> None:
    assert message(body) == expected
