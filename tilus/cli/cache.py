"""`tilus cache`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from tilus.cli.group import Commands, as_json, main, show
from tilus.runtime import cache
from tilus.runtime.knobs import knobs


@main.group("cache", cls=Commands)
def cache_commands() -> None:
    """Look at the compiled kernels kept on disk, or remove them."""


@cache_commands.command("ls")
@as_json
def cache_ls(as_json: bool) -> None:
    """List compiled kernels, the newest first."""
    rows = [_entry_row(folder) for folder in entries()]
    if rows or as_json:
        show(str(knobs.cache_dir), rows, as_json)
    else:
        click.echo(f"{knobs.cache_dir} holds no compiled kernels")


@cache_commands.command("clear")
def cache_clear() -> None:
    """Remove all compiled kernels."""
    count, freed = len(entries()), cache.size()
    cache.clear()
    click.echo(f"removed {count} kernels, {freed / 1e6:.1f} MB, from {knobs.cache_dir}")


def entries() -> list[Path]:
    """Return the folders of the cache's entries, the newest first."""
    found = [path.parent for path in knobs.cache_dir.glob("??/*/meta.json")]
    return sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)


def _entry_row(folder: Path) -> dict[str, Any]:
    try:
        name = json.loads((folder / "meta.json").read_text())["kernel"]
    except (OSError, ValueError, KeyError):
        name = "(damaged)"
    return {
        "kernel": name,
        "target": "cuda" if (folder / "kernel.cubin").exists() else "cpu",
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "made": time.strftime("%Y-%m-%d %H:%M", time.localtime(folder.stat().st_mtime)),
        "key": folder.name[:16],
    }
