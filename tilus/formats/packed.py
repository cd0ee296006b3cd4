"""Packed weights in a safetensors file: written as they lie in memory, read without repacking.

Every weight `name` is stored as the tensors `name.words`, `name.scales` and, where it has them, `name.zero_points`. The
file's metadata describes itself: under `tilus` stands a JSON object with the version of this description, and for each
weight its format (the layout expression that says where every bit lies), shape, original type and the SHA-256 of its
tensors; under `tilus.sha256` stands the digest of that text. A file that is cut short, altered, or newer than this
reader is refused as a whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.numpy

from tilus.dtypes import dtype
from tilus.errors import FormatError, TilusError
from tilus.runtime.weights.weight import QuantizedWeight, WeightFormat, host, like

VERSION = 1
TENSORS = ("words", "scales", "zero_points")


def save_weights(path: str | os.PathLike[str], weights: Mapping[str, QuantizedWeight]) -> None:
    """Write quantized weights to one safetensors file; the file appears whole or not at all.

    Raises
    ------
    FormatError
        For what is no quantized weight, or a file that cannot be written.
    """
    tensors: dict[str, np.ndarray] = {}
    entries: dict[str, Any] = {}
    for name, weight in weights.items():
        if not isinstance(name, str) or not isinstance(weight, QuantizedWeight):
            raise FormatError(
                f"{path}: expected quantized weights by name, got {type(weight).__name__} for {name!r}",
                hint="tilus.quantize makes a QuantizedWeight",
            )
        arrays = {part: host(getattr(weight, part)) for part in TENSORS if getattr(weight, part) is not None}
        arrays["words"] = arrays["words"].view(np.uint32)
        tensors |= {f"{name}.{part}": np.ascontiguousarray(a) for part, a in arrays.items()}
        entries[name] = {
            "format": str(weight.format),
            "shape": list(weight.shape),
            "dtype": weight.weight_dtype.name,
            "sha256": {part: _digest(a.tobytes()) for part, a in arrays.items()},
        }
    header = json.dumps({"version": VERSION, "weights": entries}, sort_keys=True)
    try:
        _write_whole(Path(path), tensors, {"tilus": header, "tilus.sha256": _digest(header.encode())})
    except (safetensors.SafetensorError, OSError) as error:
        raise FormatError(
            f"{path}: cannot be written: {error}", hint="is there such a folder, and room in it?"
        ) from error


def _write_whole(target: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
    os.close(handle)
    try:
        safetensors.numpy.save_file(tensors, temporary, metadata)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def load_weights(
    path: str | os.PathLike[str], *, framework: Literal["numpy", "torch"] = "numpy"
) -> dict[str, QuantizedWeight]:
    """Read the weights that `save_weights` wrote, as NumPy arrays or torch tensors.

    Raises
    ------
    FormatError
        If anything in the file is not as it was written; then nothing is loaded.
    """
    if framework not in ("numpy", "torch"):
        raise FormatError(f"framework must be 'numpy' or 'torch', got {framework!r}")
    try:
        with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            entries = _entries(path, metadata)
            model = _model(framework)
            return {name: _weight(path, file, name, entry, model) for name, entry in entries.items()}
    except FileNotFoundError as error:
        raise FormatError(f"{path}: there is no such file") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise FormatError(
            f"{path}: not a whole safetensors file ({error})", hint="copy or download it again"
        ) from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _entries(path: Any, metadata: Mapping[str, str]) -> dict[str, Any]:
    text = metadata.get("tilus")
    if text is None:
        raise FormatError(
            f"{path}: no packed weights of this project", hint="tilus.formats lists readers of other files"
        )
    if _digest(text.encode()) != metadata.get("tilus.sha256"):
        raise FormatError(f"{path}: the description of the weights was altered", hint="copy or download the file again")
    header = json.loads(text)
    if header["version"] != VERSION:
        raise FormatError(
            f"{path}: written in version {header['version']} of the format, this reader knows {VERSION}",
            hint="update tilus-vm",
        )
    entries: dict[str, Any] = header["weights"]
    return entries


def _model(framework: str) -> Any:
    """Return an array of the wanted library."""
    if framework == "numpy":
        return np.empty(0)
    import torch  # only where tensors are asked for

    return torch.empty(0)


def _weight(path: Any, file: Any, name: str, entry: dict[str, Any], model: Any) -> QuantizedWeight:
    arrays: dict[str, np.ndarray] = {}
    present = set(file.keys())
    for part, digest in entry["sha256"].items():
        if f"{name}.{part}" not in present:
            raise FormatError(f"{path}: tensor {name}.{part} is missing", hint="copy or download the file again")
        arrays[part] = file.get_tensor(f"{name}.{part}")
        if _digest(np.ascontiguousarray(arrays[part]).tobytes()) != digest:
            raise FormatError(f"{path}: tensor {name}.{part} was altered", hint="copy or download the file again")
    try:
        form = WeightFormat.parse(entry["format"])
    except TilusError as error:
        raise FormatError(f"{path}: cannot read the format of {name!r}: {error.message}") from error
    n, k = entry["shape"]
    zeros = arrays.get("zero_points")
    shapes = {"words": form.pack.packed_shape(n, k), "scales": (form.groups(k), n), "zero_points": (form.groups(k), n)}
    for part, array in arrays.items():
        if array.shape != shapes[part]:
            raise FormatError(f"{path}: tensor {name}.{part} has shape {array.shape}, expected {shapes[part]}")
    if (zeros is None) == (form.zero_point == "tensor"):
        raise FormatError(f"{path}: zero points of {name!r} do not agree with its format {entry['format']!r}")
    parts = {part: like(a, model) for part, a in arrays.items()}
    return QuantizedWeight(
        form, (n, k), parts["words"], parts["scales"], parts.get("zero_points"), dtype(entry["dtype"])
    )
