"""Registers, spills, shared memory and occupancy against ptxas's own words and NVIDIA's rules."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.compiled import ARCHS, binary
from tests.runtime.cuda_sources import DOT, PIPELINED, REGISTERS, WGMMA
from tilus.errors import CompileError, FormatError, LaunchError, TilusError
from tilus.runtime.elf import read_cubin
from tilus.runtime.nvrtc import CudaBinary
from tilus.runtime.resources import MULTIPROCESSORS, Resources, read_resources


def said(log: str, kernel: str) -> dict[str, int]:
    """Return what `ptxas -v` printed about a kernel."""
    part = log.split(f"Compiling entry function '{kernel}'")[1].split("Compiling entry function")[0]
    patterns = {
        "registers": r"Used (\d+) registers",
        "spill_stores": r"(\d+) bytes spill stores",
        "spill_loads": r"(\d+) bytes spill loads",
        "stack": r"(\d+) bytes stack frame",
        "static_shared": r"(\d+) bytes smem",
        "barriers": r"used (\d+) barriers",
    }
    return {name: int(found[1]) if (found := re.search(p, part)) else 0 for name, p in patterns.items()}


def read(made: CudaBinary, kernel: str) -> dict[str, int]:
    resources = read_resources(made.cubin, kernel=kernel)
    return {name: getattr(resources, name) for name in said(made.log, kernel)}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("options", [("-DLIMIT=128",), ("-DLIMIT=1024",), ("-DLIMIT=1024", "-DLOCAL")])
def test_the_cubin_says_what_ptxas_said(arch: str, options: tuple[str, ...]) -> None:
    made = binary(REGISTERS, arch, *options)
    for kernel in ("many", "few"):
        assert read(made, kernel) == said(made.log, kernel)
    spills = read_resources(made.cubin, kernel="many").spills
    assert (spills > 0) == ("-DLIMIT=1024" in options)


def test_a_register_limit_forces_spills() -> None:
    free, bound = binary(PIPELINED, "sm_80"), binary(PIPELINED, "sm_80", "--maxrregcount=16")
    assert read_resources(free.cubin).spills == 0
    assert read(bound, "gemm") == said(bound.log, "gemm")


def test_an_array_in_local_memory_is_no_spill() -> None:
    source = """extern "C" __global__ void f(int* x, int at) {
      int a[64]; for (int i = 0; i < 64; i++) a[i * at & 63] = x[i]; x[65] = a[at / 2]; }"""
    found = read_resources(binary(source, "sm_90a").cubin)
    assert found.stack == 256
    assert found.spills == 0


@pytest.mark.parametrize(
    ("source", "arch"), [(PIPELINED, "sm_80"), (PIPELINED, "sm_90a"), (WGMMA, "sm_90a"), (DOT, "sm_89")]
)
def test_more_kernels(source: str, arch: str) -> None:
    made = binary(source, arch)
    kernel = "dot" if source is DOT else "gemm"
    assert read(made, kernel) == said(made.log, kernel)


def test_max_threads() -> None:
    made = binary(REGISTERS, "sm_80", "-DLIMIT=128")
    assert read_resources(made.cubin, kernel="many").max_threads == 128
    assert read_resources(made.cubin, kernel="few").max_threads == 1024


def test_choosing_a_kernel() -> None:
    cubin = binary(REGISTERS, "sm_80", "-DLIMIT=128").cubin
    with pytest.raises(CompileError, match="the cubin has the kernels few, many"):
        read_resources(cubin)
    with pytest.raises(CompileError, match="not nobody"):
        read_resources(cubin, kernel="nobody")


def resources(arch: int, registers: int, static: int = 0, dynamic: int = 0, max_threads: int = 1024) -> Resources:
    return Resources("k", arch, registers, 0, 0, 0, static, dynamic, 1, max_threads)


@pytest.mark.parametrize(
    ("arch", "registers", "threads", "shared", "blocks"),
    [
        (80, 92, 128, 0, 5),  # 96 registers a thread, 5 warps a quarter
        (80, 32, 1024, 0, 2),  # 64 warps
        (80, 255, 128, 0, 2),  # 2 warps a quarter
        (80, 32, 32, 0, 32),  # blocks
        (86, 32, 32, 0, 16),
        (89, 32, 32, 0, 24),
        (86, 40, 256, 0, 6),  # 48 warps; the registers alone would allow 6 as well: 12 * 4 // 8
        (86, 32, 1024, 0, 1),
        (90, 168, 384, 0, 1),  # 12 warps of 168 registers each: Hopper's warp-specialised kernels
        (90, 168, 128, 0, 3),
        (80, 32, 128, 81 * 1024, 2),  # (81 + 1) * 2 = 164
        (80, 32, 128, 81 * 1024 + 1, 1),  # rounded up to 128 more
        (80, 32, 128, 163 * 1024, 1),
        (80, 32, 128, 163 * 1024 + 1, 0),
        (90, 32, 128, 227 * 1024, 1),
        (89, 32, 128, 99 * 1024 + 1, 0),
        (80, 128, 1024, 0, 0),  # 32 warps need 131072 registers
        (80, 64, 1024, 0, 1),
    ],
)
def test_occupancy(arch: int, registers: int, threads: int, shared: int, blocks: int) -> None:
    assert resources(arch, registers).occupancy(threads, shared) == blocks
    assert resources(arch, registers, dynamic=shared).occupancy(threads) == blocks
    assert resources(arch, registers, static=shared).occupancy(threads) == blocks


@given(st.sampled_from(sorted(MULTIPROCESSORS)), st.integers(1, 255), st.integers(1, 1024), st.integers(0, 230 * 1024))
def test_what_fits_is_within_every_limit(arch: int, registers: int, threads: int, shared: int) -> None:
    sm = MULTIPROCESSORS[arch]
    blocks = resources(arch, registers).occupancy(threads, shared)
    warps = -(-threads // 32)
    assert blocks * warps <= sm.warps
    assert blocks <= sm.blocks
    assert blocks * threads * registers <= 65536
    assert blocks * (shared + 1024) <= sm.shared_bytes
    assert resources(arch, max(registers - 1, 1)).occupancy(threads, shared) >= blocks
    assert resources(arch, registers).occupancy(threads, shared // 2) >= blocks


def test_the_binding_limit_has_a_name() -> None:
    limits = resources(80, 92).blocks_by_limit(128)
    assert min(limits, key=lambda name: limits[name]) == "registers"


def test_too_many_threads_and_unknown_machines() -> None:
    with pytest.raises(LaunchError, match="1 to 128 threads"):
        resources(80, 32, max_threads=128).occupancy(256)
    with pytest.raises(LaunchError):
        resources(80, 32).occupancy(0)
    with pytest.raises(CompileError, match="limits of sm_75 are not known"):
        resources(75, 32).occupancy(32)


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"not a cubin" * 20])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="expected a cubin"):
        read_resources(data)


@given(st.data())
def test_damaged_cubins_never_crash(data: st.DataObject) -> None:
    cubin = bytearray(binary(PIPELINED, "sm_80").cubin)
    if data.draw(st.booleans()):
        del cubin[data.draw(st.integers(64, len(cubin) - 300)) :]
        with pytest.raises(FormatError):
            read_cubin(bytes(cubin))
        return
    for at in data.draw(st.lists(st.integers(0, len(cubin) - 1), min_size=1, max_size=8)):
        cubin[at] ^= 0xFF
    with contextlib.suppress(TilusError):
        read_resources(bytes(cubin))
