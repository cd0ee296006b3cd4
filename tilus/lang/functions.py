"""The functions of the language by name: what `import tilus` offers besides types and layouts.

Adding a function is writing its implementation (see `primitives.function`) and naming it here.
"""

from __future__ import annotations

from tilus.lang import control, grid, memory, tiles
from tilus.lang.primitives import LangFunction

FUNCTIONS: dict[str, LangFunction] = {
    f.__name__: f
    for f in (
        control.launch,
        control.block_id,
        control.range_,
        control.static_range,
        memory.global_view,
        memory.load_global,
        memory.store_global,
        memory.atomic_add,
        memory.alloc_shared,
        memory.load_shared,
        memory.store_shared,
        memory.copy_async,
        memory.commit_group,
        memory.wait_group,
        memory.sync,
        grid.prefetch,
        grid.cluster_sum,
        grid.grid_dependency_wait,
        grid.launch_dependents,
        tiles.full,
        tiles.zeros,
        tiles.arange,
        tiles.dot,
        tiles.sum_,
        tiles.max_,
        tiles.min_,
        tiles.transpose,
        tiles.reshape,
        tiles.slice_tile,
        tiles.view,
        tiles.convert_layout,
        tiles.annotate,
        tiles.exp,
        tiles.exp2,
        tiles.log,
        tiles.log2,
        tiles.sqrt,
        tiles.rsqrt,
        tiles.sin,
        tiles.cos,
        tiles.tanh,
        tiles.erf,
        tiles.floor,
        tiles.ceil,
        tiles.round_,
        tiles.abs_,
        tiles.maximum,
        tiles.minimum,
        tiles.where,
        tiles.sigmoid,
        tiles.cdiv,
    )
}
