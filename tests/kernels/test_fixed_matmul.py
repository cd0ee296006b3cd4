"""The quantized matmul on the CPU in fixed point: within the derived tolerance, near it, and exact where that is asked."""

import numpy as np
import pytest

import tilus
from tests.kernels.cases import ACTIVATIONS, SIGNED, UNSIGNED, activations, bias_of, weight
from tests.kernels.pairwise import pairwise
from tests.tolerance import check, exact
from tilus.dtypes import codebook
from tilus.kernels import configure_cpu
from tilus.kernels.configure_cpu import fixed_rows, takes_fixed

TYPES = [*UNSIGNED, *SIGNED, "t2"]
# Every type of weights occurs; all pairs of the rest do.
CASES = [
    {"name": TYPES[i % len(TYPES)], **case}
    for i, case in enumerate(
        pairwise(
            {
                "m": (1, 3, 16, 33),
                "group": (32, 64, 96, -1),
                "shape": ((37, 300), (130, 129), (5, 77)),
                "activation": ACTIVATIONS,
                "bias": (False, True),
                "zero_point": (False, True),
            }
        )
    )
]


def test_every_type_occurs():
    assert {case["name"] for case in CASES} == set(TYPES)


@pytest.fixture(autouse=True)
def fixed(monkeypatch):
    """Fixed point whatever the activations, and panels from 5 rows on, although the products are small."""
    monkeypatch.setattr(configure_cpu, "FEW_PRODUCTS", 0)
    with tilus.knobs.scope(cpu_activations="fixed16"):
        yield


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(v) for v in c.values()))
def test_is_within_half_a_unit(case):
    n, k = case["shape"]
    w = weight(case["name"], case["zero_point"], case["group"], n, k)
    x = activations(case["activation"], case["m"], k)
    bias = bias_of(case["activation"], n, case["bias"])
    check(tilus.matmul(x, w, bias), x, w, bias, fixed=True)


def test_runs_on_the_reference_machine():
    w, x = weight("u3", True, 64, 37, 150), activations("f32", 5, 150)
    with tilus.knobs.scope(target="vm"):
        for m in (2, 5):
            check(tilus.matmul(x[:m], w), x[:m], w, fixed=True)


FAR = codebook("far", range(64, 320))  # neighbouring integers, as far from 0 as fixed point takes them


@pytest.mark.parametrize(("name", "zero_point"), [("u8", True), ("i8", True), ("u8", False), (FAR, None)])
def test_the_largest_sums_do_not_overflow(name, zero_point):
    values = np.where(np.arange(256) < 128, 1.0, -1e-3)[None] * np.ones((64, 1))
    w = tilus.quantize(values.astype(np.float32), name, 128, zero_point=zero_point)
    for m in (1, 8):
        x = np.full((m, 256), -2.5, np.float32)
        check(tilus.matmul(x, w), x, w, fixed=True)


def test_what_is_asked_for_is_done():
    w, table, narrow = (weight(*args, 40, 256) for args in (("u4", True, 64), ("nf4", False, 64), ("u4", True, 16)))
    assert [takes_fixed(v.format) for v in (w, table, narrow)] == [True, False, False]
    x = activations("f32", 6, 256)
    assert 1e-6 < error(x, w) < 4e-5
    assert max(error(x, table), error(x, narrow)) < 1e-6
    for chosen in ("auto", "exact"):
        with tilus.knobs.scope(cpu_activations=chosen):
            assert error(x, w) < 1e-6
    half = x.astype(np.float16)
    results = []
    for chosen in ("auto", "fixed16", "exact"):
        with tilus.knobs.scope(cpu_activations=chosen):
            results.append(tilus.matmul(half, w))
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[1] != results[2]).any()


def error(x, w):
    wanted = exact(x, w)
    return np.linalg.norm(tilus.matmul(x, w) - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("m", [2, 7])
def test_what_is_no_number_stays_in_its_row(m):
    w, x = weight("u4", True, 32, 21, 100), activations("f32", m, 100)
    for bad in (np.nan, np.inf, -np.inf):
        spoiled = x.copy()
        spoiled[1, 40] = bad
        y = tilus.matmul(spoiled, w)
        assert np.isnan(y[1]).all()
        check(np.delete(y, 1, 0), np.delete(x, 1, 0), w, fixed=True)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_activations_of_any_size(size):
    w = weight("u4", True, 32, 21, 100)
    x = activations("f32", 6, 100) * np.float32(size)
    check(tilus.matmul(x, w), x, w, fixed=True)


def test_batch_tiles_waste_little():
    assert [fixed_rows(m, 64, 64) for m in (1, 2, 3, 4)] == [1, 2, 4, 4]
    for m in range(5, 2000):
        rows = fixed_rows(m, 64, 64)
        assert m <= -(-m // rows) * rows < max(1.5 * m, m + 4)


@pytest.mark.parametrize(("name", "zero_point", "group"), [("u4", True, 64), ("i3", False, 96), ("t2", False, -1)])
def test_small_products_are_one_kernel_with_the_same_results(name, zero_point, group, monkeypatch):
    w, x = weight(name, zero_point, group, 37, 300), activations("f16", 9, 300)
    panels = tilus.matmul(x, w)
    monkeypatch.setattr(configure_cpu, "FEW_PRODUCTS", 9 * 37 * 300)
    assert (fixed_rows(9, 37, 300), fixed_rows(10, 37, 300)) == (4, 12)
    np.testing.assert_array_equal(tilus.matmul(x, w), panels)
