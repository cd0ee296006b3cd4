"""The choice of cases keeps its promise, else the matmul tests would cover less than they say."""

from itertools import combinations, product

from tests.kernels.pairwise import pairwise

PARAMETERS = {"a": "xyz", "b": (1, 2, 3, 4), "c": (True, False), "d": range(5)}


def test_every_pair_of_values_occurs():
    cases = pairwise(PARAMETERS)
    for p, q in combinations(PARAMETERS, 2):
        assert {(c[p], c[q]) for c in cases} == set(product(PARAMETERS[p], PARAMETERS[q]))
    assert 20 <= len(cases) <= 26


def test_what_is_not_allowed_does_not_occur_and_the_rest_does():
    def allowed(case):
        return not (case.get("a") == "x" and case.get("b") == 2)

    cases = pairwise(PARAMETERS, allowed)
    assert all(allowed(c) for c in cases)
    assert {(c["a"], c["b"]) for c in cases} == set(product("xyz", (1, 2, 3, 4))) - {("x", 2)}


def test_is_the_same_every_time():
    assert pairwise(PARAMETERS) == pairwise(PARAMETERS)
