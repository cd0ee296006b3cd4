"""The benchmark's table where there is no GPU: what the model predicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tilus.bench.rows import Row
from tilus.bench.shapes import Layer
from tilus.dtypes import f16
from tilus.kernels.candidates import named_problem
from tilus.kernels.devices import Device
from tilus.kernels.model import memory_bytes
from tilus.kernels.ranking import explained


def predictions(
    device: Device, layers: Sequence[Layer], batches: Sequence[int], weights: Sequence[str], group: int
) -> Iterator[Row]:
    """Yield a row for every layer, batch and type of weights, in f16; `f16` itself gets its floor alone."""
    for layer in layers:
        for m in batches:
            for weight in weights:
                yield _row(device, layer, m, weight, group)


def _row(device: Device, layer: Layer, m: int, weight: str, group: int) -> Row:
    problem = named_problem(weight, f16, group, (m, layer.n, layer.k))
    best = explained(problem, device)[0]
    found = best.prediction
    facts = {
        "device": device.name,
        "bound": found.bound,
        "configuration": best.configuration.label,
        "parts": {name: round(time, 2) for name, time in found.parts.items()},
        "fixed": round(found.fixed, 2),
        "instructions_per_weight": round(best.facts.instructions_per_weight, 3),
        "kib_in_flight": found.flight,
    }
    return Row(layer, m, weight, "tilus", found.total, found.floor, memory_bytes(problem) * 1e-12, True, facts)
