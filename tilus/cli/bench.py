"""`tilus bench`: products of real models' layers, measured on a GPU beside other systems, or predicted."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track

from tilus.bench.shapes import BATCHES, select_layers
from tilus.cli.group import as_json, main, show
from tilus.errors import TilusError

WEIGHTS = "u1,u2,u3,u4,u5,u6,u7,u8,f4e2m1"


@main.command()
@click.option("--model", "device", metavar="DEVICE", help="Predict for h100, a100, ...: no GPU is needed.")
@click.option("--layers", "layers", multiple=True, metavar="NAME", help="llama-3.3-70b, llama-3.3-70b:o; all, if none.")
@click.option("--batches", default=",".join(map(str, BATCHES)), show_default=True, help="M, separated by commas.")
@click.option("--weights", default=WEIGHTS, show_default=True, help="Types, separated by commas.")
@click.option("--group", default=128, show_default=True, help="Weights that share a scale.")
@click.option("--measured", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A result, to compare.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for JSON and plots.")
@as_json
def bench(
    device: str | None, layers: Sequence[str], batches: str, weights: str, group: int, measured: Path | None,
    out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Time quantized products of real models' layers, with f16 activations, beside their floors.

    With --model nothing runs: candidates are compiled, their machine code is read, and times are PREDICTED. The first
    run for a type takes a minute; what was read is kept. For example:

        tilus bench --model h100 --layers llama-3.3-70b:o --weights u2,u4
    """
    from tilus.bench.prediction import predictions  # loads the compiler
    from tilus.bench.rows import read_row, table
    from tilus.kernels.devices import find_device

    chosen, sizes, kinds = select_layers(layers), _numbers(batches), weights.split(",")
    known = [read_row(record) for record in json.loads(measured.read_text())["rows"]] if measured else []
    if device is None:
        raise TilusError("no device is named", hint="tilus bench --model h100 predicts")
    found = find_device(device)
    jobs = predictions(found, chosen, sizes, kinds, group)
    total, console = len(chosen) * len(sizes) * len(kinds), Console(stderr=True)
    rows = list(track(jobs, "compiling", total, console=console, disable=not sys.stderr.isatty()))
    lines = table(rows, known)
    if as_json:
        click.echo(json.dumps({"device": found.name, "rows": [row.record() for row in rows]}, indent=1))
    else:
        show(f"PREDICTED for {found.name}, nothing was measured: f16 activations, groups of {group}", lines, False)
        click.echo("published: scales per channel, timed by do_bench, which adds about 10 us to a replayed graph")


def _numbers(text: str) -> list[int]:
    parts: list[Any] = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise TilusError(f"expected numbers from 1 on, separated by commas, got {text!r}", hint="for instance 1,16,64")
    return [int(part) for part in parts]
