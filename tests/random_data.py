"""Random numbers that every test finds as if it were the first: failures do not depend on the order of tests."""

from __future__ import annotations

from typing import Any

import numpy as np

_GENERATORS: list[tuple[np.random.Generator, Any]] = []


def generator(seed: int) -> np.random.Generator:
    """Return a generator for the tests of a module."""
    made = np.random.default_rng(seed)
    _GENERATORS.append((made, made.bit_generator.state))
    return made


def begin_anew() -> None:
    """Put every module's generator back to its first number."""
    for made, state in _GENERATORS:
        made.bit_generator.state = state
