"""Functions on what lies beyond a block: its cluster, and the kernels before and after it in their stream."""

from __future__ import annotations

from tilus.errors import TilusError
from tilus.ir.instructions import ClusterSum, GridDependencyWait, LaunchDependents, Prefetch
from tilus.lang.arguments import a_shape, a_tile, a_view, access_dims, ranked
from tilus.lang.builder import Builder
from tilus.lang.primitives import function
from tilus.lang.values import Tile, Value


@function()
def cluster_sum(b: Builder, tile: Value) -> Tile:
    """Return the sum of the tiles that the blocks of a cluster have, the same in all of them.

    Elements are added up in the order of the blocks' ranks (the first axis of the grid varies fastest), so the result
    does not depend on which block is faster. All blocks of a cluster must come here, equally often. It needs
    `launch(..., cluster=...)`, and a target of capability 9.0.

    Parameters
    ----------
    tile : tile
        Of f32, i32 or u32, in registers.
    """
    if b.launch is None or not b.launch.cluster:
        raise TilusError("the kernel's blocks are no clusters", hint="launch(..., cluster=(1, 1, 4)) makes them such")
    return b.tile(ClusterSum(a_tile(tile, "tile").tensor, loc=b.loc))


@function()
def prefetch(b: Builder, view: Value, offset: Value, shape: Value, dims: Value = None) -> None:
    """Ask for a tile of a view to be brought to the second-level cache; what lies outside of the view is left out.

    A hint: it needs a target of capability 9.0 and a tile that is one piece of memory, aligned to 16 bytes, and
    changes nothing else. Before `grid_dependency_wait` it may name what earlier kernels write.

    Parameters
    ----------
    view : global view
    offset : tuple of integers
        Index of the tile's first element, one integer per dimension of the view.
    shape : tuple of compile-time integers
        Extents of the tile.
    dims : tuple of int, optional
        Dimensions of the view that the tile runs along; by default the last ones.
    """
    source = a_view(view, "view")
    rank, extents = len(source.shape), a_shape(shape)
    along = access_dims(dims, rank, len(extents), "dims", "the view")
    b.run(Prefetch(source.tensor, ranked(offset, rank, "offset", "the view"), extents, along, loc=b.loc))


@function()
def grid_dependency_wait(b: Builder) -> None:
    """Wait until all earlier kernels of the stream have ended and what they wrote can be read.

    A kernel with this statement is started while the one before it is ending (capability 9.0; elsewhere kernels follow
    one another anyhow). It stands in no branch or loop, and all accesses to global memory come behind it.
    """
    b.run(GridDependencyWait(loc=b.loc))


@function()
def launch_dependents(b: Builder) -> None:
    """Let the next kernel of the stream start, if it waits by `grid_dependency_wait`, once all blocks have come here.

    Its blocks take what room the multiprocessors have left. Blocks that end count as having come here.
    """
    b.run(LaunchDependents(loc=b.loc))
