"""Candidates in the order in which the model expects them: machine code is looked at for few of them.

Kinds of candidates differ in a warp's code. Of each promising kind one is compiled, a *scout*; what its code says goes
for all of its kind, which differ in stages, in warps and in how many blocks share K. The best of all are then compiled
themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

from tilus.errors import CompileError, PassError
from tilus.ir.target import target as find_target
from tilus.kernels.candidates import (
    Configuration,
    Problem,
    bucket,
    configurations,
    default_configuration,
    splits,
    stage_size,
)
from tilus.kernels.cost import block_threads
from tilus.kernels.devices import Device
from tilus.kernels.facts import CodeFacts, code_facts
from tilus.kernels.model import Prediction, predict
from tilus.runtime.resources import blocks_held
from tilus.runtime.weights.packing import WARP

SCOUTS = 8  # kinds that are looked at
COMPILED = 4  # candidates that are compiled besides
FRICTION = 0.02  # of what overlaps, a part does not: of candidates alike the one that is less busy comes first
TOLD_APART = 1.01  # predictions closer than that count as equal


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate, what its machine code says, and what that makes of it."""

    configuration: Configuration
    facts: CodeFacts
    prediction: Prediction


@cache
def ranked(problem: Problem, device: Device) -> tuple[Ranked, ...]:
    """Return the candidates that the model expects most of, the fastest first.

    A candidate that spills registers counts only where all do.
    """
    kinds = _kinds(problem, device)
    first = default_configuration(problem, target=device.target).alone
    scouts = _ranked(problem, device, [first, *(scout for scout, _ in kinds)])
    known = {_kind(one.configuration): one for one in scouts}
    members = [c for _, kind in kinds for c in kind if _kind(c) in known]
    guesses = [one for c in members for one in _guessed(problem, device, c, known[_kind(c)])]
    best = [one.configuration.alone for one in _in_order(guesses)]
    looked_at = {one.configuration.alone for one in scouts}
    more = [c for c in dict.fromkeys(best[: 4 * COMPILED]) if c not in looked_at]
    return _in_order([*scouts, *_ranked(problem, device, more[:COMPILED])])


def _in_order(found: Iterable[Ranked]) -> tuple[Ranked, ...]:
    every = list(found)
    clean = [one for one in every if not one.facts.spills and one.facts.blocks_per_sm] or every
    return tuple(sorted(clean, key=lambda one: one.prediction.total + FRICTION * sum(one.prediction.parts.values())))


def _ranked(problem: Problem, device: Device, candidates: Iterable[Configuration]) -> list[Ranked]:
    """Compile candidates, whose blocks do not share K, and predict them with all `splits`: their loops are the same."""
    found = []
    for alone in dict.fromkeys(candidates):
        try:
            facts = code_facts(alone, problem.form, device.target)
        except (CompileError, PassError):  # more registers or shared memory than there are
            continue
        found += [Ranked(c, facts, predict(problem, c, facts, device)) for c in splits(problem, alone, device.target)]
    return found


def _guessed(problem: Problem, device: Device, alone: Configuration, scout: Ranked) -> list[Ranked]:
    """Predict a candidate with all `splits` from the facts of its scout: fewer or more blocks find room."""
    staged = _staged(problem, alone)
    shared = max(scout.facts.shared_bytes + staged - _staged(problem, scout.configuration), staged)
    threads = block_threads(problem.form, dict(alone.constants)) + WARP * alone.get("PRODUCERS", 0)
    capability = find_target(device.target).capability
    held = min(blocks_held(capability, scout.facts.registers, threads, shared).values())
    if not held:
        return []
    facts = replace(scout.facts, shared_bytes=shared, block_threads=threads, blocks_per_sm=held)
    return [Ranked(c, facts, predict(problem, c, facts, device)) for c in splits(problem, alone, device.target)]


def _staged(problem: Problem, configuration: Configuration) -> int:
    stages: int = configuration["STAGES"]
    return stages * stage_size(problem, configuration)


def _kind(configuration: Configuration) -> tuple[float, ...]:
    """Return what a warp's code depends on: its share of the tiles, besides what is the same for all warps."""
    tiles = configuration.get("TILES", 1) * configuration.get("SLICES", 1) / configuration.get("WARPS", 1)
    return tiles, *(configuration.get(name, 1) for name in ("BM", "PRODUCERS", "STEP"))


def _kinds(problem: Problem, device: Device) -> list[tuple[Configuration, list[Configuration]]]:
    """Return the kinds that would be fastest if code were free: one with the fewest stages that seem enough, and all.

    None of them shares K between blocks.
    """
    kinds: dict[tuple[float, ...], list[tuple[float, int, Configuration]]] = {}
    for c in configurations(problem, device.target):
        time = predict(problem, c, None, device).total
        kinds.setdefault(_kind(c), []).append((time, c["STAGES"], c.alone))
    found = []
    for members in kinds.values():
        least = min(time for time, _, _ in members)
        _, _, scout = min((one for one in members if one[0] <= least * TOLD_APART), key=lambda one: one[1])
        found.append((least, scout, list(dict.fromkeys(c for _, _, c in members))))
    found.sort(key=lambda one: one[0])
    return [(scout, members) for _, scout, members in found[:SCOUTS]]


def explained(problem: Problem, device: Device) -> list[Ranked]:
    """Return the candidates in the order of dispatch, by M's bucket, with predictions for M itself."""
    key = replace(problem, m=bucket(problem.m, problem.form, problem.activation))
    return [
        replace(one, prediction=predict(problem, one.configuration, one.facts, device)) for one in ranked(key, device)
    ]
