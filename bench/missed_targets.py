"""Which targets are missed, by how much and why: a page made of what the other benchmarks counted and predicted.

Reads `cast_cost.json`, `sass_counts.json`, the table of dispatch and the newest prediction for an H100, writes
`missed_targets.md`; measures nothing itself. The targets are those that the project was designed for: for casts to f16
operations of the logic pipe per element, for the matmul's whole loop instructions per weight, with f16 activations and
groups of 128, and for a product of 8192 x 8192 microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from record import RESULTS, ROOT

from tilus.casts import linear
from tilus.dtypes import DataType, Float, dtype, f16
from tilus.kernels.configure_gpu import compute_dtype

Row = Mapping[str, Any]

CASTS = {1: 0.53, 2: 0.56, 3: 0.72, 4: 0.63, 5: 0.91, 6: 1.06, 7: 1.10, 8: 0.50}  # integers, by bits
FLOATS = 1.5  # eXmY, to f16 and to bf16
LOOPS = {"u4": 1.25, "i4": 1.25, "u1": 1.1, "u2": 1.1}
ANY_LOOP = 2.0
FORMATS = ("mxfp4", "nvfp4")  # with scales of 8 bits
FLIGHT = 24  # KiB
WIDER = 1.15  # of that may a loop for 16 columns of the batch take
TIMES = {
    ("u1", 1): 7.0,
    ("u2", 1): 9.0,
    ("u4", 1): 14.0,
    ("u4", 64): 18.0,
    ("u4", 256): 60.0,
    ("u4", 4096): 820.0,
}  # us
ROUNDING = 0.02  # a compiled cast has an instruction or two of its own beside the recipe's
PAGE = RESULTS / "missed_targets.md"
TABLE = ROOT / "tests" / "kernels" / "dispatch.txt"

# What the loop's instructions do, by kind.
SHARES = {
    "unpacking": ("lop3", "prmt", "shf"),
    "left shifts, addresses": ("imad", "iadd", "mov", "uniform"),
    "tensor cores": ("mma",),
    "scales, sums": ("half2", "fp32"),
    "memory": ("lds", "gmem", "const", "sync"),
}

CAST_REASONS = {
    "range": "f16 has not the range of these floats, so no move of bits spells their values. They are made in bf16 and "
    "rounded: a mask and a conversion for two elements come to what bf16 takes. Multiplications by (0, factor) would "
    "take the mask's place on the other pipe, but ptxas makes constants of unequal halves anew for each use: 1.75 to "
    "2.25 became 2.6 to 3.2. Other layouts do not help, the search has the cheapest for bf16. Only casts are meant, "
    "products take bf16's numbers. f6e5m0 is not among them: its greatest value is what f16 rounds to infinity.",
    "digits": "Five digits in a byte come out by multiplications: a mask, a product with 3 and a mask for two digits, "
    "and for bf16 a shift and a constant besides, which ptxas does not put into one instruction.",
    "two parts": "There is no target for integers to bf16, which has 7 bits of mantissa: codes of 8 are a sum of two "
    "parts, each with masks, shifts and a multiply-add.",
}
LOOP_REASONS = {
    "range": "f16 has not the range: products are bf16's, and each f16 activation is a sum of two, so there are twice "
    "as many: a quarter of an instruction for each weight. Splitting an activation takes five, which the 64 rows of a "
    "warp share: .6 for each weight. With 128 rows loops would take 2.0 to 2.6, but spill where N or K is odd. At the "
    "memory's full rate an H100 issues 7 to 10 instructions for a weight of these widths.",
    "table": "A pair of codes is looked up in shared memory: a load, and the index and address of it, for two weights.",
    "digits": "As for casts: 1.5. Groups of 128 are no whole number of tiles of 160, so scales are multiplied with "
    "every second digit.",
    "scales": "Sums are multiplied by scales every 16 or 32 weights, half or a quarter of an instruction for each, and "
    "every thread converts the scales of its rows: .4, where no instruction converts e4m3 1.1.",
}


def main() -> None:
    """Write the page; the two benchmarks do it too."""
    PAGE.write_text(page(_rows("cast_cost"), _rows("sass_counts"), predictions()))
    print(f"wrote bench/results/{PAGE.name}")


def predictions() -> Sequence[Row]:
    """Return the rows of the newest prediction."""
    [*_, newest] = sorted(RESULTS.glob("bench-predicted-h100-*.json"))
    return _rows(newest.stem)


def _rows(name: str) -> Sequence[Row]:
    rows: Sequence[Row] = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    return rows


def page(casts: Sequence[Row], loops: Sequence[Row], times: Sequence[Row]) -> str:
    """Return the page's text for the rows of `cast_cost.json`, `sass_counts.json` and a prediction."""
    of_loops = (_loop_lines(loops), _wide_lines(loops), _flight_lines(loops))
    table = [line for line in TABLE.read_text().splitlines() if not line.startswith("#")]
    parts = (_head(), _cast_lines(casts), [""], *of_loops, _dispatch_lines(table), _time_lines(times))
    return "\n".join(line for part in parts for line in part) + "\n"


