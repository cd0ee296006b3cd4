"""`tilus doctor`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import tilus
from tilus.cli.cache import entries
from tilus.cli.group import as_json, main, show
from tilus.errors import TilusError
from tilus.runtime import cache
from tilus.runtime.knobs import knobs


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `tilus doctor`: `state` is `ok` or says what does without it."""

    item: str
    found: str
    state: str = "ok"


@main.command()
@as_json
def doctor(as_json: bool) -> None:
    """Say what is installed and found: CPU, Python, libraries, CUDA tools, GPU, cache."""
    show("tilus doctor", [asdict(finding) for finding in _findings()], as_json)


def _findings() -> Iterator[Finding]:
    yield Finding("tilus", tilus.__version__)
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield _attempt("cpu", _cpu, "no CPU target: pip install llvmlite")
    yield _attempt("cpu threads", _threads, "no CPU target: pip install llvmlite")
    for name, what in _LIBRARIES.items():
        yield _library(name, what)
    yield _attempt("nvrtc", _nvrtc, "no CUDA targets: pip install 'tilus-vm[cuda]'")
    yield _attempt("cuda headers", _headers, "no CUDA targets: pip install 'tilus-vm[cuda]'")
    yield _attempt("nvdisasm", _nvdisasm, "no disassembly: pip install 'tilus-vm[cuda]'")
    yield _attempt("gpu", _gpu, "none: kernels for a GPU can be compiled and examined, not run")
    yield Finding("cache", f"{knobs.cache_dir}: {len(entries())} kernels, {cache.size() / 1e6:.1f} MB")


_LIBRARIES = {
    "numpy": "",
    "ml_dtypes": "",
    "llvmlite": "no CPU target",
    "torch": "no torch tensors, QuantLinear or demo",
    "cupy": "no launch on a GPU",
    "safetensors": "no files of weights",
    "transformers": "no demo",
}


def _library(name: str, without: str) -> Finding:
    if importlib.util.find_spec(name) is None:
        return Finding(name, "-", without)
    distribution = "cupy-cuda13x" if name == "cupy" else name
    return Finding(name, importlib.metadata.version(distribution))


def _attempt(item: str, find: Any, without: str) -> Finding:
    """Return what `find` finds; a tool that is absent or broken is a finding, not an error."""
    try:
        return Finding(item, find())
    except (TilusError, ImportError, OSError, RuntimeError) as error:
        reason = getattr(error, "message", None) or str(error) or type(error).__name__
        return Finding(item, "-", f"{without} ({reason.splitlines()[0]})")


_ISA = (
    *("avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512vnni", "avx512bf16", "avx512fp16", "amx-tile", "amx-int8"),
    *("neon", "dotprod", "i8mm", "sve"),
)


def _cpu() -> str:
    from tilus.runtime.cpu_features import host_cpu  # loads LLVM

    cpu = host_cpu()
    return f"{cpu.name}, {cpu.simd_bits}-bit vectors: {' '.join(filter(cpu.has, _ISA))}"


def _threads() -> str:
    from tilus.runtime.cpu_pool import default_threads  # loads LLVM

    return str(default_threads())


def _nvrtc() -> str:
    from tilus.runtime.nvrtc import toolchain_version  # loads NVRTC

    return toolchain_version()


def _headers() -> str:
    from tilus.runtime.toolchain import include_folder

    return str(include_folder())


def _nvdisasm() -> str:
    from tilus.runtime.toolchain import nvdisasm

    return str(nvdisasm())


def _gpu() -> str:
    import cupy

    count = cupy.cuda.runtime.getDeviceCount()
    names = [cupy.cuda.runtime.getDeviceProperties(device)["name"].decode() for device in range(count)]
    return ", ".join(names)
