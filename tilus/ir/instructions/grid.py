"""Instructions on what lies beyond a block: other blocks of its cluster, and kernels before and after it in its stream.

The end of one kernel may overlap the start of the next. CUDA's name for it is programmatic dependent launch. A kernel
that waits for earlier ones itself may be started before they have ended; until then it may do what they do not touch.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilus.ir.expr import Expr, Tensor
from tilus.ir.instructions.base import Instruction, instruction
from tilus.ir.instructions.memory import check_access, global_type, register_type, require
from tilus.ir.types import RegisterType

WORD = 32


def _cluster_sum(i: ClusterSum) -> RegisterType:
    x = register_type(i.x)
    require(x.dtype.nbits == WORD and not x.dtype.is_boolean, f"a cluster adds up elements of 32 bits, not {x.dtype}")
    return RegisterType(x.dtype, x.shape)


@instruction("cluster_sum", "grid", result=_cluster_sum)
@dataclass(frozen=True, slots=True)
class ClusterSum(Instruction):
    """Add up the tiles that the blocks of a cluster have, in the order of their ranks: all get the same sum.

    The first axis of the grid varies fastest in the ranks. All blocks of the cluster come here equally often.
    """

    x: Tensor


def _prefetch(i: Prefetch) -> None:
    check_access("the view", global_type(i.view).rank, i.offset, len(i.shape), i.dims)


@instruction("prefetch", "grid", check=_prefetch)
@dataclass(frozen=True, slots=True)
class Prefetch(Instruction):
    """Ask for a tile to be brought to the second-level cache, where the target can and it is one piece of memory.

    It reads nothing: what is loaded later is what memory holds then.
    """

    view: Tensor
    offset: tuple[Expr, ...]
    shape: tuple[int, ...]
    dims: tuple[int, ...]


def _nothing(i: Instruction) -> None:
    """No operands to check."""


@instruction("grid_dependency_wait", "grid", check=_nothing)
@dataclass(frozen=True, slots=True)
class GridDependencyWait(Instruction):
    """Wait until all earlier kernels of the stream have ended and what they wrote can be read."""


@instruction("launch_dependents", "grid", check=_nothing)
@dataclass(frozen=True, slots=True)
class LaunchDependents(Instruction):
    """Let the next kernel of the stream start, if it waits itself, once all blocks have come here or ended."""
