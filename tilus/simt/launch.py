"""The face of the machine: run a kernel of a PTX text on arrays, and get a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilus.errors import LaunchError
from tilus.simt import access, barriers, bulk, cluster, control, copies, flow, mbarrier, mma, sync, warps, wgmma
from tilus.simt.arguments import Arguments, bind
from tilus.simt.decode import Context, decode
from tilus.simt.machine import Machine, Options, Piece, Shape, Step
from tilus.simt.parser import parse
from tilus.simt.program import Program, link
from tilus.simt.report import Index3, Report
from tilus.simt.shadow import Clocks, Shadow

_MODULES = (access, control, mma, wgmma)  # importing them fills the table of decoders
_RESIDENT_THREADS = 1 << 13
_RESIDENT_SHARED = 1 << 23
_GLOBAL_SLOTS = 4
_AGENTS = 64  # barriers and warpgroups of a block


def run(
    ptx: str,
    kernel: str,
    args: Sequence[Any],
    grid: int | Sequence[int],
    block: int | Sequence[int],
    *,
    shared_bytes: int = 0,
    cluster: int | Sequence[int] | None = None,
    target: str | None = None,
    sanitize: bool = True,
    metrics: bool = False,
    landing: str = "late",
    max_pieces: int = 2_000_000,
) -> Report:
    """Run a kernel on the CPU, thread by thread.

    Parameters
    ----------
    ptx : str
        A whole PTX text.
    kernel : str
        Name of an entry in it.
    args : sequence
        One for each parameter: a contiguous array, which is passed by address and updated in place; a number; or the
        bytes of a parameter.
    grid, block : int or sequence of int
        Extents in blocks and threads.
    shared_bytes : int
        Dynamic shared memory of a block.
    cluster : int or sequence of int, optional
        Extents in blocks; by default what the kernel demands, or 1.
    target : str, optional
        Such as `sm_90a`; by default what the text is for. Another one is an error.
    sanitize : bool
        Look for races and for reads of what nobody wrote. Bounds and alignment are always checked.
    metrics : bool
        Count instructions, passes through the banks of shared memory, and sectors of global memory.
    landing : str
        `late` (asynchronous copies land when they are waited for) or `early` (at once).
    max_pieces : int
        Give up after so many pieces of straight-line code.

    Returns
    -------
    Report

    Raises
    ------
    ParseError
        If the text cannot be read.
    VMError
        If it has an instruction or a form of one that the machine does not know.
    LaunchError
        If the arguments do not fit the parameters, or the block the kernel.
    """
    module = parse(ptx)
    if target is not None and target != module.target:
        raise LaunchError(f"the PTX is for {module.target}, not {target}")
    if landing not in ("late", "early"):
        raise LaunchError(f"landing is `late` or `early`, got {landing!r}")
    program = link(module, kernel)
    shape = _shape(program, grid, block, cluster, shared_bytes)
    report = Report(kernel, module.target)
    options = Options(landing, sanitize, metrics, max_pieces)
    arguments = bind(program, args)
    with np.errstate(all="ignore"):
        _run_all(program, shape, options, report, arguments)
    arguments.memory.copy_back()
    return report


def _run_all(program: Program, shape: Shape, options: Options, report: Report, arguments: Arguments) -> None:
    """Run the grid, as many blocks at a time as fit."""
    total, cluster = int(np.prod(shape.grid)), int(np.prod(shape.cluster))
    threads = -(-int(np.prod(shape.block)) // 32) * 32
    size = program.shared_bytes + shape.dynamic_shared
    fit = min(_RESIDENT_THREADS // threads, _RESIDENT_SHARED // max(size, 1))
    fit = max(fit // cluster * cluster, cluster)
    shadow: Shadow | None = None
    for first in range(0, total, fit):
        machine = Machine(program, shape, options, report, arguments.memory, arguments.params,
                          min(fit, total - first), first)  # fmt: skip
        shadow = prepare(machine, arguments, shadow)
        machine.start()
        machine.run()
        if shadow is not None:
            shadow.age()


def prepare(machine: Machine, arguments: Arguments, before: Shadow | None) -> Shadow | None:
    """Decode a program for a machine; return the shadow of global memory, which outlives the blocks."""
    machine.units["params"] = arguments.symbols
    machine.units["sync"] = sync.SyncPoints()
    machine.units["warps"] = warps.Warps(machine)
    machine.units["barriers"] = barriers.Barriers(machine)
    machine.units["clusters"] = barriers.Clusters(machine)
    machine.units["copies"] = copies.Copies(machine)
    machine.units["mbarriers"] = mbarrier.Barriers(machine)
    machine.units["bulk"] = bulk.BulkCopies(machine, arguments.maps, arguments.map_buffers)
    machine.units["proxy"] = bulk.Proxies(machine)
    machine.units["tensor_cores"] = wgmma.TensorCores(machine)
    machine.units["store_async"] = cluster.store_async
    decoded = _decode_all(machine)
    contexts = [context for _, context in decoded]
    machine.report.data_independent = flow.is_data_independent(machine.program, contexts)
    if not machine.options.sanitize:
        return None
    unset = flow.possibly_unset(machine.program, contexts) | flow.accumulators(contexts)
    if unset or machine.touched:
        machine.valid = {name: np.zeros(machine.threads, bool) for name in unset}
        _decode_all(machine)
    agents = _AGENTS * machine.blocks if flow.uses_agents(machine.program) else 0
    machine.clocks = Clocks(machine.threads // 32, machine.warps_per_block, agents)
    machine.shadows["shared"] = Shadow(machine.shared.nbytes, flow.narrowest(contexts, "shared"),
                                       machine.warps_per_block * machine.cluster, machine.clocks)  # fmt: skip
    if before is None:
        before = Shadow(machine.globals.nbytes, flow.narrowest(contexts, "global"), _GLOBAL_SLOTS, machine.clocks)
        before.valid[:] = True
    before.clocks = machine.clocks
    machine.shadows["global"] = before
    return before


def _decode_all(machine: Machine) -> list[tuple[Step, Context]]:
    program = machine.program
    decoded = [decode(machine, i) for i in range(len(program.code))]
    bounds = [*program.leaders, len(program.code)]
    machine.pieces = [
        Piece([step for step, _ in decoded[start:end]], [c.opcode for c in program.code[start:end]])
        for start, end in zip(bounds, bounds[1:], strict=False)
    ]
    machine.pieces.append(Piece([machine.leave], []))  # where code ends without `ret`
    return decoded


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
    threads = int(np.prod(shape.block))
    most = int(np.prod(said.get("maxntid", (1024,))))
    if threads > min(most, 1024):
        raise LaunchError(f"kernel {program.name!r} takes at most {min(most, 1024)} threads in a block, got {threads}")
    wanted = said.get("reqntid")
    if wanted is not None and threads != int(np.prod(wanted)):
        raise LaunchError(f"kernel {program.name!r} takes {wanted} threads in a block, got {shape.block}")
    if any(g % c for g, c in zip(shape.grid, shape.cluster, strict=True)):
        raise LaunchError(f"a grid of {shape.grid} blocks is no multiple of the cluster {shape.cluster}")
    return shape
