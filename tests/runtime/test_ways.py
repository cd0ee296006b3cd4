"""Of the ways to tell the compiler how many registers threads may have, the best is taken, and none tried in vain."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tilus.codegen.cuda.source import CudaSource
from tilus.ir.target import target
from tilus.runtime import backends

USUAL, ALONE, ALL = "usual", "alone", "all"


def tried(monkeypatch: pytest.MonkeyPatch, made: dict[str, tuple[int, int]], producer: bool) -> tuple[list[str], str]:
    """Return the ways that are tried, and the one taken, where each makes code of so many registers and spills."""
    names: list[str] = []

    def compile_cuda(text: str, arch: str, options: tuple[str, ...]) -> SimpleNamespace:
        names.append(ALL if any("maxrregcount" in o for o in options) else ALONE if "(256, 1)" in text else USUAL)
        return SimpleNamespace(cubin=names[-1])

    def read_resources(cubin: str) -> SimpleNamespace:
        registers, spills = made[cubin]
        return SimpleNamespace(arch=90, registers=registers, spills=spills)

    monkeypatch.setattr(backends, "compile_cuda", compile_cuda)
    monkeypatch.setattr(backends, "read_resources", read_resources)
    source = CudaSource("__launch_bounds__(256)", "k", 0, 256, (), (), False)
    _, binary = backends._compiled(source, target("sm_90a"), 224 if producer else 256)
    return names, str(binary.cubin)


@pytest.mark.parametrize(
    ("made", "producer", "names", "taken"),
    [
        ({USUAL: (128, 0)}, False, [USUAL], USUAL),
        ({USUAL: (128, 64), ALONE: (200, 0)}, False, [USUAL, ALONE], ALONE),
        ({USUAL: (128, 64), ALONE: (128, 32), ALL: (250, 0)}, False, [USUAL, ALONE, ALL], ALL),
        ({USUAL: (128, 164), ALONE: (255, 132)}, False, [USUAL, ALONE], ALONE),
        ({USUAL: (255, 132)}, False, [USUAL], USUAL),
        ({USUAL: (255, 56), ALONE: (255, 0)}, False, [USUAL, ALONE], ALONE),
        ({ALL: (128, 0)}, True, [ALL], ALL),
        ({ALL: (160, 0), USUAL: (128, 0)}, True, [ALL, USUAL], USUAL),  # so that two blocks find room
        ({ALL: (160, 0), USUAL: (128, 8), ALONE: (160, 0)}, True, [ALL, USUAL, ALONE], ALL),
        ({ALL: (255, 8), USUAL: (128, 16), ALONE: (255, 8)}, True, [ALL, USUAL, ALONE], ALL),
    ],
)
def test_ways(
    monkeypatch: pytest.MonkeyPatch, made: dict[str, tuple[int, int]], producer: bool, names: list[str], taken: str
) -> None:
    assert tried(monkeypatch, made, producer) == (names, taken)
