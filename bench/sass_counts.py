"""Claim: the quantized matmul's hot loop takes few instructions per weight, at every width, without spills.

Compiles the library's program for every weight type, target and batch tile, and counts in the disassembly: no GPU is
needed, and the numbers do not depend on the machine. f16 activations and scales, groups of 128, bias; unsigned integers
have zero points. Writes `sass_counts.json` and a table to read, `sass_counts.md`, which has beside each number the one
from before casts were synthesised (`sass_counts_first_light.json`); with `--budget` also `tests/kernels/budget.txt`, to
which a test holds every kernel.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import cache

from record import RESULTS, ROOT, write
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tilus.dtypes import ALL, DataType, dtype, f16
from tilus.kernels.cost import MatmulCost, matmul_cost
from tilus.runtime.weights.packing import native_pack
from tilus.runtime.weights.weight import WeightFormat, ZeroPoint

GROUP = 128
BUDGET = ROOT / "tests" / "kernels" / "budget.txt"
COLUMNS = (
    "type",
    "target",
    "BM",
    "instructions / weight",
    "before",
    "registers",
    "spilled bytes",
    "shared bytes",
    "conflicts",
    "occupancy",
    "KiB in flight",
    "exposed loads",
)


def weight_types() -> list[DataType]:
    """Return every type that a weight can have."""
    named = (kind for kind in ALL if kind.is_bit_packed and kind.nbits <= 8 and kind != dtype("e8m0"))
    return [kind for kind in named if kind.is_integer or kind.is_float or kind.is_codebook]


def main() -> None:
    """Compile, count, print, write."""
    options = _options()
    types = weight_types() if options.types is None else [dtype(name) for name in options.types.split(",")]
    cases = [(kind, zero) for kind in types for zero in _zero_points(kind, options.all_zero_points)]
    jobs = [(kind, zero, target, bm) for kind, zero in cases for target in options.targets.split(",") for bm in (8, 16)]
    console = Console(stderr=True)
    rows = [_row(*job) for job in track(jobs, "compiling", console=console, disable=not sys.stderr.isatty())]
    Console(width=160).print(_table(rows))
    if not options.no_write:
        settings: dict[str, object] = {"group": GROUP, "activation": "f16", "scale": "f16", "bias": True}
        write("sass_counts", settings, rows, dated=False)
        (RESULTS / "sass_counts.md").write_text("\n".join(_markdown(rows)) + "\n")
        print("wrote bench/results/sass_counts.json and sass_counts.md")
    if options.budget:
        BUDGET.write_text("".join(_budget(rows)))
    spilled = [row for row in rows if row["spilled_bytes"]]
    if spilled:
        raise SystemExit(f"{len(spilled)} of {len(rows)} kernels spill")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", help="for instance u4,u3 (default: every weight type)")
    parser.add_argument("--targets", default="sm_80,sm_90a", help="(default sm_80,sm_90a)")
    parser.add_argument("--all-zero-points", action="store_true", help="unsigned integers also without zero points")
    parser.add_argument("--budget", action="store_true", help="write what tests allow, too")
    parser.add_argument("--no-write", action="store_true", help="write no result files")
    return parser.parse_args()


def _zero_points(kind: DataType, every: bool) -> tuple[ZeroPoint, ...]:
    if not kind.is_integer or kind.is_signed:
        return ("none",)
    return ("tensor", "half") if every else ("tensor",)


def _row(kind: DataType, zero: ZeroPoint, target: str, bm: int) -> dict[str, object]:
    form = WeightFormat(native_pack(kind, "cuda"), GROUP, zero)
    cost: MatmulCost = matmul_cost(form, f16, f16, bm=bm, target=target)
    return {
        "type": kind.name,
        "zero_point": zero,
        "target": target,
        "bm": bm,
        "instructions_per_weight": round(cost.instructions_per_weight, 3),
        "registers": cost.registers,
        "spilled_bytes": cost.spills,
        "shared_bytes": cost.shared_bytes,
        "bank_conflicts": cost.bank_conflicts,
        "blocks_per_sm": cost.blocks_per_sm,
        "occupancy": round(cost.occupancy, 3),
        "bytes_in_flight": cost.bytes_in_flight,
        "exposed_loads": round(cost.exposed_loads, 2),
        "loop_instructions": len(cost.loop.instructions),
        "weights_per_trip": cost.weights_per_trip,
        "mix": {name: count for name, count in cost.loop.mix.items() if count},
    }


def _cells(row: dict[str, object]) -> Iterator[str]:
    yield f"{row['type']}" + (" (half)" if row["zero_point"] == "half" else "")
    before = _before().get((row["type"], row["zero_point"], row["target"], row["bm"]))
    yield from (f"{row['target']}", f"{row['bm']}", f"{row['instructions_per_weight']:.2f}")
    yield from ("-" if before is None else f"{before:.2f}", f"{row['registers']}")
    yield from (f"{row['spilled_bytes']}", f"{row['shared_bytes']}", f"{row['bank_conflicts']}")
    yield from (f"{row['occupancy']:.0%}", f"{row['bytes_in_flight'] / 1024:.0f}", f"{row['exposed_loads']:.1f}")


@cache
def _before() -> dict[tuple[object, ...], float]:
    """Return the instructions per weight of the first version."""
    rows = json.loads((RESULTS / "sass_counts_first_light.json").read_text())["rows"]
    return {
        tuple(row[k] for k in ("type", "zero_point", "target", "bm")): row["instructions_per_weight"] for row in rows
    }


def _budget(rows: Sequence[dict[str, object]]) -> Iterator[str]:
    yield "# Instructions per weight that the quantized matmul's hot loop may take, batch tile 8, f16, groups of 128.\n"
    yield "# `python bench/sass_counts.py --budget` writes this file.\n"
    for row in rows:
        if row["bm"] == 8:
            name, zero, target = (str(row[k]) for k in ("type", "zero_point", "target"))
            yield f"{name:8} {zero:7} {target:7} {row['instructions_per_weight']:6.3f}\n"


def _table(rows: Sequence[dict[str, object]]) -> Table:
    table = Table(title="quantized matmul, hot loop", title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("type", "target") else "right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _markdown(rows: Sequence[dict[str, object]]) -> Iterator[str]:
    yield "# Quantized matmul: what its hot loop takes"
    yield ""
    yield f"Written by `python bench/sass_counts.py`. f16 activations and scales, groups of {GROUP}, bias; unsigned"
    yield 'integers have zero points. "conflicts": shared-memory wavefronts beyond the ideal in the loop, per block.'
    yield '"KiB in flight": weights on their way to a multiprocessor that is full of blocks. "exposed loads": how often'
    yield "a trip of the loop waits for all of a load from device memory."
    yield ""
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|" + "---|" * len(COLUMNS)
    for row in rows:
        yield "| " + " | ".join(_cells(row)) + " |"


if __name__ == "__main__":
    main()
