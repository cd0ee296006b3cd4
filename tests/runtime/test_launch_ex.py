"""Launches with attributes: a driver compiled from `cuda.h` reads what they say."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tilus.errors import TilusError
from tilus.runtime import launch_cuda, launch_ex
from tilus.runtime.knobs import knobs
from tilus.runtime.launch_cuda import CudaKernel
from tilus.runtime.toolchain import include_folder

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
