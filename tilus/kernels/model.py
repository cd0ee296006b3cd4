"""How long a quantized matmul takes on a GPU, from its configuration and its machine code: known without a GPU.

A *floor* is what no kernel can beat: the bytes that must move at the rate of a device copy, the products at the rate of
the best matmul. A *prediction* follows the blocks of one kernel. They come in waves of as many as the multiprocessors
hold; in a wave each resource takes its own time, and the slowest one decides (they overlap):

memory   bytes of weights, scales, activations and results, at the copy rate
l2       what the blocks read, activations once for each block, at the second-level cache's rate
latency  the longer of two: a block's bytes, when `bytes in flight / latency` is all it gets (Little's law); and the
         trips of a warp that nobody disturbs, whose stalls its machine code states, and what it loads and needs at once
issue    instructions of the busiest multiprocessor: a slot for each, two cycles on the narrow pipe of logic
shared   passes through the banks of its shared memory
tensor   its tensor-core instructions, padding included

Before, between and behind the waves come fixed costs: the launch, the first bytes, and the code outside the loop. Where
they are more than all the rest, latency is what bounds the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tilus.ir.target import target as find_target
from tilus.kernels.candidates import Configuration, Problem, stage_size
from tilus.kernels.cost import block_threads, bytes_in_flight
from tilus.kernels.devices import SCHEDULERS, Device
from tilus.kernels.epilogues import PAIRED, result_columns
from tilus.kernels.facts import CodeFacts
from tilus.runtime.resources import MULTIPROCESSORS
from tilus.runtime.weights.packing import WARP

BOUNDS = ("memory", "l2", "latency", "issue", "shared", "tensor")
_NARROW = 2  # cycles for which a warp's instruction occupies the pipe of logic: 16 lanes of it for a scheduler
# Of clusters of an H100: cycles to another block and back twice, to arrive and to be told; TB/s of all blocks' reads.
# Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture" (arXiv:2402.13499): 180 cycles, 3.3 TB/s.
_MEETING, _CLUSTER_RATE = 360, 3.3
_RESERVED = 1024  # bytes of shared memory that the system takes of a block


@dataclass(frozen=True, slots=True)
class Prediction:
    """Where the time goes, in microseconds.

    Attributes
    ----------
    total, floor : float
    fixed : float
        Launch, first bytes, code outside the loop.
    parts : dict
        What each of `BOUNDS` takes by itself.
    bound : str
        Which of them decides.
    blocks : int
    waves : float
        Blocks over what all multiprocessors hold.
    flight : float
        KiB of weights in flight for a multiprocessor.
    """

    total: float
    floor: float
    fixed: float
    parts: dict[str, float]
    bound: str
    blocks: int
    waves: float
    flight: float


def weight_bytes(problem: Problem) -> int:
    """Return the bytes of packed codes, scales and zero points."""
    form, n, k = problem.form, problem.n, problem.k
    words: int = 4 * prod(form.pack.packed_shape(n, k))
    scale = (form.scale or problem.scale).nbits // 8
    return words + form.groups(k) * n * (scale + (form.zero_point == "tensor"))


def memory_bytes(problem: Problem) -> int:
    """Return the bytes that must be read and written."""
    wide = problem.activation.nbits // 8
    results = result_columns(problem.epilogue, problem.n)
    return weight_bytes(problem) + wide * problem.m * (results + problem.k)


def floor_of(moved: float, m: int, n: int, k: int, memory: float, tensor: float) -> float:
    """Return the least microseconds of a product for which so many bytes must move, at TB/s and TFLOP/s."""
    return max(moved / memory, 2 * m * n * k / tensor) * 1e-6


def floor(problem: Problem, device: Device) -> float:
    """Return the least microseconds of a product."""
    return floor_of(memory_bytes(problem), problem.m, problem.n, problem.k, device.memory, device.tensor)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """What one block does, and how many there are."""

    count: int
    resident: int  # on a multiprocessor
    moved: float  # bytes that it brings from memory, its share of what blocks have in common
    streamed: int  # bytes of weights that it waits for
    read: int  # bytes that it reads from the second-level cache
    flight: int
    warps: int
    weights: float  # that a thread takes


def _blocks(problem: Problem, configuration: Configuration, facts: CodeFacts | None, device: Device) -> _Blocks:
    (rows, width), bm, split = problem.form.pack.tile, configuration["BM"], configuration.get("SPLIT", 1)
    rows *= configuration.get("TILES", 1)
    columns, along_n = -(-problem.k // width) * width // split, -(-problem.n // rows)
    threads = block_threads(problem.form, dict(configuration.constants))
    count = -(-problem.m // bm) * along_n * split
    streamed = weight_bytes(problem) // along_n // split
    return _Blocks(
        count=count,
        resident=facts.blocks_per_sm if facts else _resident(problem, configuration, device),
        moved=memory_bytes(problem) / count,
        streamed=streamed,
        read=streamed + min(bm, problem.m) * columns * problem.activation.nbits // 8,  # rows beyond M are only zeroed
        flight=bytes_in_flight(problem.form, dict(configuration.constants)),
        warps=threads // WARP,
        weights=rows * columns / threads,
    )


def _resident(problem: Problem, configuration: Configuration, device: Device) -> int:
    """Return how many blocks' stages a multiprocessor's shared memory holds: at least that much is known uncompiled."""
    block: int = configuration["STAGES"] * stage_size(problem, configuration) + _RESERVED
    return max(MULTIPROCESSORS[find_target(device.target).capability].shared_bytes // block, 1)


def predict(problem: Problem, configuration: Configuration, facts: CodeFacts | None, device: Device) -> Prediction:
    """Predict the time of a configuration; without its facts, what it takes if code were free."""
    blocks = _blocks(problem, configuration, facts, device)
    trips = blocks.weights / facts.weights if facts else 0.0
    capacity = device.sms * blocks.resident
    full, rest = divmod(blocks.count, capacity)
    waves = [(full, capacity)] * bool(full) + [(1, rest)] * bool(rest)
    parts, decided = dict.fromkeys(BOUNDS, 0.0), dict.fromkeys(BOUNDS, 0.0)
    for times, number in waves:
        wave = _wave(blocks, number, trips, facts, device)
        slowest = max(wave, key=lambda bound: wave[bound])
        decided[slowest] += times * wave[slowest]
        for bound, time in wave.items():
            parts[bound] += times * time
    fixed = device.launch + 1e-3 * device.latency + (facts.edge_cycles * 1e-3 / device.clock if facts else 0.0)
    fixed += _adding(problem, configuration, device)
    busy = sum(decided.values())
    return Prediction(
        total=fixed + busy,
        floor=floor(problem, device),
        fixed=fixed,
        parts=parts,
        bound="latency" if fixed > busy else max(decided, key=lambda bound: decided[bound]),
        blocks=blocks.count,
        waves=blocks.count / capacity,
        flight=blocks.flight * min(blocks.resident, -(-blocks.count // device.sms)) / 1024,
    )


def _adding(problem: Problem, configuration: Configuration, device: Device) -> float:
    """Return the microseconds of a second kernel for parts or pairs, which reads what the first one wrote besides.

    Blocks of a cluster meet twice, and read each other's sums between.
    """
    split = configuration.get("SPLIT", 1)
    if configuration.get("CLUSTERED", 0):
        read = 4 * split * split * problem.m * problem.n  # each reads those of all
        return 2 * _MEETING * 1e-3 / device.clock + read / _CLUSTER_RATE * 1e-6
    if split == 1 and problem.epilogue != PAIRED:
        return 0.0
    moved = 2 * 4 * split * problem.m * problem.n
    return device.launch + 1e-3 * device.latency + moved / device.l2 * 1e-6


def _wave(blocks: _Blocks, number: int, trips: float, facts: CodeFacts | None, device: Device) -> dict[str, float]:
    """Return the microseconds that each resource takes for a wave of blocks."""
    found = dict.fromkeys(BOUNDS, 0.0)
    found["memory"] = number * blocks.moved / device.memory * 1e-6
    found["l2"] = number * blocks.read / device.l2 * 1e-6
    found["latency"] = blocks.streamed / blocks.flight * device.latency * 1e-3
    if facts is not None:
        busiest = -(-number // device.sms)
        warps = busiest * blocks.warps * trips
        microsecond = device.clock * 1e3
        slots = max(facts.instructions + facts.produced, _NARROW * facts.alu, device.half_rate * facts.half)
        found["latency"] = max(found["latency"], trips * facts.trip_cycles(device.latency * device.clock) / microsecond)
        found["issue"] = warps / SCHEDULERS * slots / microsecond
        found["shared"] = warps * facts.wavefronts / microsecond
        found["tensor"] = warps * facts.flops * device.sms / device.tensor_sync * 1e-6
    return found
