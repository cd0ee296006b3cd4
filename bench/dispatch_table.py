"""Claim: every kernel that dispatch takes is clean: no spills, no bank conflicts, bytes in flight, few instructions.

Asks the model what it takes for one layer (8192 x 8192) of each width, some formats and each batch on two devices,
compiles just that, and reads its machine code: no GPU is needed. Writes `tests/kernels/dispatch.txt`, to which a test
holds every row. Batches that take the same kernel share a row. With `--keep` kernels stay as they are in the table, and
are counted anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from record import ROOT
from rich.console import Console
from rich.progress import track

from tilus.bench.shapes import BATCHES
from tilus.dtypes import f16
from tilus.kernels.candidates import Configuration, Problem, bucket, configurations, named_problem
from tilus.kernels.cost import PROMISES, MatmulCost
from tilus.kernels.devices import find_device
from tilus.kernels.ranking import ranked

TABLE = ROOT / "tests" / "kernels" / "dispatch.txt"
WEIGHTS = {
    "h100": ("u1", "u2", "u3", "u4", "u5", "u6", "u7", "u8", "f4e2m1", "mxfp4", "nvfp4"),
    "a100": ("u2", "u4", "u8", "f4e2m1"),
}
EXTENT = 8192
HEAD = """\
# What dispatch takes for a layer of 8192 x 8192, f16, groups of 128 (formats: their own), by the model: device,
# weights, M, kernel; what its machine code may take: instructions per weight, a producer's besides, registers, KiB of
# shared memory; and what it must reach: blocks for a multiprocessor, KiB of weights in flight there. Made by
# `python bench/dispatch_table.py`.
"""


def main() -> None:
    """Rank, compile, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="count the kernels of the table, rank none")
    console = Console(stderr=True)
    if parser.parse_args().keep:
        lines = [line for line in TABLE.read_text().splitlines() if not line.startswith("#")]
        rows = [_counted(line) for line in track(lines, "compiling", console=console)]
    else:
        jobs = [(device, weight) for device, weights in WEIGHTS.items() for weight in weights]
        rows = [row for job in track(jobs, "ranking", console=console) for row in _rows(*job)]
    TABLE.write_text(HEAD + "".join(f"{row}\n" for row in rows))
    print(f"wrote {len(rows)} rows to {TABLE.relative_to(ROOT)}")


def _counted(line: str) -> str:
    device, weight, batches, label, *_ = (text.strip() for text in line.split("|"))
    problem = _problem(weight, int(batches.partition(",")[0]))
    target = find_device(device).target
    configuration = next(c for c in configurations(problem, target) if c.label == label)
    return f"{device} | {weight} | {batches} | {label} | {_numbers(device, problem, configuration)}"


def _rows(device: str, weight: str) -> Iterator[str]:
    kernels: dict[Configuration, list[int]] = {}
    for m in BATCHES:
        kernels.setdefault(_chosen(device, weight, m)[1], []).append(m)
    for configuration, batches in kernels.items():
        problem, _ = _chosen(device, weight, batches[0])
        batch = ",".join(map(str, batches))
        yield f"{device} | {weight} | {batch} | {configuration.label} | {_numbers(device, problem, configuration)}"


def _problem(weight: str, m: int) -> Problem:
    form = named_problem(weight, f16, 128, (m, EXTENT, EXTENT)).form
    return named_problem(weight, f16, 128, (bucket(m, form, f16), EXTENT, EXTENT))


def _chosen(device: str, weight: str, m: int) -> tuple[Problem, Configuration]:
    problem = _problem(weight, m)
    return problem, ranked(problem, find_device(device))[0].configuration


def _numbers(device: str, problem: Problem, configuration: Configuration) -> str:
    compiled = configuration.kernel.compile((), find_device(device).target, PROMISES)
    cost = MatmulCost(compiled, problem.form, dict(configuration.constants))
    taken = (
        f"{cost.instructions_per_weight:.3f} {cost.producer_share:.3f} {cost.registers} {cost.shared_bytes / 1024:.0f}"
    )
    return f"{taken} | {cost.blocks_per_sm} {cost.bytes_in_flight / 1024:.0f}"


if __name__ == "__main__":
    main()
