"""Every kernel's hot loop holds its budget of instructions per weight, counted in machine code."""

from pathlib import Path

import pytest

from tests.kernels.resources import check_resources
from tilus.dtypes import dtype, f16
from tilus.kernels.cost import matmul_cost
from tilus.runtime.weights import WeightFormat, native_pack

BUDGET = Path(__file__).with_name("budget.txt")
ROWS = [line.split() for line in BUDGET.read_text().splitlines() if not line.startswith("#")]
IN_FLIGHT = 24 << 10  # bytes of weights for a multiprocessor: 800 ns of an H100's copy rate are 18 KiB
LESS_IN_FLIGHT = {("nf4", "sm_80"): 16 << 10}  # its table leaves room for one block of two stages
GROUP = 128
TABLES = {"tensor": 2, "none": 1}  # zero points and scales: each group's may be waited for once
SLACK = 1.02  # another version of the compiler may schedule a little differently


def row_of(name, zero, target, limit):
    """Return a test's arguments: floats that nobody publishes weights in are counted on one target, unless at length."""
    rare = name[0] == "f" and name not in ("f4e2m1", "f6e2m3", "f6e3m2", "f8e4m3", "f8e5m2") and target == "sm_80"
    return pytest.param(name, zero, target, limit, marks=pytest.mark.long if rare else ())


@pytest.mark.parametrize(("name", "zero", "target", "limit"), [row_of(*row) for row in ROWS])
def test_the_hot_loop_keeps_its_budget(name, zero, target, limit):
    form = WeightFormat(native_pack(dtype(name), "cuda"), GROUP, zero)
    cost = matmul_cost(form, f16, f16, bm=8, target=target)
    check_resources(cost.compiled)
    assert cost.bank_conflicts == 0
    assert cost.bytes_in_flight >= LESS_IN_FLIGHT.get((name, target), IN_FLIGHT)
    assert cost.exposed_loads <= form.pack.tile[1] // GROUP * TABLES[zero] * SLACK
    assert cost.loop.mix["mma"] > 0, "every type runs on tensor cores"
    assert cost.instructions_per_weight <= float(limit) * SLACK
    if cost.instructions_per_weight < float(limit) / SLACK:
        print(f"lower the budget of {name} on {target}: {cost.instructions_per_weight:.3f}")


def test_every_type_has_a_budget():
    from tests.kernels.cases import TYPES

    assert {row[0] for row in ROWS} == set(TYPES)
