"""What the quantized matmul costs on a GPU, read from its machine code: known without a GPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

from tilus.dtypes import DataType
from tilus.errors import CompileError
from tilus.ir.atoms import MMA_BY_NAME
from tilus.ir.instructions import Dot
from tilus.ir.node import walk
from tilus.ir.program import Program
from tilus.ir.stmt import For, InstStmt
from tilus.ir.types import RegisterType
from tilus.kernels.configure import matmul_program
from tilus.runtime.compiled import CompiledKernel
from tilus.runtime.hot_loop import HotLoop, hot_loop, instructions_per_weight, producer_loop
from tilus.runtime.sass import Instruction
from tilus.runtime.warp_time import warp_cycles
from tilus.runtime.weights.packing import WARP, native_pack
from tilus.runtime.weights.weight import WeightFormat

LATENCIES = (500, 1500)  # cycles: an idle memory, a busy one
# What callers of real layers promise: N and K are multiples of 16.
PROMISES = {"n": 16, "k": 16}
_CONFLICTS = re.compile(r"(\d+) bank conflicts")


@dataclass(frozen=True)
class MatmulCost:
    """One configuration of the quantized matmul, compiled for a CUDA target."""

    compiled: CompiledKernel
    form: WeightFormat
    constants: Mapping[str, Any]

    @property
    def registers(self) -> int:
        """Registers per thread."""
        return self.compiled.resources.registers

    @property
    def spills(self) -> int:
        """Bytes that spilling moves; 0 in a good kernel."""
        return self.compiled.resources.spills

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return self.compiled.resources.shared_bytes

    @property
    def threads(self) -> int:
        """Threads of a block that compute."""
        return block_threads(self.form, self.constants)

    @property
    def blocks_per_sm(self) -> int:
        """Blocks that a multiprocessor holds at a time."""
        return self.compiled.resources.occupancy(self.compiled.resources.max_threads)

    @property
    def occupancy(self) -> float:
        """Share of a multiprocessor's warps that its blocks fill."""
        return self.compiled.resources.occupied(self.compiled.resources.max_threads)

    @property
    def bytes_in_flight(self) -> int:
        """Bytes of weights on their way to a multiprocessor while its blocks compute: all stages but the one in use."""
        return bytes_in_flight(self.form, self.constants) * self.blocks_per_sm

    @cached_property
    def loop(self) -> HotLoop:
        """One trip of the loop over K."""
        return hot_loop(self.compiled.sass)

    @cached_property
    def producer(self) -> HotLoop | None:
        """One trip of the warp that copies for the others; None if they do it themselves."""
        return producer_loop(self.compiled.sass, self.loop.function)

    @cached_property
    def weights_per_trip(self) -> int:
        """Weights that a thread consumes in one trip of the machine code's loop: ptxas may have unrolled it."""
        per_tile = tiles_per_trip(self.constants) * prod(self.form.pack.tile) // self.threads
        expected = tensor_instructions(self.compiled.ir)
        found = self.loop.mix["mma"]
        if not expected or not found:
            return per_tile
        if found % expected:
            raise CompileError(
                f"a trip has {found} tensor-core instructions, no multiple of the {expected} that it has as written"
            )
        return per_tile * (found // expected)

    @property
    def instructions_per_weight(self) -> float:
        """Instructions a thread issues per weight in the hot loop; a producer's are not among them."""
        return instructions_per_weight(self.loop, self.weights_per_trip)

    @property
    def producer_share(self) -> float:
        """Instructions of the producer per weight, shared out to the threads that compute."""
        if self.producer is None:
            return 0.0
        return len(self.producer.instructions) * WARP / self.threads / self.weights_per_trip

    @cached_property
    def trip_cycles(self) -> tuple[int, int]:
        """Cycles of a warp alone, of the slower kind, for a trip behind another one, by `LATENCIES` of a load."""
        trips = [loop.instructions for loop in (self.loop, self.producer) if loop is not None]
        early, late = (max(self._cycles_behind(trip, latency) for trip in trips) for latency in LATENCIES)
        return early, late

    def _cycles_behind(self, trip: tuple[Instruction, ...], latency: int) -> int:
        cubin, kernel = self.compiled.cubin, self.loop.function
        return warp_cycles(trip * 2, cubin, kernel, latency) - warp_cycles(trip, cubin, kernel, latency)

    @property
    def exposed_loads(self) -> float:
        """Loads from device memory, one after another, whose whole latency a trip waits for; 0 in a good kernel."""
        early, late = self.trip_cycles
        return (late - early) / (LATENCIES[1] - LATENCIES[0])

    @cached_property
    def bank_conflicts(self) -> int:
        """Wavefronts beyond the ideal, summed over the accesses to shared memory in the loop over K."""
        return bank_conflicts(self.compiled.ir)


def matmul_cost(form: WeightFormat, activation: DataType, scale: DataType, *, bm: int, target: str) -> MatmulCost:
    """Compile the quantized matmul of a weight format for a CUDA target.

    Parameters
    ----------
    form : WeightFormat
        In any packed order: the one of a GPU is taken.
    activation, scale : DataType
    bm : int
        Batch tile.
    target : str
        `sm_80` and so on.
    """
    form = replace(form, pack=native_pack(form.dtype, "cuda", activation))
    program, values = matmul_program(form, activation, scale, bm, bias=True)
    return MatmulCost(program.compile(target=target, multiples=PROMISES, **values), form, values)


def block_threads(form: WeightFormat, constants: Mapping[str, Any]) -> int:
    """Return the threads of a block."""
    warps: int | None = constants.get("WARPS")
    return form.pack.fragment.num_threads if warps is None else WARP * warps


def tiles_per_trip(constants: Mapping[str, Any]) -> int:
    """Return the packed tiles that a block takes in a trip of its loop."""
    slices: int = constants.get("SLICES", 1)
    tiles: int = constants.get("TILES", 1)
    return slices * tiles


def bytes_in_flight(form: WeightFormat, constants: Mapping[str, Any]) -> int:
    """Return the bytes of weights that a block has asked for and not yet seen, in the middle of its loop."""
    stages: int = constants["STAGES"]
    return (stages - 1) * tiles_per_trip(constants) * 4 * prod(form.pack.words.shape)


def _loop_lines(program: Program) -> list[InstStmt]:
    """Return the instructions in loops at run time, those of unrolled ones included."""
    loops = [node for node in program.body if isinstance(node, For)]
    return [line for loop in loops for line in walk(loop) if isinstance(line, InstStmt)]


def tensor_instructions(program: Program) -> int:
    """Return the tensor-core instructions that a warp issues in the program's loops, per trip."""
    return sum(_tensor_instructions(line, program) for line in _loop_lines(program))


def _tensor_instructions(line: InstStmt, program: Program) -> int:
    if not isinstance(line.inst, Dot) or line.selected is None or line.selected.atom not in MMA_BY_NAME:
        return 0
    atom = MMA_BY_NAME[line.selected.atom]
    a, c = line.inst.a.type, line.inst.c.type
    assert isinstance(a, RegisterType)
    assert isinstance(c, RegisterType)
    assert a.layout is not None
    assert c.layout is not None
    steps = a.shape[-1] // atom.shape[2]
    fragments = c.layout.local_size // (prod(atom.shape[:2]) // 32)
    return steps * fragments


def bank_conflicts(program: Program) -> int:
    """Return the bank conflicts that selection counted for the accesses in a lowered program's loops."""
    lines = (line for line in _loop_lines(program) if line.selected is not None)
    counts = (_CONFLICTS.search(line.selected.note) for line in lines if line.selected is not None)
    return sum(int(count[1]) for count in counts if count)
