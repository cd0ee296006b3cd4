"""`tilus explain`: which configuration multiplies a weight on a GPU, what is expected of it, and what bounds it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

import tilus
from tilus.cli.arguments import product_shape
from tilus.cli.group import as_json, main, show
from tilus.errors import LaunchError, TilusError

_REASONS = {
    "memory": "the bytes of weights, scales and activations; fewer bits would help, nothing else",
    "l2": "what blocks read from the second-level cache, activations above all; larger tiles would help",
    "latency": "too little is in flight, of bytes or of warps; more stages or blocks would help",
    "issue": "the instructions that unpack weights; fewer of them would help",
    "shared": "accesses to shared memory; larger tiles for a warp would help",
    "tensor": "the tensor cores, padding of the batch included",
}
_SHOWN = 10  # candidates


@main.command()
@click.argument("weight")
@click.option("--shape", required=True, metavar="M,N,K", help="Of the product: a batch of M, a weight [N, K].")
@click.option("--device", "name", metavar="NAME", help="h100, a100, rtx4090, ...; by default this machine's, or h100.")
@click.option("--group", default=128, show_default=True, help="Weights that share a scale; -1 for whole rows.")
@click.option("--activation", default="f16", show_default=True, help="f16, bf16 or f32.")
@as_json
def explain(weight: str, shape: str, name: str | None, group: int, activation: str, as_json: bool) -> None:
    """Say how a product with a quantized weight runs on a GPU, and what bounds it. Needs no GPU.

    The candidates are compiled, their machine code is read, and an analytical model predicts their times; the first one
    is what `tilus.matmul` takes, unless `TILUS_TUNE=1` has found a faster one on the device. Batches of similar size
    share a kernel, so the order is that of the largest of them; times are for this one, in microseconds: what each
    resource takes by itself, and all together. --json lists all. For example:

        tilus explain u4 --shape 1,8192,8192 --device h100
    """
    from tilus.kernels.candidates import named_problem  # loads the compiler
    from tilus.kernels.devices import find_device
    from tilus.kernels.dispatch import ACTIVATIONS
    from tilus.kernels.model import memory_bytes
    from tilus.kernels.ranking import explained

    if activation not in ACTIVATIONS:
        raise TilusError(f"activations are {', '.join(ACTIVATIONS)}, got {activation!r}")
    device = find_device(name or _this_gpu() or "h100")
    problem = named_problem(weight, tilus.dtype(activation), group, product_shape(shape))
    found = explained(problem, device)
    rows: list[dict[str, Any]] = [_row(one, device.latency * device.clock) for one in found]
    best, moved = found[0].prediction, memory_bytes(problem)
    if as_json:
        record = {"weight": weight, "device": asdict(device), "shape": shape, "bytes": moved, "floor": best.floor}
        click.echo(json.dumps(record | {"bound": best.bound, "candidates": rows}, indent=2))
        return
    operations = 2 * problem.m * problem.n * problem.k
    click.echo(f"{weight} x {activation}, M = {problem.m}, N = {problem.n}, K = {problem.k} on {device.name}")
    click.echo(
        f"floor {best.floor:.1f} us: {moved / 1e6:.1f} MB at {device.memory} TB/s, "
        f"{operations / 1e9:.1f} GFLOP at {device.tensor:.0f} TFLOP/s"
    )
    click.echo(
        f"taken {found[0].configuration.label}: {best.total:.1f} us predicted, {best.floor / best.total:.0%} of floor"
    )
    click.echo(f"bound {best.bound}: {_REASONS[best.bound]}\n")
    title = f"candidates, the first {min(_SHOWN, len(rows))} of {len(rows)}, predicted microseconds"
    show(title, rows[:_SHOWN], False)


def _this_gpu() -> str | None:
    from tilus.runtime.launch_cuda import device_name

    try:
        return device_name("cuda:0")
    except LaunchError:
        return None


def _row(one: Any, cycles: float) -> dict[str, Any]:
    """Return a line; a load takes so many cycles."""
    prediction, facts = one.prediction, one.facts
    times = {"time": prediction.total, "fixed": prediction.fixed, **prediction.parts}
    return {
        "configuration": one.configuration.label,
        **{name: round(time, 1) for name, time in times.items()},
        "bound": prediction.bound,
        "instr/weight": round(facts.instructions_per_weight, 2),
        "cycles/trip": round(one.facts.trip_cycles(cycles)),
        "registers": facts.registers,
        "spills": facts.spills,
        "KiB in flight": prediction.flight,
        "blocks": prediction.blocks,
        "waves": round(prediction.waves, 2),
    }
