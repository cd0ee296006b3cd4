"""The bit layouts that the search found: a readable file with a line for each type and target."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tilus.casts.forms import form_named
from tilus.casts.unpack import Unpacking, unpack
from tilus.dtypes import DataType, dtype
from tilus.layouts.bits import BitLayout, parse_bits

PATH = Path(__file__).with_name("layouts.txt")
TARGETS = ("f16", "bf16", "f8e4m3", "i8")
HEADER = """\
# Bit layouts with the fewest instructions; `python -m tilus.casts` searches for them anew and writes this file.
# issue, alu: instructions per element, and those of them that the pipe of logical instructions executes.
# type   target  form       issue    alu classes  bit layout
"""


def sources() -> Iterator[DataType]:
    """Yield the types of 1 to 8 bits that the table is for."""
    for n in range(1, 9):
        yield dtype(f"u{n}")
        yield dtype(f"i{n}")
    for n in range(2, 9):
        yield from (dtype(f"f{n}e{x}m{n - 1 - x}") for x in range(1, n))
    yield dtype("t2")


def row(best: Unpacking) -> str:
    """Return a line of the file."""
    form = best.form
    return (
        f"{form.source.name:8} {form.target.name:7} {form.name:9} {best.issue:6.3f} {best.alu:6.3f} "
        f"{best.classes:3}  {best.bits}"
    )


@cache
def _table() -> dict[tuple[str, str], tuple[str, BitLayout]]:
    lines = (line for line in PATH.read_text().splitlines() if not line.startswith("#"))
    fields = (line.split(None, 6) for line in lines)
    return {(source, target): (form, parse_bits(text)) for source, target, form, *_, text in fields}


@cache
def best_unpacking(source: DataType, target: DataType) -> Unpacking | None:
    """Return the table's way to unpack a type, None if it has none: the target cannot spell the type."""
    found = _table().get((source.name, target.name))
    if found is None:
        return None
    return unpack(found[1], form_named(found[0], source, target))
