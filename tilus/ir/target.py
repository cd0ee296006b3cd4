"""Targets as data: what passes and emitters must know of a machine.

Limits are those of the CUDA C++ programming guide, table "technical specifications per compute capability".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tilus.errors import TilusError


@dataclass(frozen=True, slots=True)
class Target:
    """A machine to compile for.

    Attributes
    ----------
    name : str
        `sm_80`, `cpu`, `vm`, ...
    kind : "cuda", "cpu" or "vm"
    lanes : int
        Threads of a warp; on a CPU the SIMD lanes that make the whole block.
    capability : int
        Ten times the compute capability; 0 where there is none.
    max_shared_bytes : int
        Shared memory one block may use.
    """

    name: str
    kind: Literal["cuda", "cpu", "vm"]
    lanes: int
    capability: int = 0
    max_shared_bytes: int = 0

    def num_threads(self, num_warps: int) -> int:
        """Threads per block for a program of `num_warps` warps: on a CPU one warp of SIMD lanes is the block."""
        return self.lanes if self.kind == "cpu" else self.lanes * num_warps


_KIB = 1024
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


def target(name: str | Target) -> Target:
    """Return a target by name, or raise with the names there are."""
    if isinstance(name, Target):
        return name
    if name not in TARGETS:
        raise TilusError(f"unknown target {name!r}", hint=f"one of {', '.join(TARGETS)}")
    return TARGETS[name]
