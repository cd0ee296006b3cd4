"""Targets as this machine has them: the CPU target with the lanes of this CPU."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Literal, TypeAlias

from tilus.ir.target import TARGETS, Target, target
from tilus.runtime.cpu_features import host_cpu
from tilus.runtime.knobs import knobs

Device: TypeAlias = Literal["cuda", "cpu"]

_LANE_BITS = 32


@cache
def host_target() -> Target:
    """Return the CPU target with one lane for every 32 bits of the best vector."""
    return replace(TARGETS["cpu"], lanes=host_cpu().simd_bits // _LANE_BITS)


def find_target(name: str | Target) -> Target:
    """Return a target by name; `cpu` is this machine's."""
    return host_target() if name == "cpu" else target(name)


def code_device(device: str) -> Device:
    """Return the kind of device whose code a call with arrays on a device (`cpu`, `cuda:N`) runs.

    For arrays of the CPU it is a GPU's where the knob `target` says to simulate one.
    """
    name = knobs.target
    return "cuda" if device.startswith("cuda") or (name is not None and target(name).simulated) else "cpu"
