"""Cycles of a warp alone, for chains whose latency is known by hand."""

from __future__ import annotations

from types import SimpleNamespace

from tests.runtime.compiled import binary, sass
from tilus.runtime import warp_time
from tilus.runtime.sass import Instruction, parse_sass
from tilus.runtime.warp_time import warp_cycles

CHAIN = """
extern "C" __global__ void chain(float* y, const float* x) {{
  float a = y[0], b = y[1];
  {work}
  y[threadIdx.x] = a;
}}
"""


def cycles(work: str, arch: str, latency: int = 500) -> int:
    source = CHAIN.format(work=work)
    [function] = parse_sass(sass(source, arch))
    [end] = [at for at, i in enumerate(function.instructions) if i.opcode == "EXIT"]  # behind it there is padding
    return warp_cycles(function.instructions[:end], binary(source, arch).cubin, function.name, latency)


def test_a_multiply_add_that_needs_the_last_one_takes_four_cycles() -> None:
    step = "a = a * b + b;"
    assert cycles(step * 30, "sm_90a") - cycles(step * 10, "sm_90a") == 20 * 4


def machine_code(monkeypatch, *rows: tuple[str, int, int, int, int]) -> list[Instruction]:
    """Make instructions of (opcode, stall, board set by the result, board set when operands are read, boards awaited)."""
    code = b"".join(
        ((stall | written << 5 | read << 8 | waits << 11) << 105).to_bytes(16, "little")
        for _, stall, written, read, waits in rows
    )
    section = SimpleNamespace(data=code)
    monkeypatch.setattr(warp_time, "read_cubin", lambda cubin: SimpleNamespace(sections={".text.f": section}))
    return [Instruction(16 * at, "", row[0], (), ()) for at, row in enumerate(rows)]


def test_a_scoreboard_counts(monkeypatch) -> None:
    loads = machine_code(monkeypatch, ("LDG", 1, 2, 7, 0), ("LDG", 1, 3, 2, 0), ("PRMT", 4, 7, 7, 0b100))
    assert warp_cycles(loads, b"", "f", 1000) == 1000 + 4  # not when the second load has read its address
    copies = machine_code(monkeypatch, ("LDGSTS", 2, 7, 0, 0), ("UBLKCP", 2, 7, 1, 0), ("IADD3", 4, 7, 7, 0b11))
    assert warp_cycles(copies, b"", "f", 1000) == 17 + 4  # asynchronous: only what they read is waited for
    waits = machine_code(monkeypatch, ("LDS", 1, 0, 7, 0), ("FFMA", 4, 7, 7, 1), ("FFMA", 4, 7, 7, 1))
    assert warp_cycles(waits, b"", "f", 1000) == 30 + 4 + 4


def test_a_load_whose_address_was_loaded_waits_for_memory() -> None:
    hop = "a = x[(int)a];"
    more = cycles(hop * 3, "sm_80", 1000) - cycles(hop * 2, "sm_80", 1000)
    assert 1000 < more < 1060  # and the conversion and the address
