"""Functions that say how a kernel runs: its grid, the block's index, loops, printing, assertions."""

from __future__ import annotations

import builtins
from math import prod

from tilus.dtypes import i32
from tilus.errors import TilusError
from tilus.ir.expr import BlockId, Expr, Var
from tilus.ir.instructions import Assert, Print
from tilus.ir.node import rewrite, walk
from tilus.ir.stmt import Let, Stmt
from tilus.ir.target import MAX_CLUSTER, MAX_WARPS
from tilus.lang.arguments import ArgumentError, a_flag, a_sequence, an_int, an_integer, expected, integers
from tilus.lang.arithmetic import convert, expression
from tilus.lang.builder import Builder, Launch
from tilus.lang.primitives import function
from tilus.lang.values import Range, Scalar, Text, Tile, Value, is_runtime

MAX_UNROLL = 4096


@function()
def launch(b: Builder, blocks: Value, warps: Value = 4, producer: Value = False, cluster: Value = ()) -> None:
    """Say how many thread blocks run the kernel. Comes once, before anything is computed.

    Parameters
    ----------
    blocks : integer or tuple of 1 to 3
        Extents of the grid, in terms of the kernel's parameters.
    warps : compile-time int
        Warps per block.
    producer : compile-time bool
        Have asynchronous copies started by one warp more, which does nothing else, where the kernel is a pipeline:
        groups of copies before one loop, each trip of which is a `wait_group`, a `sync`, and the copies of a later
        trip as a group; and all of them are aligned to 4 bytes. Any other kernel has all threads copy, as without it.
    cluster : tuple of compile-time int
        Extents, one for each axis of the grid, of groups of at most 8 blocks that run at the same time, for
        `cluster_sum`. The grid must be made of whole clusters, the target be of capability 9.0.
    """
    if b.launch is not None:
        raise TilusError("launch is called a second time", hint="a kernel calls it once, as its first statement")
    if b.block is not b.root:
        raise TilusError(
            "launch stands inside a loop or branch", hint="call it once, as the first statement of the kernel"
        )
    if not all(isinstance(stmt, Let) for stmt in b.root):
        raise TilusError("launch comes after other instructions", hint="make it the first statement of the kernel")
    grid = tuple(_in_parameters(e, b.root) for e in integers(blocks, "blocks"))
    if not 1 <= len(grid) <= 3:
        raise ArgumentError("blocks", f"a grid has 1 to 3 axes, got {len(grid)}")
    for extent in grid:
        if any(isinstance(node, BlockId) for node in walk(extent)):
            raise ArgumentError(
                "blocks", "the grid cannot depend on a block index", "use parameters and constants only"
            )
    count = an_int(warps, "warps")
    if not 1 <= count <= MAX_WARPS:
        raise ArgumentError("warps", f"a block has 1 to {MAX_WARPS} warps, got {count}")
    b.launch = Launch(grid, count, a_flag(producer, "producer"), _cluster(cluster, len(grid)))


def _cluster(cluster: Value, axes: int) -> tuple[int, ...]:
    extents = tuple(an_int(extent, "cluster") for extent in a_sequence(cluster))
    if extents and len(extents) != axes:
        raise ArgumentError(
            "cluster", f"the grid has {axes} axes, the cluster {len(extents)}", "give one extent for each"
        )
    if extents and not 1 <= min(extents) <= prod(extents) <= MAX_CLUSTER:
        most = f"a cluster has 1 to {MAX_CLUSTER} blocks, got {extents}: {prod(extents)}"
        raise ArgumentError("cluster", most, "the blocks are the product of its extents")
    return extents


def _in_parameters(expr: Expr, declared: list[Stmt]) -> Expr:
    """Replace variables declared before `launch` by their values, which are made of parameters."""
    values = {stmt.var: stmt.value for stmt in declared if isinstance(stmt, Let)}
    while any(node in values for node in walk(expr) if isinstance(node, Var)):
        expr = rewrite(expr, lambda node: values.get(node) if isinstance(node, Var) else None)
    return expr


@function()
def block_id(b: Builder, axis: Value) -> Scalar:
    """Return the index of the running block along an axis of the grid, an i32."""
    which = an_int(axis, "axis")
    axes = 3 if b.launch is None else len(b.launch.grid)
    if not 0 <= which < axes:
        raise ArgumentError(
            "axis", f"there is no axis {which} in a grid of {axes}", "give launch(blocks=...) more extents"
        )
    return Scalar(BlockId(which, loc=b.loc))


@function("range")
def range_(b: Builder, start: Value, stop: Value = None, step: Value = 1, unroll: Value = False) -> Range:
    """Count in a loop that the block runs; `unroll` asks the compiler to unroll it."""
    if stop is None:
        start, stop = 0, start
    for name, bound in (("start", start), ("stop", stop)):
        an_integer(bound, name)
    stride = an_int(step, "step")
    if stride == 0:
        raise ArgumentError("step", "the step of a loop must not be 0")
    return Range(start, stop, stride, a_flag(unroll, "unroll"))


@function(outside=builtins.range)
def static_range(b: Builder, start: Value, stop: Value = None, step: Value = 1) -> tuple[int, ...]:
    """Count in a loop that is unrolled while the kernel is compiled: its variable is a compile-time integer."""
    first, last = (0, start) if stop is None else (start, stop)
    stride = an_int(step, "step")
    if stride == 0:
        raise ArgumentError("step", "the step of a loop must not be 0")
    low, high = an_int(first, "start"), an_int(last, "stop")
    if (high - low) // stride > MAX_UNROLL:
        message = f"static_range unrolls at most {MAX_UNROLL} turns, got {(high - low) // stride}"
        raise ArgumentError("start" if stop is None else "stop", message, "use range(...), a loop that the block runs")
    return tuple(builtins.range(low, high, stride))


def print_(b: Builder, values: tuple[Value, ...]) -> None:
    """Append a `print` of values separated by spaces."""
    pieces: list[str] = []
    args: list[Scalar | Tile] = []
    for value in values:
        if isinstance(value, Text):
            pieces.append(value.format)
            args.extend(value.args)
        elif isinstance(value, Scalar | Tile):
            pieces.append("{}")
            args.append(value)
        elif is_runtime(value):
            raise expected("the printed value", "a number, a scalar, a tile or text", value)
        else:
            pieces.append(escape(str(value)))
    operands = tuple(v.tensor if isinstance(v, Tile) else expression(v) for v in args)
    b.run(Print(" ".join(pieces), operands, loc=b.loc))


def escape(text: str) -> str:
    """Return text as a format without slots."""
    return text.replace("{", "{{").replace("}", "}}")


def assertion(b: Builder, cond: Expr, message: str) -> None:
    """Append an assertion."""
    b.run(Assert(cond, message, loc=b.loc))


def loop_bounds(b: Builder, bounds: Range) -> tuple[Expr, Expr]:
    """Return the bounds of a loop in one type, as expressions that no assignment inside the loop changes."""
    kinds = [i32, *(v.dtype for v in (bounds.start, bounds.stop) if isinstance(v, Scalar))]
    dtype = builtins.max(kinds, key=lambda t: (t.nbits, t.is_signed))
    start, stop = (b.snapshot(convert(b, v, dtype), "bound").expr for v in (bounds.start, bounds.stop))
    return start, stop
