"""Which emitter writes which instruction. A test demands that none is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilus.codegen.cuda import (
    emit_async,
    emit_cluster,
    emit_convert,
    emit_debug,
    emit_dot,
    emit_elementwise,
    emit_global,
    emit_grid,
    emit_reduce,
    emit_registers,
    emit_shared,
    emit_unpack,
)
from tilus.codegen.cuda.context import Context
from tilus.ir import instructions as I
from tilus.ir.stmt import InstStmt

Emitter = Callable[[Context, InstStmt, Any, Any], None]

EMITTERS: dict[type[I.Instruction], Emitter] = {
    I.GlobalView: emit_global.global_view,
    I.LoadGlobal: emit_global.load_global,
    I.StoreGlobal: emit_global.store_global,
    I.AtomicAdd: emit_global.atomic_add,
    I.LoadElement: emit_global.load_element,
    I.AllocShared: emit_shared.alloc_shared,
    I.LoadShared: emit_shared.load_shared,
    I.StoreShared: emit_shared.store_shared,
    I.Sync: emit_shared.sync,
    I.CopyAsync: emit_async.copy_async,
    I.CommitGroup: emit_async.commit_group,
    I.WaitGroup: emit_async.wait_group,
    I.Prefetch: emit_grid.prefetch,
    I.GridDependencyWait: emit_grid.grid_dependency_wait,
    I.LaunchDependents: emit_grid.launch_dependents,
    I.ClusterSum: emit_cluster.cluster_sum,
    I.Full: emit_registers.full,
    I.Arange: emit_registers.arange,
    I.Copy: emit_registers.copy,
    I.Cast: emit_registers.cast,
    I.View: emit_unpack.view,
    I.Unpack: emit_unpack.unpack,
    I.Transpose: emit_registers.same_registers,
    I.Reshape: emit_registers.same_registers,
    I.Slice: emit_registers.slice_,
    I.ConvertLayout: emit_convert.convert_layout,
    I.Elementwise: emit_elementwise.elementwise,
    I.Reduce: emit_reduce.reduce,
    I.Dot: emit_dot.dot,
    I.Print: emit_debug.print_,
    I.Assert: emit_debug.assert_,
}
