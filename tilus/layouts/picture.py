"""Pictures of layouts, SVG or PNG: a cell for every element or bit, coloured by who holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tilus.errors import LayoutError
from tilus.layouts.bits import WORD, BitLayout
from tilus.layouts.maps import locate_table
from tilus.layouts.register import RegisterLayout
from tilus.layouts.shared import SharedLayout, offset_table

LARGEST = 128  # rows or columns that a picture has
_INCH = 0.36  # of a cell


def draw(layout: BitLayout | RegisterLayout | SharedLayout, path: Path) -> None:
    """Write a picture; the ending of the file's name says of which kind.

    A bit layout has a row for every word, most significant bit first, with `element.bit` in each cell. A register
    layout of two dimensions has `thread:local`, a shared one the bank and the offset.

    Raises
    ------
    LayoutError
        If the layout is not of one or two dimensions or too large, if the kind is unknown, or without matplotlib.
    """
    labels, owners, rows = _cells(layout)
    if max(owners.shape) > LARGEST:
        raise LayoutError(f"a picture has up to {LARGEST} rows and columns, {layout} takes {owners.shape}")
    if path.suffix not in (".svg", ".png"):
        raise LayoutError(f"pictures are .svg or .png, not {path.suffix or path.name!r}")
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LayoutError("pictures need matplotlib", hint="pip install matplotlib") from error
    height, width = owners.shape
    figure = Figure(figsize=((width + 2) * _INCH, (height + 2) * _INCH))
    axes = figure.add_axes((1 / (width + 2), 1 / (height + 2), width / (width + 2), height / (height + 2)))
    axes.imshow(owners % 20, cmap=colormaps["tab20"], vmin=0, vmax=20, aspect="equal", alpha=0.6)
    size = 9.0 if len(max(labels.flat, key=len)) < 6 else 6.0
    for (i, j), label in np.ndenumerate(labels):
        axes.text(j, i, label, ha="center", va="center", fontsize=size)
    axes.set_title(str(layout), fontsize=9, loc="left")
    axes.set_yticks(range(height), rows, fontsize=8)
    axes.set_xticks(range(width), _columns(layout, width), fontsize=7)
    axes.set_xticks(np.arange(width + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(height + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    figure.savefig(path)


def _columns(layout: Any, width: int) -> list[str]:
    return [str(WORD - 1 - i if isinstance(layout, BitLayout) else i) for i in range(width)]


def _cells(layout: BitLayout | RegisterLayout | SharedLayout) -> tuple[Any, Any, list[str]]:
    """Return the labels [rows, columns], the numbers that colours stand for, and the names of rows."""
    if isinstance(layout, BitLayout):
        held = [[layout(word, place) for place in reversed(range(WORD))] for word in range(layout.num_words)]
        labels = np.array([[f"{e}.{b}" for e, b in row] for row in held])
        return labels, np.array([[e for e, _ in row] for row in held]), [f"w{i}" for i in range(layout.num_words)]
    shape = layout.shape
    if len(shape) > 2:
        raise LayoutError(f"a picture has one or two dimensions, the layout {len(shape)}")
    flat = (1, *shape)[-2:]
    if isinstance(layout, RegisterLayout):
        threads, locals_ = (np.asarray(table) for table in locate_table(layout))
        owners = threads[..., 0].reshape(flat)
        text = [f"{t}:{i}" for t, i in zip(owners.ravel(), locals_.ravel(), strict=True)]
        return np.array(text).reshape(flat), owners, [str(i) for i in range(flat[0])]
    offsets = np.asarray(offset_table(layout)).reshape(flat)
    return offsets.astype(str), offsets % WORD, [str(i) for i in range(flat[0])]
