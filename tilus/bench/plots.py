"""Pictures of a benchmark: how far from the floor, and where on the roofline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tilus.bench.rows import Row

_COLUMNS = 4
_INCHES = 4.0


def draw(rows: Sequence[Row], memory: float, tensor: float, title: str, folder: Path) -> list[Path]:
    """Write `floor.png` and `roofline.png`.

    Parameters
    ----------
    rows : sequence of Row
    memory, tensor : float
        The roof: TB/s and TFLOP/s.
    title : str
    folder : Path
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"floor.png": _floors(rows), "roofline.png": _roofline(rows, memory, tensor)}
    for name, figure in pictures.items():
        figure.suptitle(title, fontsize="small", wrap=True)
        figure.savefig(folder / name, dpi=120)
    return [folder / name for name in pictures]


def _figure(panels: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(panels, _COLUMNS)
    lines = -(-panels // columns)
    figure = Figure(figsize=(_INCHES * columns, _INCHES * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    return figure, list(axes.flat)


def _curves(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Return the rows of each system and type, by batch."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.m):
        found.setdefault((row.system, row.weight), []).append(row)
    return found


def _floors(rows: Sequence[Row]) -> Any:
    """Draw time over floor by batch, a panel for each layer, a line for each system and type."""
    layers = list(dict.fromkeys(row.layer for row in rows))
    figure, panels = _figure(len(layers))
    for layer, axes in zip(layers, panels, strict=False):
        for (system, weight), curve in _curves([row for row in rows if row.layer == layer]).items():
            batches = [row.m for row in curve]
            over = [row.microseconds / row.floor for row in curve]
            axes.plot(batches, over, "o-" if system == "tilus" else "x--", label=f"{system} {weight}")
        axes.set(title=f"{layer}, {layer.n} x {layer.k}", xlabel="M", ylabel="time / floor", ylim=(0, None))
        axes.set_xscale("log", base=2)
        axes.axhline(1, color="black", linewidth=0.8)
    panels[0].legend(fontsize="x-small")
    for axes in panels[len(layers) :]:
        axes.set_visible(False)
    return figure


def _roofline(rows: Sequence[Row], memory: float, tensor: float) -> Any:
    """Draw TFLOP/s by operations for a byte that must move."""
    figure, [axes] = _figure(1)
    for (system, weight), curve in _curves(rows).items():
        operations = [2e-12 * row.m * row.layer.n * row.layer.k for row in curve]
        rates = [count / row.microseconds * 1e6 for count, row in zip(operations, curve, strict=True)]
        intensity = [count / row.terabytes for count, row in zip(operations, curve, strict=True)]
        axes.plot(intensity, rates, "o" if system == "tilus" else "x", markersize=4, label=f"{system} {weight}")
    ridge = tensor / memory
    ends = [1.0, ridge, max(20 * ridge, 10_000.0)]
    axes.plot(ends, [min(end * memory, tensor) for end in ends], color="black", linewidth=0.8)
    axes.set(xlabel="FLOP / byte", ylabel="TFLOP/s", xscale="log", yscale="log")
    axes.legend(fontsize="x-small")
    return figure