def _head() -> Iterator[str]:
    yield "# Targets that are missed, and why\n"
    yield "Written by `python bench/missed_targets.py` from `cast_cost.json` and `sass_counts.json`, whose pages have"
    yield "all types, from the table of kernels that dispatch takes, and from the prediction for an H100. What is not"
    yield "listed keeps its target.\n"


# --- casts ----------------------------------------------------------------------------------------------------------


def cast_target(kind: DataType, target: str) -> float:
    """Return how many logical operations an element may take: what is not said is no less than floats may."""
    return CASTS[kind.nbits] if target == "f16" and linear(kind) and kind.name != "t1.6" else FLOATS


def _cast_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the table of casts to numbers that take more than their target on one of the architectures."""
    limits = "u1 .53, u2 .56, u3 .72, u4 .63, u5 .91, u6 1.06, u7 1.10, u8 .50"
    yield f"## Casts: operations of the logic pipe per element; to f16 {limits}, signed integers the same; eXmY 1.5\n"
    yield "| type | to | target | sm_80 | sm_90a | reason |"
    yield "|---|---|---|---|---|---|"
    for name, to in dict.fromkeys((row["type"], row["to"]) for row in rows):
        kind = dtype(name)
        found = [row["numbers_alu"] for row in rows if (row["type"], row["to"]) == (name, to)]
        target = cast_target(kind, to)
        if max(found) > target + ROUNDING:
            numbers = " | ".join(f"{x:.2f}" for x in (target, *found))
            yield f"| {name} | {to} | {numbers} | {cast_reason(kind)} |"
    yield ""
    yield from (f"* **{name}**: {text}" for name, text in CAST_REASONS.items())


def cast_reason(kind: DataType) -> str:
    """Return the name of the reason why a cast takes more."""
    if kind.name == "t1.6":
        return "digits"
    return "range" if isinstance(kind, Float) else "two parts"


# --- loops ----------------------------------------------------------------------------------------------------------


def _loop_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the table of loops that take more than their target on one of the architectures, and where it goes."""
    usual = _usual(rows, 8)
    yield "## The matmul's loop: instructions per weight; u4, i4 1.25, u1, u2 1.1, all types 2.0\n"
    yield "Groups of 128, or one scale for a row, of formats their own; batches up to 8, f16; unsigned integers have"
    yield "zero points. The configuration is the default one. The shares are those of sm_90a; instructions of the"
    yield "producer, about a tenth for each weight, are not among them.\n"
    yield f"| type | group | target | sm_80 | sm_90a | {' | '.join(SHARES)} | rest | reason |"
    yield "|" + "---|" * (len(SHARES) + 7)
    for name, group in dict.fromkeys((row["type"], row["group"]) for row in usual):
        found = {row["target"]: row for row in usual if (row["type"], row["group"]) == (name, group)}
        target, counts = LOOPS.get(name, ANY_LOOP), [row["instructions_per_weight"] for row in found.values()]
        if max(counts) > target:
            numbers = (f"{x:.2f}" for x in (target, *counts, *_shares(found["sm_90a"])))
            place = "row" if group == -1 else group
            yield f"| {name} | {place} | {' | '.join(numbers)} | {loop_reason(name)} |"
    yield ""
    yield from (f"* **{name}**: {text}" for name, text in LOOP_REASONS.items())


def _wide_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the table of loops for 16 columns of the batch that take too much more than their target for 8."""
    usual = [row for row in _usual(rows, 16) if row["group"] != -1]
    narrow = {(row["type"], row["target"]): row["instructions_per_weight"] for row in _usual(rows, 8)}
    more = sorted(row["instructions_per_weight"] / narrow[row["type"], row["target"]] - 1 for row in usual)
    yield "\n## The same loop for batches up to 16: within 15 % of the target for 8\n"
    yield from (
        "A tensor-core instruction takes 8 columns, so there are twice as many, an eighth of one for each weight,",
        "and as many scales and zero points to multiply sums by, for twice the accumulators: with groups of 128 a",
        "quarter of an instruction for each weight. Unpacking alone is shared. Of u1 and u2 no part could be left out:",
        "u2 takes .50 for masks, .06 for shifts, .28 on tensor cores, .25 for scales and zero points, .08 to convert",
        "those, .05 for memory, and .08 for the loop and constants. Zero points by a product of their own would save",
        ".09, and take as much to spell them, and sums, in its operands. An H100 waits for its tensor cores there:",
        "an instruction of `mma.sync` takes 6 cycles, so 16 columns take 1.5 for each weight. Others have registers",
        "for fewer rows in a warp. Against what they take for 8 columns themselves it is "
        f"{more[0]:.0%} to {more[-1]:.0%}",
        f"more, up to {more[len(more) // 2]:.0%} for half of them.\n",
    )
    yield "| type | may take | sm_80 | sm_90a |\n|---|---|---|---|"
    for name in dict.fromkeys(row["type"] for row in usual):
        found = [row["instructions_per_weight"] for row in usual if row["type"] == name]
        limit = WIDER * LOOPS.get(name, ANY_LOOP)
        if max(found) > limit:
            yield f"| {name} | {' | '.join(f'{x:.2f}' for x in (limit, *found))} |"


def _flight_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the table of loops with fewer bytes of weights in flight than their target."""
    yield f"\n## The same loops: {FLIGHT} KiB of weights in flight for a multiprocessor\n"
    yield from (
        "Batches up to 16 of one bit bring eight times as many bytes of activations as of weights, which take the",
        "room; of what the model chooses for M = 16, two passes with 8 columns, 32 KiB are in flight. A",
        "codebook's table takes 32 KiB of each block, so only two stages find room.\n",
    )
    yield "| type | batches up to | target | KiB |\n|---|---|---|---|"
    for row in _usual(rows, 8, 16):
        held = row["bytes_in_flight"] / 1024
        if held < FLIGHT:
            yield f"| {row['type']} | {row['bm']} | {row['target']} | {held:.0f} |"


