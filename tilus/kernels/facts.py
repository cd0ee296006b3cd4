"""What the machine code of a configuration says about its speed, kept on disk beside the kernel."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache

from tilus.errors import FormatError
from tilus.kernels.candidates import Configuration
from tilus.kernels.cost import LATENCIES, PROMISES, MatmulCost
from tilus.runtime import cache as disk
from tilus.runtime.compiled import CompiledKernel
from tilus.runtime.hot_loop import COPIES
from tilus.runtime.sass import Instruction, parse_sass
from tilus.runtime.warp_time import warp_cycles
from tilus.runtime.weights.packing import WARP
from tilus.runtime.weights.weight import WeightFormat

_FILE = "facts.json"
_SHAPE = re.compile(r"(16)(8)(8|16|32)")
_BANKS_BYTES = 128  # that shared memory moves in a cycle
_TO_SHARED = {"lds", "sts"}


@dataclass(frozen=True, slots=True)
class CodeFacts:
    """One kernel's loop over K, per trip and warp, and what a multiprocessor holds of it.

    Attributes
    ----------
    weights : int
        Weights that a thread consumes.
    instructions, alu, half : int
        All, those on the narrow pipe of logic and integers, and those on halves.
    produced : float
        Instructions of a producer in a trip, shared out to the warps that compute.
    wavefronts : float
        Passes through the banks of shared memory, copies from global memory included.
    flops : int
        Of the tensor cores, padding and correction sums included.
    cycles : (int, int)
        Of a warp alone, of the slower kind, where a load from device memory takes each of `LATENCIES`: see
        `tilus.runtime.warp_time`.
    edge_cycles : int
        The same for the code before and behind the loop, once, at the lower one.
    block_threads : int
        Of a block, a producer's among them.
    registers, spills, shared_bytes, blocks_per_sm : int
        See `Resources`.
    """

    weights: int
    instructions: int
    alu: int
    half: int
    produced: float
    wavefronts: float
    flops: int
    cycles: tuple[int, int]
    edge_cycles: int
    block_threads: int
    registers: int
    spills: int
    shared_bytes: int
    blocks_per_sm: int

    def trip_cycles(self, latency: float) -> float:
        """Return the cycles of a warp alone for a trip where a load from device memory takes so many."""
        early, late = self.cycles
        return early + (late - early) * (latency - LATENCIES[0]) / (LATENCIES[1] - LATENCIES[0])

    @property
    def instructions_per_weight(self) -> float:
        """Instructions that a thread issues for each weight."""
        return self.instructions / self.weights


@cache
def code_facts(configuration: Configuration, form: WeightFormat, target: str) -> CodeFacts:
    """Compile a configuration, unless its facts are on disk, and read them."""
    compiled = configuration.kernel.compile((), target, PROMISES)
    key = disk.cache_key(kernel=compiled.cache_key, what=_FILE)
    kept = disk.get(key, [_FILE])
    if kept is not None:
        record = json.loads(kept[_FILE])
        return CodeFacts(**record | {"cycles": tuple(record["cycles"])})
    found = _read(compiled, form, configuration)
    disk.put(key, {_FILE: json.dumps(asdict(found)).encode()})
    return found


def _read(compiled: CompiledKernel, form: WeightFormat, configuration: Configuration) -> CodeFacts:
    cost = MatmulCost(compiled, form, dict(configuration.constants))
    loop, name = cost.loop, cost.loop.function
    if not loop.is_loop:
        raise FormatError(f"kernel {name!r} has no loop over K")
    return CodeFacts(
        weights=cost.weights_per_trip,
        instructions=len(loop.instructions),
        alu=loop.pipes.get("alu", 0),
        half=loop.mix["half2"],
        produced=cost.producer_share * cost.weights_per_trip,
        wavefronts=sum(map(_wavefronts, loop.instructions)) + _copied_wavefronts(cost),
        flops=sum(map(_flops, loop.instructions)),
        cycles=cost.trip_cycles,
        edge_cycles=_edge_cycles(cost),
        block_threads=compiled.resources.max_threads,
        registers=cost.registers,
        spills=cost.spills,
        shared_bytes=cost.shared_bytes,
        blocks_per_sm=cost.blocks_per_sm,
    )


def _edge_cycles(cost: MatmulCost) -> int:
    """Return the cycles of the code before and behind the loop, until a producer has started the first copies."""
    name = cost.loop.function
    [function] = [f for f in parse_sass(cost.compiled.sass) if f.name == name]

    def cycles(instructions: Iterable[Instruction]) -> int:
        return warp_cycles(_executed(instructions), cost.compiled.cubin, name, LATENCIES[0])

    places = _places(cost.loop.instructions)
    if cost.producer is None:
        return cycles(i for i in function.instructions if i.address not in places)
    copies = _places([i for i in function.instructions if i.opcode in COPIES])
    ahead = range(copies.start, _places(cost.producer.instructions).start)
    rest = [i for i in function.instructions if i.address not in places and i.address not in copies]
    groups: int = cost.constants["STAGES"] - 1
    return cycles(rest) + cycles(i for i in function.instructions if i.address in ahead) // groups


def _places(instructions: Iterable[Instruction]) -> range:
    addresses = [i.address for i in instructions]
    return range(min(addresses), max(addresses) + 1)


def _copied_wavefronts(cost: MatmulCost) -> float:
    """Return the passes of what a producer copies, shared out to the warps that compute."""
    if cost.producer is None:
        return 0.0
    in_bulk = any(i.opcode == "UBLKCP" for i in cost.producer.instructions)
    weights = cost.weights_per_trip * cost.threads * cost.form.dtype.nbits // 8 if in_bulk else 0
    passes = sum(map(_wavefronts, cost.producer.instructions)) + weights / _BANKS_BYTES
    return passes * WARP / cost.threads


def _executed(instructions: Iterable[Instruction]) -> list[Instruction]:
    """Leave out what pads the code, and the endless loop behind its end."""
    found = []
    for instruction in instructions:
        if instruction.klass.kind != "nop":
            found.append(instruction)
        if instruction.opcode == "EXIT" and not instruction.predicate:
            break
    return found


def _wavefronts(instruction: Instruction) -> int:
    """Return the passes of an access to shared memory without bank conflicts."""
    if instruction.klass.kind not in _TO_SHARED and instruction.opcode != "LDGSTS":
        return 0
    modifiers = instruction.modifiers
    if instruction.opcode in ("LDSM", "STSM"):  # matrices of 8 rows of 16 bytes
        return next((int(text) for text in modifiers if text in ("2", "4")), 1)
    bits = next((int(text) for text in modifiers if text in ("64", "128")), 32)
    return 32 * bits // 8 // _BANKS_BYTES


def _flops(instruction: Instruction) -> int:
    """Return the operations of a tensor-core instruction."""
    if instruction.klass.kind != "mma":
        return 0
    shape = next((found for text in instruction.modifiers if (found := _SHAPE.fullmatch(text))), None)
    if shape is None:
        raise FormatError(f"the shape of {instruction} is not known")
    m, n, k = map(int, shape.groups())
    return 2 * m * n * k
