"""Cycles of a warp alone, for chains whose latency is known by hand."""

from __future__ import annotations

import pytest

from tests.runtime.compiled import binary, sass
from tilus.runtime.sass import parse_sass
from tilus.runtime.warp_time import warp_cycles

CHAIN = """
extern "C" __global__ void chain(float* y, const float* x) {{
  float a = {load}, b = y[1];
  {work}
  y[threadIdx.x] = a;
}}
"""


def cycles(work: str, arch: str, load: str = "y[0]") -> int:
    source = CHAIN.format(work=work, load=load)
    [function] = parse_sass(sass(source, arch))
    [end] = [at for at, i in enumerate(function.instructions) if i.opcode == "EXIT"]  # behind it there is padding
    return warp_cycles(function.instructions[:end], binary(source, arch).cubin, function.name)


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90a"])
def test_a_multiply_add_that_needs_the_last_one_takes_four_cycles(arch: str) -> None:
    step = "a = a * b + b;"
    assert cycles(step * 30, arch) - cycles(step * 10, arch) == 20 * 4


@pytest.mark.parametrize(("arch", "latency"), [("sm_80", 466), ("sm_90a", 479)])
def test_a_load_whose_address_was_loaded_waits_for_memory(arch: str, latency: int) -> None:
    hop = "a = x[(int)a];"
    more = cycles(hop * 3, arch) - cycles(hop * 2, arch)
    assert latency < more < latency + 60  # and the conversion and the address
