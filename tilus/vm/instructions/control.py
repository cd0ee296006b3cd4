"""Printing, assertions, sums over clusters, and what needs nothing: kernels run one after another.

`sync` belongs to shared memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilus.dtypes import DataType
from tilus.ir.expr import Expr, Tensor, dtype_of
from tilus.ir.instructions import Assert, ClusterSum, GridDependencyWait, Instruction, LaunchDependents, Prefetch, Print
from tilus.ir.stmt import InstStmt
from tilus.vm.fault import Fault
from tilus.vm.registry import meaning
from tilus.vm.values import Array, apply, show

if TYPE_CHECKING:
    from tilus.vm.machine import Block


@meaning(Print)
def print_(block: Block, stmt: InstStmt, inst: Print) -> None:
    """Write one line; a tile is the list of its elements in row-major order."""
    pieces = [p.replace("\0", "{").replace("\1", "}") for p in _split(inst.format)]
    texts = [show(_dtype(arg), block.value(arg)) for arg in inst.args]
    print("".join(piece + text for piece, text in zip(pieces, [*texts, ""], strict=True)))


def _split(text: str) -> list[str]:
    return text.replace("{{", "\0").replace("}}", "\1").split("{}")


def _dtype(arg: Tensor | Expr) -> DataType:
    return arg.type.dtype if isinstance(arg, Tensor) else dtype_of(arg)


@meaning(Assert)
def assert_(block: Block, stmt: InstStmt, inst: Assert) -> None:
    """Stop unless the condition holds."""
    if not block.scalar(inst.cond):
        raise Fault(f"assertion failed: {inst.message}")


@meaning(ClusterSum)
def cluster_sum(block: Block, stmt: InstStmt, inst: ClusterSum) -> Array:
    """Add up the tiles of all blocks of the cluster, by rank."""
    if block.cluster is None:
        raise Fault("a block runs without the others of its cluster")
    total, *others = block.cluster.exchange(block.rank, block.value(inst.x))
    for tile in others:
        total = apply("add", _dtype(inst.x), (total, tile))
    return total


@meaning(Prefetch)
@meaning(GridDependencyWait)
@meaning(LaunchDependents)
def nothing(block: Block, stmt: InstStmt, inst: Instruction) -> None:
    """There is no cache, and every earlier kernel has ended."""
