"""Evaluate grid extents on the host: IR expressions over the arguments, compiled to one Python function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tilus.errors import LaunchError
from tilus.ir.program import Program
from tilus.runtime.host_expr import python_text

Grid = Callable[[Sequence[Any]], tuple[int, ...]]
_MAX_BLOCKS = (1 << 31) - 1
_MAX_CUDA = (_MAX_BLOCKS, 65535, 65535)  # CUDA C++ Programming Guide, table of compute capabilities


def grid_function(program: Program) -> Grid:
    """Return a function from the list of arguments to the grid's extents.

    Raises
    ------
    LaunchError
        If an extent depends on what only a block knows, or is computed by an operator that the host lacks.
    """
    names = {p.var: f"a[{i}]" for i, p in enumerate(program.params)}
    body = "".join(f"{python_text(e, names)}, " for e in program.grid)
    compiled: Grid = eval(f"lambda a: ({body})", {})
    return compiled


def check_grid(extents: Sequence[int], name: str, kind: str = "cpu", cluster: Sequence[int] = ()) -> int:
    """Return the number of blocks; 0 if any extent is 0 or less.

    Raises
    ------
    LaunchError
        If a kind of target (`Target.kind`) cannot number so many blocks, or they are no whole clusters.
    """
    if any(n % size for n, size in zip(extents, cluster, strict=False)):
        raise LaunchError(
            f"kernel {name!r} asks for {tuple(extents)} blocks, no whole number of clusters of {tuple(cluster)}",
            hint="round the grid up: blocks beyond the end take part in cluster_sum, and store nothing",
        )
    total = 1
    for n in extents:
        total *= max(n, 0)
    if total > _MAX_BLOCKS:
        raise LaunchError(f"kernel {name!r} asks for {total} blocks, more than 2^31 - 1", hint="use larger tiles")
    if kind == "cuda" and total > _MAX_CUDA[1]:
        for axis, (extent, most) in enumerate(zip(extents, _MAX_CUDA, strict=False)):
            if extent > most:
                raise LaunchError(
                    f"kernel {name!r} asks for {extent} blocks along axis {axis}, a GPU has at most {most} there",
                    hint="make axis 0 the longest: it takes 2^31 - 1 blocks",
                )
    return total
