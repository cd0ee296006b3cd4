"""Few test cases in which every pair of values of any two parameters occurs: greedy, and the same on every run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

Case = dict[str, Any]


def pairwise(
    parameters: Mapping[str, Sequence[Any]], allowed: Callable[[Case], bool] = lambda case: True
) -> list[Case]:
    """Return cases over all parameters; `allowed` says of a case, perhaps of some parameters only, whether it may be.

    Every pair of values that is allowed on its own occurs in some case.
    """
    open_pairs: dict[tuple[tuple[str, int], tuple[str, int]], None] = {
        ((a, i), (b, j)): None
        for a, b in combinations(parameters, 2)
        for i in range(len(parameters[a]))
        for j in range(len(parameters[b]))
        if allowed({a: parameters[a][i], b: parameters[b][j]})
    }
    cases = []
    while open_pairs:
        chosen = dict(next(iter(open_pairs)))
        for turn, name in enumerate(parameters):
            if name not in chosen:
                chosen[name] = _best(parameters, chosen, name, open_pairs, allowed, len(cases) + turn)
        for pair in combinations(((name, chosen[name]) for name in parameters), 2):
            open_pairs.pop(pair, None)
        cases.append({name: values[chosen[name]] for name, values in parameters.items()})
    return cases


def _best(parameters, chosen, name, open_pairs, allowed, start) -> int:
    """Return the value of a parameter that closes most open pairs; among equals the first from `start` on."""
    order = list(parameters)

    def closes(index: int) -> int:
        mine = (name, index)
        pairs = ((mine, o) if order.index(name) < order.index(o[0]) else (o, mine) for o in chosen.items())
        return sum(pair in open_pairs for pair in pairs)

    def fits(index: int) -> bool:
        return allowed({n: parameters[n][i] for n, i in (*chosen.items(), (name, index))})

    size = len(parameters[name])
    candidates = [i for i in ((start + d) % size for d in range(size)) if fits(i)]
    return max(candidates, key=closes)
