"""Measuring on a GPU: products checked, then timed by replaying a CUDA graph over copies of the weights.

Copies are so many that together they are three times the second-level cache, at least three: no call finds weights that
another left there. A graph holds several rounds over the copies, so that its own start is spread over many kernels; the
time is the median of many replays. What a copy and a large matmul reach is measured in the same run: these are floors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import torch

from tilus.bench.case import Case, Peer, Product
from tilus.bench.rows import Row
from tilus.bench.shapes import Layer
from tilus.errors import LaunchError, TilusError
from tilus.kernels.model import floor_of

COPIES = 3
IN_A_GRAPH = 24  # calls, about
REPLAYS = 31
COPIED = 1 << 30  # bytes
SQUARE = 8192
# Root of the mean square error, relative: rounding of results (2^-12 for f16, 2^-9 for bf16) leaves room for sums.
TOLERANCE = {torch.float16: 2.0**-9, torch.bfloat16: 2.0**-7}
_FAILURES = (TilusError, RuntimeError, ValueError, TypeError, AttributeError, KeyError, ImportError, AssertionError)


class Machine(Protocol):
    """What runs and times products."""

    name: str
    device: str
    l2_bytes: int

    def seconds(self, calls: Sequence[Callable[[], object]]) -> float:
        """Return the median time of one of several calls that take turns."""
        ...


class CudaMachine:
    """A GPU through torch."""

    def __init__(self, number: int = 0) -> None:
        if not torch.cuda.is_available():
            raise LaunchError(
                "torch finds no CUDA device", hint="tilus bench --model h100 predicts what one would measure"
            )
        properties = torch.cuda.get_device_properties(number)
        self.name = properties.name
        self.device = f"cuda:{number}"
        self.l2_bytes = int(properties.L2_cache_size)

    def seconds(self, calls: Sequence[Callable[[], object]]) -> float:
        """Return the median time of one of several calls that take turns, in a replayed graph."""
        stream: Any = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls:
                call()  # compiles, tunes, allocates
        torch.cuda.synchronize()
        rounds = max(IN_A_GRAPH // len(calls), 1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(rounds):
                for call in calls:
                    call()
        times: list[float] = []
        for _ in range(REPLAYS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e-3)
        return median(times) / (rounds * len(calls))


@dataclass(frozen=True, slots=True)
class Rates:
    """What the machine reached in this run: TB/s of a copy, TFLOP/s of an f16 matmul."""

    copy: float
    matmul: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no time of a system."""

    system: str
    weight: str
    layer: str
    reason: str


def measure_rates(machine: Machine, copied: int = COPIED, square: int = SQUARE) -> Rates:
    """Measure what floors are made of."""
    source = torch.zeros(copied // 4, dtype=torch.int32, device=machine.device)
    target = torch.empty_like(source)
    copy = machine.seconds([lambda: target.copy_(source)])
    a, b = (torch.randn(square, square, device=machine.device).half() for _ in range(2))
    matmul = machine.seconds([lambda: torch.matmul(a, b)])
    return Rates(2 * copied / copy * 1e-12, 2 * square**3 / matmul * 1e-12)


def measure(
    machine: Machine,
    rates: Rates,
    peers: Sequence[Peer],
    layers: Sequence[Layer],
    batches: Sequence[int],
    weights: Sequence[str],
    group: int,
) -> Iterator[Row | Refusal]:
    """Yield a row for every layer, type, system and batch, or the reason why there is none."""
    here = {peer.name: peer.missing() for peer in peers}
    for name, reason in here.items():
        if reason is not None:
            yield Refusal(name, "", "", reason)
    for layer in layers:
        for weight in weights:
            case = Case(layer, weight, group, machine.device)
            for peer in (peer for peer in peers if here[peer.name] is None):
                reason = peer.refuses(case)
                if reason is not None:
                    yield Refusal(peer.name, weight, str(layer), reason)
                    continue
                yield from _measured(machine, rates, peer, case, batches)


def _measured(
    machine: Machine, rates: Rates, peer: Peer, case: Case, batches: Sequence[int]
) -> Iterator[Row | Refusal]:
    layer = case.layer
    try:
        copies = max(COPIES, -(-3 * machine.l2_bytes // case.nbytes))
        products = [peer.prepare(case) for _ in range(copies)]
        for m in batches:
            x = torch.randn(m, layer.k, device=machine.device).to(products[0].dtype)
            error = relative_error(products[0], x)
            if not error <= TOLERANCE[x.dtype]:  # NaN is wrong too
                yield Refusal(peer.name, case.weight, f"{layer}, M = {m}", f"its result is wrong: error {error:.2g}")
                continue
            seconds = machine.seconds([_call(product, x) for product in products])
            moved = case.nbytes + 2 * m * (layer.n + layer.k)
            floor = floor_of(moved, m, layer.n, layer.k, rates.copy, rates.matmul)
            facts: dict[str, Any] = {"error": error, "copies": copies, "tb_per_s": moved / seconds * 1e-12}
            yield Row(layer, m, case.weight, peer.name, seconds * 1e6, floor, moved * 1e-12, False, facts)
    except _FAILURES as failure:  # another's installation may be of any version
        yield Refusal(peer.name, case.weight, str(layer), f"{type(failure).__name__}: {failure}")
    finally:
        if machine.device.startswith("cuda"):
            torch.cuda.empty_cache()


def _call(product: Product, x: torch.Tensor) -> Callable[[], object]:
    return lambda: product.run(x)


def relative_error(product: Product, x: torch.Tensor) -> float:
    """Return the root of the mean square error of a product over that of the right result, for the worst block of rows.

    Rows of the weight repeat: every block is held against the same reference.
    """
    pattern = product.reference.float()
    exact = x.float() @ pattern.T
    blocks = product.run(x).float().reshape(x.shape[0], -1, pattern.shape[0])
    errors = (blocks - exact[:, None]).square().mean(dim=(0, 2)) / exact.square().mean()
    return float(errors.max().sqrt())
