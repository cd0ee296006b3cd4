"""The quantized matmul on the CPU in f32 against float64, for every weight type, within the derived tolerance."""

from itertools import product

import pytest

from tests.kernels.cases import ACTIVATIONS, FLOATS, TYPES, WEIGHTS, activations, bias_of, weight
from tests.kernels.pairwise import pairwise
from tests.tolerance import check
from tilus.kernels.dispatch import matmul
from tilus.runtime.knobs import knobs

# Tiles are 4 x 128 on the CPU: extents below, at and beyond them, none a multiple of the groups but by chance.
PARAMETERS = {
    "m": (1, 3, 16, 33, 128),
    "group": (32, 64, 128, -1),
    "shape": ((37, 300), (64, 256), (5, 77), (130, 129), (1, 515)),
    "activation": ACTIVATIONS,
    "bias": (False, True),
    "zero_point": (False, True),
}


def sensible(case):
    return not case.get("zero_point") or case.get("name", "u1")[0] in "ui"


# Types of every kind and every width with all the rest; of the other floats, which differ in numbers only, one case each,
# at length.
MAIN = [name for name in TYPES if name not in FLOATS] + [
    "f3e1m1",
    "f4e2m1",
    "f5e1m3",
    "f5e2m2",
    "f6e3m2",
    "f7e3m3",
    "f8e4m3",
]
CASES = pairwise({"name": MAIN, **PARAMETERS}, sensible)
CASES += [
    case | {"name": name, "zero_point": False} for name, case in zip(sorted({*TYPES} - {*MAIN}), CASES, strict=False)
]


@pytest.fixture(autouse=True)
def in_f32():
    with knobs.scope(cpu_activations="exact"):
        yield


def test_the_cases_cover_what_they_say():
    for a, b in (("name", "m"), ("name", "group"), ("name", "activation"), ("m", "group"), ("m", "shape")):
        values = {p: {c[p] for c in CASES if c["name"] in MAIN} for p in (a, b)}
        assert {(c[a], c[b]) for c in CASES if c["name"] in MAIN} == set(product(values[a], values[b]))
    assert {(c["name"], c["zero_point"]) for c in CASES} == set(WEIGHTS)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case["name"] in MAIN else pytest.mark.long) for case in CASES],
    ids=lambda case: "-".join(str(value) for value in case.values()),
)
def test_cpu_is_exact_up_to_rounding(case):
    n, k = case["shape"]
    w = weight(case["name"], case["zero_point"], case["group"], n, k)
    x = activations(case["activation"], case["m"], k)
    bias = bias_of(case["activation"], n, case["bias"])
    check(matmul(x, w, bias), x, w, bias)


@pytest.mark.long
@pytest.mark.parametrize(("name", "zero_point"), WEIGHTS)
def test_the_whole_product(name, zero_point):
    """Every group with every batch and shape, of which the cases above are a cover of all pairs."""
    for group, (n, k), m in product((32, 64, 128, -1), ((37, 300), (64, 256), (130, 129)), (1, 3, 16, 33, 128)):
        w = weight(name, zero_point, group, n, k)
        for activation in ACTIVATIONS if m == 3 else ACTIVATIONS[:1]:
            x = activations(activation, m, k)
            check(matmul(x, w), x, w, None)
