"""The group of all commands, and how they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

import tilus
from tilus.errors import TilusError


class Commands(click.Group):
    """A group whose commands end with a clean message where the library raises its own error."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except TilusError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(tilus.__version__, package_name="tilus-vm")
def main() -> None:
    """Kernels for low-precision numbers, written as programs over tiles."""


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def show(title: str, rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print rows, which share their keys, as a table or as JSON."""
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for name in rows[0] if rows else ():
        table.add_column(name, justify="right" if isinstance(rows[0][name], int | float) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(f"{value:.6g}" if isinstance(value, float) else str(value)) for value in row.values()))
    # A pipe or a file has no width: lines are not to be folded there.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
