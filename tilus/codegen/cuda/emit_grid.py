"""Emitters of programmatic dependent launch; targets before capability 9.0 have none and need nothing."""

from __future__ import annotations

from tilus.codegen.cuda import emit_bulk
from tilus.codegen.cuda.context import Context
from tilus.codegen.cuda.emit_global import selected_of
from tilus.ir import instructions as I
from tilus.ir.stmt import InstStmt
from tilus.ir.target import DEPENDENT_LAUNCH


def prefetch(ctx: Context, stmt: InstStmt, out: None, inst: I.Prefetch) -> None:
    """Have thread 0 ask for a tile's part inside of the view."""
    selected = selected_of(stmt)
    if selected.atom != "none":
        emit_bulk.prefetch(ctx, inst, selected.unmasked)


def grid_dependency_wait(ctx: Context, stmt: InstStmt, out: None, inst: I.GridDependencyWait) -> None:
    """Wait for earlier kernels."""
    if ctx.target.capability >= DEPENDENT_LAUNCH:
        ctx.dependent = True
        ctx.do("grid_dependency_wait")


def launch_dependents(ctx: Context, stmt: InstStmt, out: None, inst: I.LaunchDependents) -> None:
    """Let the next kernel start."""
    if ctx.target.capability >= DEPENDENT_LAUNCH:
        ctx.do("launch_dependents")
