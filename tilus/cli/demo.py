"""`tilus demo`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import click
from rich.console import Console

import tilus
from tilus.cli.group import as_json, main
from tilus.errors import TilusError
from tilus.ir.target import CUDA_TARGETS


@main.command()
@click.option("--types", default="u4,u3,f4e2m1", show_default=True, help="Weight types, separated by commas.")
@click.option("--group", default=32, show_default=True, help="Weights that share a scale; -1 for whole rows.")
@click.option("--sentences", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="One per line.")
@click.option("--layers", type=click.IntRange(1), help="Quantize the first N linear layers only.")
@click.option("--target-arch", default="sm_90a", type=click.Choice(CUDA_TARGETS), show_default=True)
@as_json
def demo(types: str, group: int, sentences: Path | None, layers: int | None, target_arch: str, as_json: bool) -> None:
    """Quantize the linear layers of a real model, run it on this CPU, check it, and look at its GPU kernels."""
    try:
        from tilus.demo import Options, run_demo  # loads torch
    except ImportError as error:
        raise TilusError(f"the demo needs torch: {error}", hint="pip install 'tilus-vm[dev]'") from error
    names = tuple(name.strip() for name in types.split(",") if name.strip())
    options = Options(tuple(map(tilus.dtype, names)), group, sentences, target_arch, layers)
    report = run_demo(options)
    if as_json:
        click.echo(json.dumps(report.record(), indent=2))
    else:
        report.print(Console() if sys.stdout.isatty() else Console(width=shutil.get_terminal_size((160, 24)).columns))
    if report.problems:
        raise TilusError("the demo's own checks failed:\n" + "\n".join(f"  {text}" for text in report.problems))