def _dispatch_lines(table: Sequence[str]) -> Iterator[str]:
    """Yield what dispatch takes for small batches that has more instructions, or less in flight, than its target."""
    yield "\n## What dispatch takes for a layer of 8192 x 8192 (`tests/kernels/dispatch.txt`)\n"
    yield from (
        "The model chooses among kernels by time. Where memory binds, it takes those that keep more warps busy,",
        "each with fewer rows, over those with the fewest instructions: at the memory's full rate an H100 issues",
        "1.4 for each weight of one bit, 2.7 of two, 5 of four and 10 of eight. From M = 32 on activations take",
        "the room in shared memory, and weights are no longer what takes the time. The producer's instructions",
        "are counted here.\n",
    )
    yield "| device | weights | M | target | instructions per weight | KiB in flight |\n|---|---|---|---|---|---|"
    for line in table:
        device, weight, batches, _, taken, reached = (text.strip() for text in line.split("|"))
        small = int(batches.partition(",")[0]) <= 8
        count, flight = sum(map(float, taken.split()[:2])), int(reached.split()[1])
        target = LOOPS.get(weight, ANY_LOOP)
        if (small and count > target) or flight < FLIGHT:
            limit = f"{target:.2f}" if small else ""
            yield f"| {device} | {weight} | {batches} | {limit} | {count:.2f} | {flight} |"


def _time_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the table of predicted times beside their targets."""
    yield "\n## A product of 8192 x 8192 on an H100, microseconds: targets and predictions (nothing was measured)\n"
    yield "| weights | M | target | predicted | bound |\n|---|---|---|---|---|"
    for (weight, m), target in TIMES.items():
        [row] = [row for row in rows if (row["weight"], row["m"], row["n"], row["k"]) == (weight, m, 8192, 8192)]
        if row["microseconds"] > target:
            yield f"| {weight} | {m} | {target:.0f} | {row['microseconds']:.1f} | {row['bound']} |"
    yield ""
    yield from (
        "The prediction counts a launch, of which programmatic dependent launch may hide a part: the model has not",
        "that. From M = 64 on, products are bound by `mma.sync`, which reaches 62 % of the tensor cores' rate; `wgmma`",
        "is to come. Until then multicast of activations in clusters would save little: what the second-level cache",
        "takes is 6 % more than the tensor cores or the memory take at M = 16 to 128, and less beyond.\n",
        "Batch tiles of 128 columns are candidates where groups have no sums of their own (one scale for a row,",
        "or scales that multiply weights). By the model they take a quarter less from the second-level cache than",
        "64 columns, which is not what binds, and about as much time: it takes them for nvfp4 from M = 1024 on.",
        "With sums of groups 32 rows spill, and with 16 rows the banks of shared memory bind (95 us instead of 75",
        "for u4, M = 256). Blocks share K in equal parts (split-K), not by trips (stream-K): up to M = 128 the",
        "blocks that the model chooses are one wave, so there is no tail that stream-K would fill.",
    )


def _shares(row: Row) -> list[float]:
    per_weight = {kind: count / row["weights_per_trip"] for kind, count in row["mix"].items()}
    shares = [sum(per_weight.get(kind, 0.0) for kind in kinds) for kinds in SHARES.values()]
    return [*shares, row["instructions_per_weight"] - sum(shares)]


def _usual(rows: Sequence[Row], *tiles: int) -> list[Row]:
    """Return the rows of batch tiles with f16 activations and the usual groups."""
    own = [row for row in rows if row["bm"] in tiles and row["activation"] == "f16"]
    return [row for row in own if row["group"] in (128, -1) or row["type"] in FORMATS]


def loop_reason(name: str) -> str:
    """Return the name of the reason why a loop takes more."""
    if name in FORMATS:
        return "scales"
    kind = dtype(name)
    if isinstance(kind, Float):
        assert compute_dtype(kind, f16) != f16, "all others keep their targets"
        return "range"
    return "digits" if kind.name == "t1.6" else "table"


if __name__ == "__main__":
    main()
