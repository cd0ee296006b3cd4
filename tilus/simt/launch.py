"""The face of the machine: run a kernel of a PTX text on arrays, and get a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilus.errors import LaunchError
from tilus.simt import access, barriers, control, copies, flow, mma, sync, warps
from tilus.simt.decode import Context, decode
from tilus.simt.formats import Array
from tilus.simt.machine import Machine, Options, Piece, Shape, Step
from tilus.simt.memory import GlobalMemory, Memory, check_argument
from tilus.simt.parser import parse
from tilus.simt.program import Program, link
from tilus.simt.report import Index3, Report
from tilus.simt.shadow import Clocks, Shadow
from tilus.simt.syntax import Symbol, Variable

_MODULES = (access, control, mma)  # importing them fills the table of decoders
_RESIDENT_THREADS = 1 << 13
_RESIDENT_SHARED = 1 << 23
_GLOBAL_SLOTS = 4


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
    memory, params, symbols = _memory(program, args)
    with np.errstate(all="ignore"):
        _run_all(program, shape, options, report, memory, params, symbols)
    memory.copy_back()
    return report


def _run_all(program: Program, shape: Shape, options: Options, report: Report, memory: GlobalMemory, params: Memory,
             symbols: Mapping[str, int]) -> None:  # fmt: skip
    """Run the grid, as many blocks at a time as fit."""
    total, cluster = int(np.prod(shape.grid)), int(np.prod(shape.cluster))
    threads = -(-int(np.prod(shape.block)) // 32) * 32
    size = program.shared_bytes + shape.dynamic_shared
    fit = min(_RESIDENT_THREADS // threads, _RESIDENT_SHARED // max(size, 1))
    fit = max(fit // cluster * cluster, cluster)
    shadow: Shadow | None = None
    for first in range(0, total, fit):
        machine = Machine(program, shape, options, report, memory, params, min(fit, total - first), first)
        shadow = prepare(machine, symbols, shadow)
        machine.start()
        machine.run()
        if shadow is not None:
            shadow.age()


def prepare(machine: Machine, symbols: Mapping[str, int], before: Shadow | None) -> Shadow | None:
    """Decode a program for a machine; return the shadow of global memory, which outlives the blocks."""
    machine.units["params"] = symbols
    machine.units["sync"] = sync.SyncPoints()
    machine.units["warps"] = warps.Warps(machine)
    machine.units["barriers"] = barriers.Barriers(machine)
    machine.units["clusters"] = barriers.Clusters(machine)
    machine.units["copies"] = copies.Copies(machine)
    decoded = _decode_all(machine)
    contexts = [context for _, context in decoded]
    machine.report.data_independent = flow.is_data_independent(machine.program, contexts)
    if not machine.options.sanitize:
        return None
    unset = flow.possibly_unset(machine.program, contexts)
    if unset:
        machine.valid = {name: np.zeros(machine.threads, bool) for name in unset}
        _decode_all(machine)
    machine.clocks = Clocks(machine.threads // 32, machine.warps_per_block)
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


# --- arguments --------------------------------------------------------------------------------------------------------


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


def _memory(program: Program, args: Sequence[Any]) -> tuple[GlobalMemory, Memory, dict[str, int]]:
    """Return global memory with the arguments and variables, the bytes of the parameters, and where each lies."""
    if len(args) != len(program.params):
        raise LaunchError(f"kernel {program.name!r} takes {len(program.params)} arguments, got {len(args)}")
    pieces: list[tuple[str, Array | bytes]] = []
    for position, (param, value) in enumerate(zip(program.params, args, strict=True)):
        check_argument(value, position)
        if isinstance(value, np.ndarray):
            pieces.append((param.name, value))
    first = len(pieces)
    pieces += [(v.name, bytes(v.nbytes or 0)) for v in program.data]
    memory = GlobalMemory(pieces)
    addresses = {v.name: memory.address(first + i) for i, v in enumerate(program.data)}
    for i, variable in enumerate(program.data):
        content = _initial(variable, addresses)
        start = memory.buffers[first + i].start
        memory.bytes[start : start + len(content)] = np.frombuffer(content, np.uint8)
    return memory, *_parameters(program, args, memory)


def _initial(variable: Variable, addresses: Mapping[str, int]) -> bytes:
    parts = []
    for value in variable.initial:
        number = addresses.get(value.name, 0) + value.offset if isinstance(value, Symbol) else value
        parts.append((number % (1 << 8 * variable.element)).to_bytes(variable.element, "little"))
    return b"".join(parts)[: variable.nbytes]


def _parameters(program: Program, args: Sequence[Any], memory: GlobalMemory) -> tuple[Memory, dict[str, int]]:
    symbols, data, number = {}, b"", 0
    for param, value in zip(program.params, args, strict=True):
        data = data.ljust(-(-len(data) // param.align) * param.align, b"\0")
        symbols[param.name] = len(data)
        if isinstance(value, np.ndarray):
            data += memory.address(number).to_bytes(8, "little")
            number += 1
        else:
            data += _value(value, param)
    params = Memory(len(data))
    params.bytes[: len(data)] = np.frombuffer(data, np.uint8)
    return params, symbols


def _value(value: Any, param: Variable) -> bytes:
    nbytes = param.nbytes or 0
    match value:
        case bytes():
            data = value
        case np.generic():
            data = value.tobytes()
        case int():
            data = (value % (1 << 8 * nbytes)).to_bytes(nbytes, "little")
        case float():
            data = np.asarray(value, f"f{nbytes}").tobytes()
        case _:
            raise LaunchError(f"parameter {param.name}: expected an array, a number or bytes, got {type(value).__name__}")
    if len(data) != nbytes:
        raise LaunchError(f"parameter {param.name}: expected {nbytes} bytes, got {len(data)}")
    return data
