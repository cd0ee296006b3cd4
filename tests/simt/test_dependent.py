"""Kernels that start before earlier ones have ended: what they may do until they wait, and what it takes to launch them."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tilus
from tests.agreement.test_library import quantized
from tests.simt.build import run
from tests.simt.library import bits, compiled, on_simt
from tilus.dtypes import dtype, f16, f32
from tilus.errors import TilusError
from tilus.ir.program import Program
from tilus.ir.types import PointerType
from tilus.kernels.programs import add_parts
from tilus.runtime import launch_cuda, launch_ex
from tilus.runtime.knobs import knobs
from tilus.runtime.launch_cuda import CudaKernel
from tilus.runtime.toolchain import include_folder

WAIT = "griddepcontrol.wait;"
LOAD = "ld.global.u32 %r1, [%rd50];"


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        (LOAD + WAIT, ["dependency"]),
        (WAIT + LOAD, []),
        (LOAD, ["dependency"]),
        ("cp.async.bulk.prefetch.L2.global [%rd50], 64;" + WAIT, []),
        ("cp.async.bulk.prefetch.L2.global [%rd50], 80;" + WAIT, ["bounds"]),
        ("cp.async.bulk.prefetch.L2.global [%rd50+4], 32;" + WAIT, ["misaligned"]),
        ("griddepcontrol.launch_dependents;" + LOAD, ["dependency"]),
    ],
)
def test_what_comes_before_the_wait(body: str, kinds: list[str]) -> None:
    report = run(body, [np.arange(16, dtype=np.uint32)], dependent=True)
    assert [f.kind for f in report.findings] == kinds


def case() -> tuple[Program, list[Any]]:
    """Return a product whose arrays are known to be aligned."""
    program, args = quantized({"name": "u4", "where": "sm_90a", "zero_point": True, "m": 3, "group": 32,
                               "shape": (70, 300), "activation": "f16", "bias": True})  # fmt: skip
    aligned = [replace(p, multiple=16) if isinstance(p.var.type, PointerType) else p for p in program.params]
    return replace(program, params=tuple(aligned)), args


def test_products_wait_for_earlier_kernels() -> None:
    """The weights' prefetch alone stands before the wait; without the wait every access is too early."""
    program, args = case()
    text = compiled(program, "sm_90a").ptx
    before, wait, _ = text.partition("griddepcontrol.wait;")
    assert wait
    assert before.count("cp.async.bulk.prefetch.L2") >= 1
    found, report = on_simt(program, args, "sm_90a")
    assert report.ok
    other, report = on_simt(program, args, "sm_80")
    assert report.ok
    assert (bits(found) == bits(other)).all()
    _, report = on_simt(program, args, "sm_90a", edit=("griddepcontrol.wait;", ""))
    assert {f.kind for f in report.findings} == {"dependency"}
    assert "griddepcontrol" not in compiled(program, "sm_80").ptx


def test_sums_of_parts_wait_too() -> None:
    options = {"XT": f16, "ST": f16, "SPLIT": 2, "GROUP": 32, "SCALED": False, "BIAS": False}
    built = add_parts.compile(target="sm_90a", **options)
    assert built.ptx.index("griddepcontrol.wait;") < built.ptx.index("ld.global")


@tilus.kernel
def hasty(x: tilus.ptr[f32], y: tilus.ptr[f32], n: dtype("i32")):
    tilus.launch(blocks=(tilus.cdiv(n, 64),), warps=1)
    at = tilus.block_id(0) * 64
    tile = tilus.load_global(tilus.global_view(x, shape=(n,)), offset=(at,), shape=(64,))
    tilus.grid_dependency_wait()
    tilus.store_global(tilus.global_view(y, shape=(n,)), tile, offset=(at,))


@tilus.kernel
def sometimes(x: tilus.ptr[f32], n: dtype("i32")):
    tilus.launch(blocks=(1,), warps=1)
    if n > 3:
        tilus.grid_dependency_wait()
    tilus.store_global(tilus.global_view(x, shape=(n,)), tilus.zeros((64,), f32), offset=(0,))


@pytest.mark.parametrize(
    ("program", "message", "line"),
    [
        (hasty, "global memory is accessed before grid_dependency_wait", "tile = tilus.load_global"),
        (sometimes, "grid_dependency_wait stands in a branch or loop", "tilus.grid_dependency_wait()"),
    ],
)
def test_mistakes_are_named_with_their_line(program, message: str, line: str) -> None:
    with pytest.raises(TilusError, match=message) as caught:
        program.compile(target="sm_90a").build()
    assert line in str(caught.value)


# --- the driver -------------------------------------------------------------------------------------------------------

DRIVER = r"""
#include <cuda.h>
unsigned long long seen[16];
CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void** params, void** extra) {
  unsigned long long all[] = {
    c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ, c->sharedMemBytes,
    (unsigned long long)c->hStream, c->numAttrs, c->attrs[0].id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
    c->attrs[0].value.programmaticStreamSerializationAllowed, (unsigned long long)f, *(int*)params[0], extra == 0,
    sizeof *c->attrs, sizeof *c };
  for (int i = 0; i < 16; ++i) seen[i] = all[i];
  return c->blockDimX > 1024 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """A driver that keeps what a launch says, as `cuda.h` reads it."""
    source, library = tmp_path / "driver.c", tmp_path / "libdriver.so"
    source.write_text(DRIVER)
    compiler = shutil.which("gcc")
    assert compiler
    subprocess.run([compiler, "-shared", "-fPIC", f"-I{include_folder()}", "-o", library, source], check=True)
    loaded = ctypes.CDLL(str(library))
    monkeypatch.setattr(launch_ex, "load_driver", lambda: loaded)
    cuda = SimpleNamespace(
        runtime=SimpleNamespace(getDevice=lambda: 0),
        get_current_stream=lambda device: SimpleNamespace(ptr=70),
        function=SimpleNamespace(
            Module=lambda: SimpleNamespace(
                load=lambda cubin: None, get_function=lambda name: SimpleNamespace(ptr=1 << 40)
            )
        ),
    )
    monkeypatch.setattr(launch_cuda, "load_cupy", lambda: SimpleNamespace(cuda=cuda))
    return loaded


def test_the_driver_reads_what_a_launch_says(driver: ctypes.CDLL) -> None:
    CudaKernel(b"", "f", 0, dependent=True).launch((2, 3), (128,), [np.int32(-5)], stream=9)
    seen = [*(ctypes.c_longlong * 16).in_dll(driver, "seen")]
    sizes = [ctypes.sizeof(launch_ex._Attribute), ctypes.sizeof(launch_ex._Config)]
    assert seen == [2, 3, 1, 128, 1, 1, 0, 9, 1, 1, 1, 1 << 40, -5, 1, *sizes]


def test_a_refusal_is_told(driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    from cupy_backends.cuda.api import driver as usual

    monkeypatch.setattr(usual, "CUDADriverError", RuntimeError)
    with pytest.raises(TilusError, match=r"refused kernel 'f' with grid \(1,\), block \(2048,\)"):
        CudaKernel(b"", "f", 0, dependent=True).launch((1,), (2048,), [np.int32(1)])


def test_the_knob(driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    from cupy_backends.cuda.api import driver as usual

    calls: list[int] = []
    monkeypatch.setattr(usual, "launchKernel", lambda *args: calls.append(args[0]))
    with knobs.scope(dependent_launch=False):
        CudaKernel(b"", "f", 0, dependent=True).launch((1,), (32,), [np.int32(1)])
    CudaKernel(b"", "f").launch((1,), (32,), [np.int32(1)])
    assert calls == [1 << 40] * 2
