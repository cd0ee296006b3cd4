"""What to multiply, and the configurations of the programs that can: one function makes them all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import product
from typing import Any

import numpy as np

from tilus.dtypes import DataType, f32
from tilus.ir.target import CLUSTERS, MAX_CLUSTER
from tilus.ir.target import target as find_target
from tilus.kernels.configure import adding_kernel, ending, matmul_program, rows_per_block
from tilus.kernels.configure_gpu import (
    BATCH_TILES,
    divides,
    fair_split,
    gpu_batch_tiles,
    parts_of,
    rows_of_warp,
    table_bytes,
    tile_bytes,
)
from tilus.kernels.epilogues import PAIRED
from tilus.runtime.kernel import BoundKernel, Kernel
from tilus.runtime.knobs import knobs
from tilus.runtime.weights.quantize import NUMPY_TYPES, quantize
from tilus.runtime.weights.weight import WeightFormat

LARGEST_BUCKET = 4096  # what larger batches are configured as
ANY_SCALE = 2.0  # stands for all tensor scales but 1: kernels take them as arguments
DEEPEST = 8  # stages
VARIED = ("BM", "SLICES", "TILES", "WARPS", "PRODUCERS", "STAGES", "SPLIT", "CLUSTERED")
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
MOST_BLOCKS = 1024  # where blocks share K
USUAL_MULTIPROCESSORS = 100  # about as many as data center GPUs have
WIDEST = 128  # batch tile where groups have no sums of their own: for most types registers hold those of 32 rows
LARGE_BATCH = 32  # batch tile from which on blocks would read the activations too often
# Tiles along N and warps that share them: 32 rows for each, whose sums fill its registers; 16 where more do than fit.
TALL = ((2, 4), (4, 8), (2, 8))
TALL_STEP = 16  # columns
MOST_WARPS = 8  # of a block whose warps share K
BLOCK_MARGIN = 18 * 1024  # bytes of shared memory that sums may take besides the stages


@dataclass(frozen=True, slots=True)
class Problem:
    """A product with a packed weight: everything a configuration may depend on.

    Attributes
    ----------
    form : WeightFormat
        In an order that GPUs read.
    activation, scale : DataType
    bias : bool
    m, n, k : int
        `m` as `bucket` gives it where the problem is a key.
    epilogue : str
        Of `EPILOGUES`.
    """

    form: WeightFormat
    activation: DataType
    scale: DataType
    bias: bool
    m: int
    n: int
    k: int
    epilogue: str = "none"


def named_problem(
    weight: str | DataType, activation: DataType, group_size: int, shape: tuple[int, int, int], bias: bool = False
) -> Problem:
    """Return the problem of M, N and K for what `tilus.quantize` takes as a type: `u4`, `mxfp4`, `u3:g64:bf16`."""
    sample = np.ones((1, 16), NUMPY_TYPES[activation.name])
    with knobs.scope(target="simt"):  # in the order of GPUs
        form = quantize(sample, weight, group_size).format.of_stored
    form = form if form.tensor_scale == 1.0 else replace(form, tensor_scale=ANY_SCALE)
    return Problem(form, activation, form.scale or activation, bias, *shape)


@dataclass(frozen=True, slots=True)
class Configuration:
    """A program and its compile-time constants."""

    program: Kernel
    constants: tuple[tuple[str, Any], ...]

    def __getitem__(self, name: str) -> Any:
        return dict(self.constants)[name]

    def get(self, name: str, default: int) -> int:
        """Return a constant that not every program has."""
        value: int = dict(self.constants).get(name, default)
        return value

    def replace(self, **constants: Any) -> Configuration:
        """Return the configuration with other values of some constants."""
        return Configuration(self.program, tuple((dict(self.constants) | constants).items()))

    @property
    def alone(self) -> Configuration:
        """The configuration whose blocks do not share K."""
        return self.replace(SPLIT=1, **({"CLUSTERED": 0} if self.get("CLUSTERED", 0) else {}))

    @property
    def kernel(self) -> BoundKernel:
        """The program with its constants fixed."""
        return self.program.bind(**dict(self.constants))

    @property
    def adder(self) -> BoundKernel | None:
        """What finishes the product where blocks share K or results are of pairs."""
        return adding_kernel(dict(self.constants))

    @property
    def label(self) -> str:
        """What tells it from the others."""
        constants = dict(self.constants)
        return ", ".join(f"{name} {constants[name]}" for name in VARIED if name in constants)


@lru_cache(maxsize=4096)
def bucket(m: int, form: WeightFormat, activation: DataType) -> int:
    """Return the batch that stands for a batch of `m`: 1, the batch tile, a power of two beyond the largest tile.

    Kernels take any M; only the choice among them goes by the bucket.
    """
    if m == 1:
        return 1
    tiles = gpu_batch_tiles(form.dtype, activation)
    return next((size for size in tiles if m <= size), min(1 << (m - 1).bit_length(), LARGEST_BUCKET))


def default_configuration(problem: Problem, bm: int | None = None, target: str = "sm_80") -> Configuration:
    """Return what is taken where nothing is known about the device but its target: `fair_split` for a usual one."""
    tile = bm or rows_per_block(problem.m, "cuda", problem.form.dtype, problem.activation)
    program, constants = matmul_program(
        problem.form, problem.activation, problem.scale, tile, problem.bias, k=problem.k
    )
    alone = Configuration(program, tuple(constants.items()))
    split = fair_split(blocks(problem, alone), trips(problem, alone), USUAL_MULTIPROCESSORS)
    cluster = {"CLUSTERED": 1} if may_be_cluster(problem, alone, split, target) else {}
    return alone.replace(SPLIT=split, **cluster, **ending(problem.epilogue))


def blocks(problem: Problem, configuration: Configuration) -> int:
    """Return the blocks that a product takes, those that share K counted as one."""
    rows = configuration.get("TILES", 1) * problem.form.pack.tile[0]
    count: int = -(-problem.m // configuration["BM"]) * -(-problem.n // rows)
    return count


def trips(problem: Problem, configuration: Configuration) -> int:
    """Return the trips of a loop over all of K."""
    return -(-problem.k // (configuration.get("SLICES", 1) * problem.form.pack.tile[1]))


def splits(problem: Problem, configuration: Configuration, target: str) -> Iterator[Configuration]:
    """Yield a configuration with every number of blocks that may share K, as a cluster where they can be one.

    Each has two trips of its loop or more, and there are not so many that a device is full without.
    """
    count, alone = trips(problem, configuration), blocks(problem, configuration)
    for split in SPLITS:
        if split == 1 or (split <= count // 2 and split == parts_of(count, split) and split * alone <= MOST_BLOCKS):
            yield configuration.replace(SPLIT=split)
            if may_be_cluster(problem, configuration, split, target):
                yield configuration.replace(SPLIT=split, CLUSTERED=1)


def may_be_cluster(problem: Problem, configuration: Configuration, split: int, target: str) -> bool:
    """Whether blocks that share K can add up their sums as a cluster; pairs of results lie in several."""
    has_clusters = "CLUSTERED" in dict(configuration.constants) and find_target(target).capability >= CLUSTERS
    return 1 < split <= MAX_CLUSTER and has_clusters and problem.epilogue != PAIRED


@cache
def configurations(problem: Problem, target: str) -> tuple[Configuration, ...]:
    """Return every configuration that a target's shared memory holds, the default one first.

    They differ in the batch tile, in how many tiles along K the warps share out, in the stages in shared memory, and in
    how many blocks share K.
    """
    first = default_configuration(problem, target=target)
    others = (c for bm in _batch_tiles(problem, first["BM"]) for c in _variants(problem, bm, target))
    return tuple(dict.fromkeys((first, *others)))


def _batch_tiles(problem: Problem, largest: int) -> list[int]:
    tiles = gpu_batch_tiles(problem.form.dtype, problem.activation)
    found = [size for size in tiles if size <= largest] or [largest]
    if problem.m > tiles[-1] == BATCH_TILES[-1]:
        widest = default_configuration(problem, WIDEST)
        if not widest["GROUP"] or widest["FOLDED"]:
            found.append(WIDEST)
    return found


def _variants(problem: Problem, bm: int, target: str) -> Iterator[Configuration]:
    first = default_configuration(problem, bm, target).alone
    pack = problem.form.pack
    room = find_target(target).max_shared_bytes - BLOCK_MARGIN - table_bytes(pack)
    for shares in _shares(problem, first):
        shared = first.replace(**shares)
        for stages in range(2, min(room // stage_size(problem, shared), DEEPEST) + 1):
            for alone in _produced(shared.replace(STAGES=stages)):
                yield from splits(problem, alone, target)


def _produced(configuration: Configuration) -> Iterator[Configuration]:
    """Yield a configuration with a producer, if it has one, and without."""
    yield configuration
    if configuration.get("PRODUCERS", 0):
        yield configuration.replace(PRODUCERS=0)


def _shares(problem: Problem, first: Configuration) -> Iterator[dict[str, Any]]:
    """Yield what the warps of a block may share: tiles along K, and tiles along N where a warp holds more than one.

    A warp with fewer rows than its registers hold leaves room for more warps, of which the others hide the latency.
    """
    if "SLICES" not in dict(first.constants):
        yield {}
        return
    (rows, width), bm = problem.form.pack.tile, first["BM"]
    yield {}
    if first["CT"] != f32:
        most, least = rows_of_warp(problem.form, problem.activation, bm), rows // problem.form.pack.warps
        for own, slices in product((most >> i for i in range(3)), (1, 2, 4, 8)):
            tiles, warps = max(own // rows, 1), slices * max(rows // own, 1)
            if own >= least and 2 <= warps <= MOST_WARPS:
                even = divides(slices * width, problem.k)
                yield {"SLICES": slices, "TILES": tiles, "WARPS": warps, "EVEN": even}
    if bm >= LARGE_BATCH and first["CT"] != f32:
        # Activations come in small steps; numbers of a float are scaled after each step, so those come all at once.
        step = first["STEP"] if first["PACK"].dtype.is_float else min(first["STEP"], TALL_STEP)
        for tiles, warps in TALL:
            yield {"SLICES": 1, "TILES": tiles, "WARPS": warps, "EVEN": divides(width, problem.k), "STEP": step}


def stage_size(problem: Problem, configuration: Configuration) -> int:
    """Return the bytes of shared memory that a trip's weights, their tables and activations take."""
    bm, tiles = configuration["BM"], configuration.get("TILES", 1)
    return configuration.get("SLICES", 1) * tile_bytes(problem.form, problem.activation, problem.scale, bm, tiles)
