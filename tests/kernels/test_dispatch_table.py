"""Every kernel that dispatch takes keeps to what the table says, counted in machine code."""

import importlib
from math import ceil
from pathlib import Path

import pytest

import tilus
from tests.kernels.resources import check_resources
from tests.kernels.test_produced import check_products
from tests.kernels.test_split import weight as exact_weight
from tilus.bench.shapes import BATCHES
from tilus.dtypes import f16
from tilus.kernels.candidates import bucket, configurations, named_problem
from tilus.kernels.cost import PROMISES, MatmulCost
from tilus.kernels.devices import find_device

TABLE = Path(__file__).with_name("dispatch.txt")
ROWS = [[x.strip() for x in line.split("|")] for line in TABLE.read_text().splitlines() if not line.startswith("#")]
SLACK = 1.02  # another version of the compiler may schedule a little differently
SPARE = 8  # registers, for the same reason
EVERY, SIMULATED = 8, 13  # rows are looked at, and run on simt; all with `-m long`
EXTENT = 8192


def rows(every):
    return [
        pytest.param(row, id=f"{row[0]}-{row[1]}-{row[2]}", marks=pytest.mark.long if number % every else ())
        for number, row in enumerate(ROWS)
    ]


def row_of(device, weight, batches, label):
    target, m = find_device(device).target, int(batches.partition(",")[0])
    form = named_problem(weight, f16, 128, (m, EXTENT, EXTENT)).form
    problem = named_problem(weight, f16, 128, (bucket(m, form, f16), EXTENT, EXTENT))
    return target, next(c for c in configurations(problem, target) if c.label == label), form


@pytest.mark.parametrize("row", rows(EVERY))
def test_a_kernel_that_dispatch_takes(row):
    device, weight, batches, label, taken, reached = row
    target, configuration, form = row_of(device, weight, batches, label)
    compiled = configuration.kernel.compile((), target, PROMISES)
    check_resources(compiled)
    cost = MatmulCost(compiled, form, dict(configuration.constants))
    instructions, produced, registers, shared = map(float, taken.split())
    blocks, flight = map(int, reached.split())
    assert cost.bank_conflicts == 0
    assert cost.instructions_per_weight <= instructions * SLACK
    assert cost.producer_share <= produced * SLACK
    assert cost.registers <= registers + SPARE
    assert ceil(cost.shared_bytes / 1024) <= shared + 1
    assert cost.blocks_per_sm >= blocks
    assert cost.bytes_in_flight >= flight * 1024
    if cost.instructions_per_weight < instructions / SLACK:
        print(f"lower the budget of {weight}, {label} on {target}: {cost.instructions_per_weight:.3f}")


@pytest.mark.parametrize("row", rows(SIMULATED))
def test_a_kernel_that_dispatch_takes_is_clean_and_right(row):
    """The row's own constants, on simt and the reference machine, for a product that ends in a block's last tile."""
    device, weight, batches, label, *_ = row
    arch, configuration, form = row_of(device, weight, batches, label)
    with tilus.knobs.scope(target=f"simt:{arch}"):
        rows = configuration["TILES"] * form.pack.tile[0]
        trip = configuration["SLICES"] * form.pack.tile[1]
        m, n, k = min(configuration["BM"], 5) + 1, rows + 16, 2 * configuration["SPLIT"] * trip
        w = exact_weight(weight, weight[0] == "u", 128, "f16", n, k)
    check_products(configuration.replace(BIAS=True, SCALED=False), w, m, n, k, "f16", arch)


def test_small_batches_have_24_kib_in_flight():
    """With one block for a multiprocessor, too: 800 ns of an H100's copy rate are 18 KiB."""
    least = {row[1]: int(row[5].split()[1]) for row in ROWS if "1" in row[2].split(",")}
    assert min(least.values()) >= 24, least


def test_no_width_is_left_out(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    wanted = importlib.import_module("dispatch_table").WEIGHTS
    assert {*wanted} == {"h100", "a100"}
    assert {*wanted["h100"]} == {*(f"u{bits}" for bits in range(1, 9)), "f4e2m1", "mxfp4", "nvfp4"}
    batches = {(device, weight): set() for device, weights in wanted.items() for weight in weights}
    for device, weight, some, *_ in ROWS:
        batches[device, weight].update(map(int, some.split(",")))
    assert {frozenset(each) for each in batches.values()} == {frozenset(BATCHES)}
