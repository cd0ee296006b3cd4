"""The face of the machine: run a kernel of a PTX text on arrays, and get a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from tilus.errors import LaunchError
from tilus.simt import (
    barriers,
    bulk,
    bulk_copies,
    cluster,
    control,
    copies,
    flow,
    loads,
    matrices,
    mbarrier,
    mma,
    sync,
    warps,
    wgmma,
)
from tilus.simt.arguments import Arguments, bind
from tilus.simt.decode import Context, decode
from tilus.simt.machine import Machine, Options, Piece, Shape
from tilus.simt.parser import parse
from tilus.simt.program import Program, link
from tilus.simt.report import Index3, Report
from tilus.simt.shadow import Clocks, Shadow
from tilus.simt.syntax import Module

_MODULES = (bulk_copies, cluster, control, loads, matrices, mma)  # importing them fills the table of decoders
_RESIDENT_THREADS = 1 << 13
_RESIDENT_SHARED = 1 << 21
_GLOBAL_SLOTS = 4
_AGENTS = 64  # barriers and warpgroups of a block


def run(
    ptx: str | Module,
    kernel: str,
    args: Sequence[Any],
    grid: int | Sequence[int],
    block: int | Sequence[int],
    *,
    shared_bytes: int = 0,
    cluster: int | Sequence[int] | None = None, target: str | None = None,
    sanitize: bool = True, metrics: bool = False, landing: str = "late", max_pieces: int = 200_000,
    max_findings: int | None = None, windows: Sequence[tuple[int, int, int]] = (), dependent: bool = False,
) -> Report:  # fmt: skip
    """Run a kernel on the CPU, thread by thread.

    Parameters
    ----------
    ptx, kernel : str
        A whole PTX text (or what `parse` made of one), and the name of an entry in it.
    args : sequence
        One for each parameter: a contiguous array, which is passed by address and updated in place; a number; a
        `TensorMap`; or the bytes of a parameter.
    grid, block, cluster : int or sequence of int
        Extents in blocks, threads and blocks; those of a cluster are by default what the kernel demands, or 1.
    shared_bytes : int
        Dynamic shared memory of a block.
    target : str, optional
        What the PTX has to be for, such as `sm_90a`.
    sanitize : bool
        Look for races and for reads of what nobody wrote. Bounds and alignment are always checked.
    metrics : bool
        Count instructions, passes through the banks of shared memory, and sectors of global memory.
    landing : str
        `late` (asynchronous copies land when they are waited for) or `early` (at once).
    max_pieces : int
        Give up after so many pieces of straight-line code, and after a twentieth of that once there are findings.
    max_findings : int, optional
        Stop soon after so many findings.
    windows : sequence of (int, int, int)
        Which part of the dynamic shared memory code may load from and store to: from a line of the source on, the
        first byte and the end. Ascending.
    dependent : bool
        The kernel is started before earlier ones have ended: threads may not access arguments before they wait.

    Raises
    ------
    ParseError, VMError
        If the text cannot be read, or has an instruction that the machine does not know.
    LaunchError
        If the arguments do not fit the parameters, or the block the kernel.
    """
    module = _parsed(ptx) if isinstance(ptx, str) else ptx
    if target not in (None, module.target):
        raise LaunchError(f"the PTX is for {module.target}, not {target}")
    if landing not in ("late", "early"):
        raise LaunchError(f"landing is `late` or `early`, got {landing!r}")
    program = link(module, kernel)
    shape, report = _shape(program, grid, block, cluster, shared_bytes), Report(kernel, module.target)
    options = Options(landing, sanitize, metrics, max_pieces, max_findings, windows, dependent)
    _run_all(program, shape, options, report, bind(program, args))
    return report


_parsed = lru_cache(maxsize=8)(parse)  # one text is run several times: for other shapes, or landings of copies


def _run_all(program: Program, shape: Shape, options: Options, report: Report, arguments: Arguments) -> None:
    """Run the grid, as many blocks at a time as fit."""
    total, cluster = math.prod(shape.grid), math.prod(shape.cluster)
    threads = -(-math.prod(shape.block) // 32) * 32
    size = program.shared_bytes + shape.dynamic_shared
    fit = min(_RESIDENT_THREADS // threads, _RESIDENT_SHARED // max(size, 1))
    fit = max(fit // cluster * cluster, cluster)
    facts: flow.Facts | None = None
    shadow: Shadow | None = None
    for first in range(0, total, fit):
        blocks = min(fit, total - first)
        machine = Machine(program, shape, options, report, arguments.memory, arguments.params, blocks, first)
        _furnish(machine, arguments)
        contexts = _decode_all(machine)
        facts = facts or flow.examine(program, contexts)
        report.data_independent = facts.data_independent
        if options.sanitize:
            shadow = _watch(machine, facts, shadow)
        with np.errstate(all="ignore"):
            machine.run()
        if shadow is not None:
            shadow.age()
    arguments.memory.copy_back()


def _furnish(machine: Machine, arguments: Arguments) -> None:
    """Give a machine what keeps the state of barriers and of copies."""
    machine.units.update(
        params=arguments.symbols,
        sync=sync.SyncPoints(),
        warps=warps.Warps(machine),
        barriers=barriers.Barriers(machine),
        clusters=barriers.Clusters(machine),
        copies=copies.Copies(machine),
        mbarriers=mbarrier.Barriers(machine),
        bulk=bulk.BulkCopies(machine, arguments.maps, arguments.map_buffers),
        proxy=bulk.Proxies(machine),
        tensor_cores=wgmma.TensorCores(machine),
    )


def _watch(machine: Machine, facts: flow.Facts, before: Shadow | None) -> Shadow:
    """Give a machine the shadows of its memory and registers; that of global memory outlives the blocks."""
    if facts.unset:
        machine.valid = {name: np.zeros(machine.threads, bool) for name in facts.unset}
        _decode_all(machine)
    clocks = Clocks(machine.threads // 32, machine.warps_per_block, _AGENTS * machine.blocks * facts.agents)
    if before is None:
        before = Shadow(machine.globals.nbytes, facts.narrowest["global"], _GLOBAL_SLOTS, clocks, spare=True)
        before.valid[:] = True
    before.clocks = clocks
    slots = machine.warps_per_block * machine.cluster
    shared = Shadow(machine.shared.nbytes, facts.narrowest["shared"], slots, clocks)
    machine.clocks, machine.shadows = clocks, {"shared": shared, "global": before}
    return before


def _decode_all(machine: Machine) -> list[Context]:
    program = machine.program
    decoded = [decode(machine, i) for i in range(len(program.code))]
    bounds = [*program.leaders, len(program.code)]
    machine.pieces = [
        Piece([step for step, _ in decoded[start:end]], [c.opcode for c in program.code[start:end]])
        for start, end in pairwise(bounds)
    ]
    machine.pieces.append(Piece([machine.leave], []))  # where code ends without `ret`
    return [context for _, context in decoded]


# --- the launch's shape ---------------------------------------------------------------------------------------------


def _extents(value: int | Sequence[int], what: str) -> Index3:
    numbers = [value] if isinstance(value, int) else [int(x) for x in value]
    if not 1 <= len(numbers) <= 3 or min(numbers) < 1:
        raise LaunchError(f"{what}: expected 1 to 3 positive extents, got {value}")
    x, y, z = [*numbers, 1, 1][:3]
    return x, y, z


def _shape(program: Program, grid: int | Sequence[int], block: int | Sequence[int],
           cluster: int | Sequence[int] | None, shared_bytes: int) -> Shape:  # fmt: skip
    said = program.directives
    demanded = said.get("reqnctapercluster")
    shape = Shape(_extents(grid, "grid"), _extents(block, "block"),
                  _extents(cluster if cluster is not None else demanded or 1, "cluster"), shared_bytes)  # fmt: skip
    threads = math.prod(shape.block)
    most = math.prod(said.get("maxntid", (1024,)))
    if threads > min(most, 1024):
        raise LaunchError(f"kernel {program.name!r} takes at most {min(most, 1024)} threads in a block, got {threads}")
    wanted = said.get("reqntid")
    if wanted is not None and threads != math.prod(wanted):
        raise LaunchError(f"kernel {program.name!r} takes {wanted} threads in a block, got {shape.block}")
    if any(g % c for g, c in zip(shape.grid, shape.cluster, strict=True)):
        raise LaunchError(f"a grid of {shape.grid} blocks is no multiple of the cluster {shape.cluster}")
    return shape
