"""Which configuration multiplies: the model ranks, a timer on the device decides among the best, and disk remembers.

A choice is kept as a readable file in `tuning/` of the cache's folder. Its name is a digest of everything that it
depends on: the device, the versions of the tools, the compiler's own source, and the problem, with M rounded up to the
batch tiles. So M is free to change: a bucket has one kernel, and buckets may share theirs.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilus.errors import TilusError
from tilus.kernels.candidates import VARIED, Configuration, Problem, configurations, default_configuration
from tilus.kernels.devices import find_device
from tilus.kernels.ranking import ranked
from tilus.runtime import cache as disk
from tilus.runtime.knobs import knobs
from tilus.runtime.nvrtc import toolchain_version

TIMED = 4  # of the candidates that the model likes best

Timer = Callable[[Configuration], float]


def choose(problem: Problem, name: str, timer: Timer | None = None) -> Configuration:
    """Return the configuration for a problem.

    Parameters
    ----------
    problem : Problem
        With M as `bucket` gives it.
    name : str
        What the driver calls the device. One that the model does not know takes the default, or what the timer says.
    timer : callable, optional
        Returns the seconds of a configuration: the best candidates are timed unless a timed choice is kept.
    """
    key = _key(problem, name)
    kept = _load(key, problem, name)
    if kept is not None and (kept.timed or timer is None):
        return kept.configuration
    try:
        candidates = [one.configuration for one in ranked(problem, find_device(name))]
    except TilusError:
        candidates = []
    candidates = candidates or [default_configuration(problem)]
    times: dict[str, float] = {}
    if timer is not None:
        times = _timed(_worth_timing(candidates), timer)
        candidates.sort(key=lambda c: times.get(c.label, float("inf")))
    _save(key, problem, name, candidates[0], times)
    return candidates[0]


def _worth_timing(candidates: list[Configuration]) -> list[Configuration]:
    """Return the first candidates, with and without a producer: what one saves the model does not know."""
    first = candidates[:TIMED]
    kinds = {c.get("PRODUCERS", 0) for c in first}
    return [*first, *[c for c in candidates[TIMED:] if c.get("PRODUCERS", 0) not in kinds][:1]]


def _timed(candidates: list[Configuration], timer: Timer) -> dict[str, float]:
    times = {}
    for candidate in candidates:
        try:
            times[candidate.label] = timer(candidate)
        except TilusError:  # it asks for more than the device has
            continue
        if knobs.print_autotuning:
            print(f"{candidate.label}: {times[candidate.label] * 1e6:.1f} us")
    return times


# --- on disk --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Kept:
    configuration: Configuration
    timed: bool


def _key(problem: Problem, name: str) -> Path:
    digest = disk.cache_key(
        device=name, versions=toolchain_version(), compiler=disk.fingerprint(), problem=_text(problem)
    )
    return knobs.cache_dir / disk.CHOICES / f"{digest}.json"


def _text(problem: Problem) -> str:
    operands = f"{problem.form} | {problem.activation} | {problem.scale} | {problem.bias}"
    return f"{operands} | {problem.epilogue} | {_shape(problem)}"


def _shape(problem: Problem) -> list[int]:
    return [problem.m, problem.n, problem.k]


def _load(path: Path, problem: Problem, name: str) -> _Kept | None:
    if knobs.always_compile or not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        wanted = {key: record["constants"][key] for key in VARIED}
        found = next(c for c in _all(problem, name) if {key: c.get(key, 1) for key in VARIED} == wanted)
        return _Kept(found, bool(record["microseconds"]))
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        warnings.warn(
            f"the kept choice of a configuration is ignored: {path} is damaged ({type(error).__name__}); "
            "it will be made again",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


def _all(problem: Problem, name: str) -> tuple[Configuration, ...]:
    try:
        return configurations(problem, find_device(name).target)
    except TilusError:
        return (default_configuration(problem),)


def _save(path: Path, problem: Problem, name: str, chosen: Configuration, times: dict[str, float]) -> None:
    record = {
        "device": name,
        "weight": str(problem.form.dtype),
        "shape": _shape(problem),
        "constants": {key: chosen.get(key, 1) for key in VARIED},
        "microseconds": {label: seconds * 1e6 for label, seconds in times.items()},
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".new", delete=False) as file:
            json.dump(record, file, indent=1)
        os.replace(file.name, path)
    except OSError as error:
        warnings.warn(f"the choice of a configuration is not kept: {error}", RuntimeWarning, stacklevel=3)
