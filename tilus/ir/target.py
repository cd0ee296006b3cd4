"""Targets as data: what passes and emitters must know of a machine.

Limits are those of the CUDA C++ programming guide, table "technical specifications per compute capability".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tilus.errors import TilusError

CLUSTERS = 90  # capability of the first targets that have them
MAX_CLUSTER = 8  # blocks: the same table, "maximum number of thread blocks in a cluster" that every device has
MAX_WARPS = 32  # 1024 threads per block: CUDA C++ programming guide, "compute capabilities"


@dataclass(frozen=True, slots=True)
class Target:
    """A machine to compile for.

    Attributes
    ----------
    name : str
        `sm_80`, `cpu`, `vm`, `simt:sm_80`, ...
    kind : "cuda", "cpu" or "vm"
        What passes and emitters make.
    lanes : int
        Threads of a warp; on a CPU the SIMD lanes that make the whole block.
    capability : int
        Ten times the compute capability; 0 where there is none.
    max_shared_bytes : int
        Shared memory one block may use.
    simulated : bool
        Code for a GPU that runs on the CPU, thread by thread and checked.
    """

    name: str
    kind: Literal["cuda", "cpu", "vm"]
    lanes: int
    capability: int = 0
    max_shared_bytes: int = 0
    simulated: bool = False

    @property
    def machine(self) -> Literal["cuda", "cpu", "vm", "simt"]:
        """What runs the code."""
        return "simt" if self.simulated else self.kind

    @property
    def code(self) -> Target:
        """The target as the compiler sees it, whatever runs the code."""
        return TARGETS[self.name.removeprefix(_SIMULATED)] if self.simulated else self

    def num_threads(self, num_warps: int) -> int:
        """Threads per block for a program of `num_warps` warps: on a CPU one warp of SIMD lanes is the block."""
        return self.lanes if self.kind == "cpu" else self.lanes * num_warps


_KIB = 1024
DEPENDENT_LAUNCH = 90  # capability from which on a kernel may start while the one before it ends
_SIMULATED = "simt:"
TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target("vm", "vm", 32, 0, 1 << 30),
        Target("cpu", "cpu", 8, 0, 256 * _KIB),
        Target("sm_80", "cuda", 32, 80, 163 * _KIB),
        Target("sm_86", "cuda", 32, 86, 99 * _KIB),
        Target("sm_89", "cuda", 32, 89, 99 * _KIB),
        Target("sm_90a", "cuda", 32, 90, 227 * _KIB),
    )
}
CUDA_TARGETS = tuple(name for name, t in TARGETS.items() if t.kind == "cuda")
_SIMT = {_SIMULATED + name: replace(TARGETS[name], name=_SIMULATED + name, simulated=True) for name in CUDA_TARGETS}
# All that calls may name: what there is code for, and the PTX of GPUs on the CPU.
BY_NAME: dict[str, Target] = {**TARGETS, "simt": _SIMT[_SIMULATED + CUDA_TARGETS[0]], **_SIMT}


def target(name: str | Target) -> Target:
    """Return a target by name, or raise with the names there are."""
    if isinstance(name, Target):
        return name
    if name not in BY_NAME:
        raise TilusError(f"unknown target {name!r}", hint=f"one of {', '.join(BY_NAME)}")
    return BY_NAME[name]


def has_clusters(target: Target) -> bool:
    """Whether blocks can run in clusters there."""
    return target.kind == "vm" or target.capability >= CLUSTERS
