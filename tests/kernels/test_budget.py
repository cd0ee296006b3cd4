"""Every kernel's hot loop holds its budget of instructions per weight, counted in machine code."""

from pathlib import Path

import pytest

from tests.kernels.resources import check_resources
from tilus.dtypes import dtype, f16
from tilus.kernels.candidates import named_problem
from tilus.kernels.cost import matmul_cost
from tilus.runtime.weights import WeightFormat, native_pack

BUDGET = Path(__file__).with_name("budget.txt")
ROWS = [line.split() for line in BUDGET.read_text().splitlines() if not line.startswith("#")]
IN_FLIGHT = 24 << 10  # bytes of weights for a multiprocessor: 800 ns of an H100's copy rate are 18 KiB
LESS_IN_FLIGHT = {("nf4", "sm_80"): 16 << 10}  # its table leaves room for one block of two stages
FORMATS = ("mxfp4", "nvfp4")
SLACK = 1.02  # another version of the compiler may schedule a little differently
USUAL = "128 f16 8"
TARGETS = ("sm_80", "sm_90a")
NAMES = list(dict.fromkeys(row[0] for row in ROWS))
# Of other groups, activations and batch tiles: where the way from a weight to the sum is another one.
OTHERS = {
    "u4 32 f16 8": "zero points of small groups",
    "u3 128 bf16 8": "numbers above a constant",
    "i8 128 bf16 8": "sums of two parts",
    "f4e2m1 128 bf16 8": "values by a multiply-add",
    "u4 128 f16 16": "warps that share out rows as well",
    "nf4 128 f16 16": "a table",
    "t1.6 -1 f16 8": "digits",
    "mxfp4 32 f16 8": "scales of 8 bits that no instruction converts",
    "nvfp4 16 f16 8": "scales of 8 bits that one does",
}


def row_of(name, zero, group, activation, bm, target, limit):
    """Return a test's arguments: a type is counted on one target, types in turn; all else but `OTHERS` at length."""
    case = f"{group} {activation} {bm}"
    turn = TARGETS[NAMES.index(name) % 2] if case == USUAL else "sm_90a" if f"{name} {case}" in OTHERS else None
    arguments = name, zero, int(group), activation, int(bm), target, float(limit)
    return pytest.param(*arguments, marks=pytest.mark.long if target != turn else ())


@pytest.mark.parametrize(
    ("name", "zero", "group", "activation", "bm", "target", "limit"), [row_of(*row) for row in ROWS]
)
def test_the_hot_loop_keeps_its_budget(name, zero, group, activation, bm, target, limit):
    if name in FORMATS:
        form = named_problem(name, dtype(activation), group, (1, 1, 1)).form
    else:
        form = WeightFormat(native_pack(dtype(name), "cuda"), group, zero)
    cost = matmul_cost(form, dtype(activation), form.scale or f16, bm=bm, target=target)
    check_resources(cost.compiled)
    assert cost.bank_conflicts == 0
    assert cost.loop.mix["mma"] > 0, "every type runs on tensor cores"
    assert cost.instructions_per_weight <= limit * SLACK
    if bm == 8:
        assert cost.bytes_in_flight >= LESS_IN_FLIGHT.get((name, target), IN_FLIGHT)
        assert cost.exposed_loads == 0
    if cost.instructions_per_weight < limit / SLACK:
        print(f"lower the budget of {name} on {target}: {cost.instructions_per_weight:.3f}")


def test_every_type_has_a_budget():
    from tests.kernels.cases import TYPES

    assert {row[0] for row in ROWS} == {*TYPES, "t1.6", *FORMATS}
