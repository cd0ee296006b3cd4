"""Sums over the blocks of a cluster, by way of each other's shared memory."""

from __future__ import annotations

from math import gcd

from tilus.codegen.cuda import cpp
from tilus.codegen.cuda.context import Context, layout_of, register
from tilus.codegen.cuda.cpp import Expr, Name
from tilus.codegen.cuda.emit_shared import barrier
from tilus.codegen.cuda.operators import apply
from tilus.codegen.cuda.values import decode, encoded
from tilus.dtypes import DataType
from tilus.ir import instructions as I
from tilus.ir.expr import Tensor
from tilus.ir.stmt import InstStmt

_SCRATCH_BYTES = 16 * 1024
_MOST_WORDS = 4  # that a thread moves at once


def cluster_sum(ctx: Context, stmt: InstStmt, out: Tensor, inst: I.ClusterSum) -> None:
    """Have every thread write its words and add up those of the same thread in all blocks, rank by rank.

    Neither may a block read before all have written, nor write again, or end, before all have read.
    """
    count = layout_of(inst.x).local_size
    width = gcd(count, _MOST_WORDS)
    batch = max(_SCRATCH_BYTES // (4 * width * ctx.num_threads), 1) * width
    for start in range(0, count, batch):
        words = range(start, min(start + batch, count))
        base = ctx.scratch(4 * ctx.num_threads * len(words))
        barrier(ctx)
        with ctx.block():
            _exchange(ctx, out, ctx.name(inst.x), words, width, base)


def _exchange(ctx: Context, out: Tensor, source: Name, words: range, width: int, base: Expr) -> None:
    row = 4 * width * ctx.num_threads  # vector j of all threads side by side
    mine = ctx.constant("u32", "mine", base + Name("tid") * (4 * width))
    vectors = list(enumerate(words[::width]))
    for j, first in vectors:
        ctx.do(f"st_shared_b{32 * width}", mine + j * row, source + first if first else source)
    _meet(ctx)
    ranks = [ctx.constant("u32", "theirs", ctx.ptx("mapa", mine, cpp.Int(rank))) for rank in range(ctx.cluster)]
    for j, first in vectors:
        parts = [ctx.array("part", width) for _ in ranks]
        for rank, part in zip(ranks, parts, strict=True):
            ctx.do(f"ld_cluster_b{32 * width}", part, rank + j * row)
        for w in range(width):
            ctx.emit(cpp.Set(ctx.name(out)[first + w], _sum(ctx, register(out).dtype, [part[w] for part in parts])))
    _meet(ctx)


def _sum(ctx: Context, dtype: DataType, words: list[Expr]) -> Expr:
    """Return the word of the sum of elements given as words, from the first to the last."""
    first, *others = (decode(ctx, dtype, word) for word in words)
    for value in others:
        first = apply(ctx, "add", dtype, first, value)
    [word] = encoded(ctx, dtype, [first], dtype)
    return word


def _meet(ctx: Context) -> None:
    """Wait for all blocks of the cluster."""
    ctx.do("cluster_arrive")
    ctx.do("cluster_wait")
