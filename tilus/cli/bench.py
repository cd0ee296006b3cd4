"""`tilus bench`: products of real models' layers, measured on a GPU beside other systems, or predicted."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track

from tilus.bench.plots import draw
from tilus.bench.rows import Row, read_row, table
from tilus.bench.shapes import BATCHES, select_layers
from tilus.cli.group import as_json, main, show
from tilus.errors import TilusError

WEIGHTS = "u1,u2,u3,u4,u5,u6,u7,u8,f4e2m1,mxfp4,nvfp4"
_VERSIONS = ("tilus-vm", "torch", "triton", "cupy-cuda13x", "nvidia-cuda-nvrtc", "vllm", "gemlite", "bitblas", "marlin")


@main.command()
@click.option("--model", "device", metavar="DEVICE", help="Predict for h100, a100, ...: no GPU is needed.")
@click.option("--layers", "layers", multiple=True, metavar="NAME", help="llama-3.3-70b, llama-3.3-70b:o; all, if none.")
@click.option("--batches", default=",".join(map(str, BATCHES)), show_default=True, help="M, separated by commas.")
@click.option("--weights", default=WEIGHTS, show_default=True, help="Types, separated by commas.")
@click.option("--group", default=128, show_default=True, help="Weights that share a scale.")
@click.option("--systems", default="", metavar="NAMES", help="To measure: tilus,cuBLAS,...; all, if none.")
@click.option("--measured", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A result, to compare.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the JSON file and plots.")
@as_json
def bench(
    device: str | None, layers: Sequence[str], batches: str, weights: str, group: int, systems: str,
    measured: Path | None, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Time quantized products of real models' layers, with f16 activations, beside their floors.

    On a GPU results are checked, then timed by replaying a CUDA graph over copies of the weights that do not fit the
    second-level cache, beside what a copy and a large matmul reach in the same run, and beside other systems: those
    that are installed; for the rest it says why not. Candidates are timed first (TILUS_TUNE=1).

    With --model nothing runs: candidates are compiled, their machine code is read, and times are PREDICTED. The first
    run for a type takes a minute; what was read is kept. Examples:

        tilus bench --out results

        tilus bench --model h100 --layers llama-3.3-70b:o --weights u2,u4
    """
    chosen, sizes, kinds = select_layers(layers), _numbers(batches), weights.split(",")
    known = _read_rows(measured) if measured else []
    if out is not None:
        _check_folder(out)  # before anything takes minutes
    if device is not None:
        record, rows = _predict(device, chosen, sizes, kinds, group)
        title = f"PREDICTED for {record['device']}, nothing was measured: {_operands(group)}"
    else:
        record, rows = _measure(systems, chosen, sizes, kinds, group)
        title = (
            f"{record['device']}: a copy moves {record['copy_tb_per_s']:.2f} TB/s, a matmul does "
            f"{record['matmul_tflop_per_s']:.0f} TFLOP/s; {_operands(group)}"
        )
    record |= _provenance() | {"rows": [row.record() for row in rows]}
    if out is not None:
        _write(record, rows, title, out)
    if as_json:
        click.echo(json.dumps(record, indent=1))
        return
    show(title, table(rows, known), False)
    if device is not None:
        click.echo("published: scales per channel, timed by do_bench, which adds about 10 us to a replayed graph")
    for one in record["refusals"]:
        product = ", ".join(filter(None, (one["system"], one["weight"], one["layer"])))
        click.echo(f"no time of {product}: {one['reason']}")


def _predict(
    name: str, layers: Sequence[Any], batches: Sequence[int], weights: Sequence[str], group: int
) -> tuple[dict[str, Any], list[Row]]:
    from tilus.bench.prediction import predictions  # loads the compiler
    from tilus.kernels.devices import find_device

    device = find_device(name)
    jobs = predictions(device, layers, batches, weights, group)
    rows = list(_tracked(jobs, "predicting", len(layers) * len(batches) * len(weights)))
    rates = {"copy_tb_per_s": device.memory, "matmul_tflop_per_s": device.tensor}
    return {"device": device.name, "predicted": True, **rates, "refusals": []}, rows


def _measure(
    systems: str, layers: Sequence[Any], batches: Sequence[int], weights: Sequence[str], group: int
) -> tuple[dict[str, Any], list[Row]]:
    from tilus.bench.gpu import CudaMachine, measure, measure_rates  # loads torch
    from tilus.bench.peers import PEERS
    from tilus.runtime.knobs import knobs

    wanted = systems.split(",") if systems else [peer.name for peer in PEERS]
    unknown = sorted(set(wanted) - {peer.name for peer in PEERS})
    if unknown:
        raise TilusError(f"no system is called {unknown[0]!r}", hint=f"there are {', '.join(p.name for p in PEERS)}")
    machine = CudaMachine()
    rates = measure_rates(machine)
    peers = [peer for peer in PEERS if peer.name in wanted]
    with knobs.scope(tune=True):
        jobs = measure(machine, rates, peers, layers, batches, ["f16", *weights], group)
        found = list(_tracked(jobs, "measuring", None))
    rows = [one for one in found if isinstance(one, Row)]
    refusals = [
        {"system": one.system, "weight": one.weight, "layer": one.layer, "reason": one.reason}
        for one in found
        if not isinstance(one, Row)
    ]
    reached = {"copy_tb_per_s": rates.copy, "matmul_tflop_per_s": rates.matmul}
    return {"device": machine.name, "predicted": False, **reached, "refusals": refusals}, rows


def _tracked(jobs: Iterable[Any], what: str, total: int | None) -> Iterable[Any]:
    return track(jobs, what, total, console=Console(stderr=True), disable=not sys.stderr.isatty())


def _operands(group: int) -> str:
    return f"f16 activations, groups of {group}, of formats their own"


def _read_rows(path: Path) -> list[Row]:
    """Return the rows of an earlier result."""
    try:
        return [read_row(row) for row in json.loads(path.read_text())["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise TilusError(
            f"{path} is no result of `tilus bench`: {type(error).__name__}: {error}",
            hint="expected a file bench-measured-*.json or bench-predicted-*.json, as --out writes",
        ) from error


def _check_folder(folder: Path) -> None:
    """Raise an error where a folder could not be written to; nothing is made."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise TilusError(f"cannot write to {folder}: {error.strerror}", hint="choose a folder with --out") from error


def _write(record: dict[str, Any], rows: Sequence[Row], title: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kind = "predicted" if record["predicted"] else "measured"
    name = record["device"].replace(" ", "-")
    path = folder / f"bench-{kind}-{name}-{record['date']}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    pictures = draw(rows, record["copy_tb_per_s"], record["matmul_tflop_per_s"], title, folder)
    click.echo(f"wrote {', '.join(map(str, [path, *pictures]))}", err=True)


def _provenance() -> dict[str, Any]:
    """Return when and with what a result was made."""
    versions = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"date": time.strftime("%Y-%m-%d"), "versions": versions, "command": ["tilus", *sys.argv[1:]]}


def _numbers(text: str) -> list[int]:
    parts: list[Any] = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise TilusError(f"expected numbers from 1 on, separated by commas, got {text!r}", hint="for instance 1,16,64")
    return [int(part) for part in parts]
