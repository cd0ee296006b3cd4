"""Claim: the quantized matmul's hot loop takes few instructions per weight, at every width, without spills.

Compiles the library's program for every weight type, target and batch tile, and counts in the disassembly: no GPU is
needed, and the numbers do not depend on the machine. f16 scales, bias; unsigned integers have zero points. All types
are counted with f16 activations and groups of 128, those of `VARIED` also with bf16 and groups of 32; two formats with
scales of 8 bits with groups and scales of their own. Writes
`sass_counts.json` and a table to read, `sass_counts.md`, which has beside each number the one from before casts were
synthesised (`sass_counts_first_light.json`); with `--budget` also `tests/kernels/budget.txt`, to which a test holds
every kernel.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import missed_targets
from record import RESULTS, ROOT, write
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tilus.dtypes import ALL, DataType, bf16, dtype, f16
from tilus.kernels.candidates import named_problem
from tilus.kernels.cost import MatmulCost, matmul_cost
from tilus.runtime.weights.packing import native_pack
from tilus.runtime.weights.weight import WeightFormat, ZeroPoint

GROUP = 128
VARIED = ("u4", "u3", "i8", "f4e2m1", "nf4")  # a type for each way in which numbers become values
BUDGET = ROOT / "tests" / "kernels" / "budget.txt"
BUDGET_KEYS = ("type", "zero_point", "group", "activation", "bm", "target")
COLUMNS = (
    "type",
    "group",
    "activation",
    "target",
    "BM",
    "instructions / weight",
    "producer's",
    "before",
    "registers",
    "spilled bytes",
    "shared bytes",
    "conflicts",
    "occupancy",
    "KiB in flight",
    "exposed loads",
)


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel to count: what it multiplies, by what, and for what."""

    name: str
    form: WeightFormat
    activation: DataType
    target: str
    bm: int


def weight_types() -> list[DataType]:
    """Return every type that a weight can have."""
    packed = [kind for kind in ALL if kind.is_bit_packed and kind.nbits <= 8 and kind != dtype("e8m0")]
    found = [kind for kind in packed if kind.is_integer or kind.is_float or kind.is_codebook]
    return [*found, dtype("t1.6")]


def weight_names() -> list[str]:
    """Return all that is counted: types and formats."""
    return [*(kind.name for kind in weight_types()), *missed_targets.FORMATS]


def main() -> None:
    """Compile, count, print, write."""
    options = _options()
    names = weight_names() if options.types is None else options.types.split(",")
    jobs = [job for name in names for job in _cases(name, options)]
    console = Console(stderr=True)
    rows = [_row(job) for job in track(jobs, "compiling", console=console, disable=not sys.stderr.isatty())]
    Console(width=160).print(_table(rows))
    if not options.no_write:
        write("sass_counts", {"scale": "f16", "bias": True}, rows, dated=False)
        (RESULTS / "sass_counts.md").write_text("\n".join(_markdown(rows)) + "\n")
        missed_targets.main()
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


def _cases(name: str, options: argparse.Namespace) -> Iterator[Case]:
    """Yield the kernels of a type or format to count, those of one target and batch tile together."""
    activations = (f16, bf16) if name in (*VARIED, *missed_targets.FORMATS) else (f16,)
    targets = options.targets.split(",")
    for form, activation, target, bm in product(_forms(name, options), activations, targets, (8, 16)):
        yield Case(name, form, activation, target, bm)


def _forms(name: str, options: argparse.Namespace) -> Iterator[WeightFormat]:
    if name in missed_targets.FORMATS:
        yield named_problem(name, f16, GROUP, (1, 1, 1)).form
        return
    kind = dtype(name)
    groups = (GROUP, 32) if name in VARIED else (GROUP, -1) if name == "t1.6" else (GROUP,)
    for zero, group in product(_zero_points(kind, options.all_zero_points), groups):
        yield WeightFormat(native_pack(kind, "cuda"), group, zero)


def _row(case: Case) -> dict[str, object]:
    form = case.form
    cost: MatmulCost = matmul_cost(form, case.activation, form.scale or f16, bm=case.bm, target=case.target)
    return {
        "type": case.name,
        "zero_point": form.zero_point,
        "group": form.group_size,
        "activation": case.activation.name,
        "target": case.target,
        "bm": case.bm,
        "instructions_per_weight": round(cost.instructions_per_weight, 3),
        "producer_per_weight": round(cost.producer_share, 3),
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
    usual = row["group"] == GROUP and row["activation"] == "f16"
    before = _before().get((row["type"], row["zero_point"], row["target"], row["bm"])) if usual else None
    yield from (f"{row['group']}" if row["group"] != -1 else "row", f"{row['activation']}")
    yield from (f"{row['target']}", f"{row['bm']}", f"{row['instructions_per_weight']:.2f}")
    yield f"{row['producer_per_weight']:.2f}" if row["producer_per_weight"] else "-"
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
    yield "# Instructions per weight that the quantized matmul's hot loop may take: type, zero points, group (-1: row),"
    yield " activations, batch tile, target.\n# `python bench/sass_counts.py --budget` writes this file.\n"
    for row in rows:
        if row["bm"] == 8 or row["type"] in (*VARIED, *missed_targets.FORMATS):
            name, zero, group, kind, bm, target = (row[k] for k in BUDGET_KEYS)
            limit = row["instructions_per_weight"]
            yield f"{name:8} {zero:7} {group:4} {kind:5} {bm:3} {target:7} {limit:6.3f}\n"


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
    yield from (
        "Written by `python bench/sass_counts.py`. f16 scales, but of formats their own, bias; unsigned integers have",
        "zero points. Instructions are those of the warps that multiply; copies are started by a warp of their own,",
        "whose instructions for each weight come besides (producer's). Conflicts: shared-memory wavefronts beyond the",
        "ideal in the loop, a block. KiB in flight: weights on their way to a multiprocessor that is full of blocks.",
        "Exposed loads: how often a trip of the loop waits for all of a load from device memory.",
    )
    yield ""
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|" + "---|" * len(COLUMNS)
    for row in rows:
        yield "| " + " | ".join(_cells(row)) + " |"


if __name__ == "__main__":
    main()
