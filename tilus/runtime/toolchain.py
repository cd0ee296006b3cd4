"""Where the CUDA tools of the wheels lie: headers, the disassembler, versions. No toolkit and no GPU are needed.

The wheels share the namespace package `nvidia`, one folder per CUDA major version (`nvidia/cu13/include`) or, in older
ones, per component (`nvidia/cuda_runtime/include`). An installed toolkit serves where a wheel is missing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from functools import lru_cache
from pathlib import Path

from tilus.errors import CompileError

INSTALL_HINT = "install the CUDA wheels (no toolkit or GPU needed): pip install 'tilus-vm[cuda]'"
WHEELS = ("nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "cupy-cuda13x")
_EXE = ".exe" if sys.platform == "win32" else ""


def _wheel_folders() -> list[Path]:
    """Return the folders `nvidia/*` of every place where wheels are installed, the newest CUDA version first."""
    spec = importlib.util.find_spec("nvidia")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return sorted((folder for place in places for folder in Path(place).iterdir() if folder.is_dir()), reverse=True)


def _toolkit_folders() -> list[Path]:
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return [Path(place) for place in places if place]


def _find(relative: str) -> Path | None:
    """Return the first existing file with this path below a wheel's or a toolkit's folder."""
    for folder in (*_wheel_folders(), *_toolkit_folders()):
        if (folder / relative).is_file():
            return folder / relative
    return None


@lru_cache(maxsize=1)
def include_folder() -> Path:
    """Return the folder that holds `cuda_fp16.h`.

    Raises
    ------
    CompileError
        If no wheel and no toolkit has it.
    """
    header = _find("include/cuda_fp16.h")
    if header is None:
        raise CompileError("cuda_fp16.h was not found: the wheel nvidia-cuda-runtime is missing", hint=INSTALL_HINT)
    return header.parent


@lru_cache(maxsize=1)
def nvdisasm() -> Path:
    """Return the disassembler's program file.

    Raises
    ------
    CompileError
        If no wheel, no toolkit and no folder of `PATH` has it.
    """
    found = _find(f"bin/nvdisasm{_EXE}") or shutil.which("nvdisasm")
    if found is None:
        raise CompileError("nvdisasm was not found: the wheel nvidia-cuda-nvdisasm is missing", hint=INSTALL_HINT)
    return Path(found)


def wheel_version(name: str) -> str:
    """Return the version of an installed wheel, `-` if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "-"
