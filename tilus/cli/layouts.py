"""`tilus dtypes` and `tilus layout`."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import click

from tilus.casts import best_unpacking, parts, unpack_values
from tilus.cli.group import as_json, main, show
from tilus.dtypes import ALL, DataType, PackedTernary, bf16, dtype, f16
from tilus.errors import LayoutError, TilusError
from tilus.layouts import BitLayout, RegisterLayout, index_table, offset_table, parse, parse_bits, parse_shared
from tilus.layouts.picture import draw

MOST_ELEMENTS = 1 << 16  # of a layout, in a table
CAST_TARGETS = ("f16", "bf16", "f8e4m3", "i8")


@main.command()
@as_json
def dtypes(as_json: bool) -> None:
    """List all data types: bits, range, kind, and what unpacking them costs a GPU.

    Costs are instructions per element: those on the pipe of logical instructions, and all, of numbers for matrix
    products. `=` stands before a type whose every value the target holds exactly; `parts` for sums of two halves,
    `table` for codes that are looked up, `digits` for digits that multiplications take out of their byte, `by bf16` for
    a cast of the bf16 number, `single` for casts of one code after another.
    """
    show("data types", [_dtype_row(each) for each in ALL], as_json)


def _dtype_row(kind: DataType) -> dict[str, Any]:
    return {
        "name": kind.name,
        "bits": float(kind.bits_per_element),
        "kind": _kind(kind),
        "least": kind.min_value,
        "greatest": kind.max_value,
        "codes": kind.num_codes,
        **{f"to {target}": _cast_text(kind, dtype(target)) for target in CAST_TARGETS},
        "bits for f16": _bits_text(kind),
    }


def _cast_text(kind: DataType, target: DataType) -> str:
    """Return what unpacking to a target costs, or how else it is done."""
    if kind.nbits > 8 or kind.is_boolean or kind == target:
        return ""
    exact = "=" if _is_exact(kind, target) else " "
    best = best_unpacking(kind, target)
    if best is not None:
        return f"{exact}{best.alu:.2f} {best.issue:.2f}"
    if isinstance(kind, PackedTernary) and target.nbits == 16:
        return f"{exact}digits"
    if parts(kind, target) is not None:
        return f"{exact}parts"
    other = best_unpacking(kind, bf16) if target == f16 else None
    if other is not None:
        recipe = unpack_values(other.bits, kind, target)
        if recipe is not None:
            return f"{exact}{recipe.alu / other.elements:.2f} {recipe.issue / other.elements:.2f}"
        return f"{exact}by bf16"
    return f"{exact}table" if kind.is_codebook and target.is_float else f"{exact}single"


def _is_exact(kind: DataType, target: DataType) -> bool:
    values = kind.decode(range(kind.num_codes))
    finite = values[values == values]
    return bool((target.decode(target.encode(finite)) == finite).all())


def _bits_text(kind: DataType) -> str:
    best = best_unpacking(kind, dtype("f16"))
    return "" if best is None else best.bits.pattern


def _kind(kind: DataType) -> str:
    if kind.is_integer:
        return "signed integer" if kind.is_signed else "unsigned integer"
    names = {"is_float": "float", "is_codebook": "codebook", "is_boolean": "boolean"}
    return next((name for attribute, name in names.items() if getattr(kind, attribute)), "packed codebook")


@main.command()
@click.argument("expression")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Draw it: a file .svg or .png.")
@as_json
def layout(expression: str, out: Path | None, as_json: bool) -> None:
    """Show who holds each element of a layout.

    Which thread and register for a register layout, which address for a shared one; for a bit layout, which bit of
    which element lies where in a thread's words. TYPE:TARGET stands for the bit layout that weights of a type are
    packed in, `u3:f16` for instance.

    Example: tilus layout "local(2, 1) * spatial(8, 4) * local(1, 2)"
    """
    found = _read_layout(expression)
    if out is not None:
        draw(found, out)
        click.echo(f"wrote {out}")
        return
    _check_size(expression, found)
    if not as_json:
        click.echo(found.show())
        return
    record: dict[str, Any] = {"layout": str(found)}
    if isinstance(found, BitLayout):
        # For every word and position: the element, and which bit of it.
        owner = [[found(word, place) for place in range(32)] for word in range(found.num_words)]
        click.echo(json.dumps(record | {"elements": found.num_elements, "owner": owner}))
        return
    record["shape"] = list(found.shape)
    if isinstance(found, RegisterLayout):
        # index[thread][local] is the element that this register of this thread holds
        record |= {"threads": found.num_threads, "locals": found.local_size, "index": index_table(found).tolist()}
    else:
        record |= {"storage": found.storage_size, "offset": offset_table(found).tolist()}
    click.echo(json.dumps(record))


def _check_size(expression: str, found: Any) -> None:
    """Refuse a table that nobody reads and that takes minutes to write."""
    count = found.num_words * 32 if isinstance(found, BitLayout) else prod(found.shape)
    if count > MOST_ELEMENTS:
        raise LayoutError(
            f"{expression} has {count} elements, a table shows at most {MOST_ELEMENTS}",
            hint="show one factor of it: a product repeats its right side for every element of its left side",
        )


def _read_layout(expression: str) -> Any:
    if expression.startswith("bits("):
        return parse_bits(expression)
    source, colon, target = expression.partition(":")
    if colon:
        best = best_unpacking(dtype(source), dtype(target))
        if best is None:
            others = [f"{source}:{t}" for t in CAST_TARGETS if best_unpacking(dtype(source), dtype(t)) is not None]
            raise LayoutError(
                f"{source} has no bit layout for {target}",
                hint=f"there is {', '.join(others)}" if others else "there is none for any target",
            )
        return best.bits
    try:
        return parse(expression)
    except TilusError as as_register:
        try:
            return parse_shared(expression)
        except TilusError:
            raise as_register from None
