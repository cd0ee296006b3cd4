"""Checkpoints in the `pack-quantized` format of compressed-tensors.

Per linear layer (tensor names end in these; N outputs, K inputs, G groups, b bits):

* `weight_packed`, int32 [N, ceil(K*b/32)]: codes along K as a little-endian bit stream. Older writers leave the top
  32 mod b bits of every word empty; the width tells which.
* `weight_scale`, float [N, G]; `weight_shape`, int64 [2]: N and K.
* `weight_zero_point` (asymmetric), int32 [ceil(N*b/32), G]: zero points, packed along N.

Signed values are stored with an offset of 2^(b-1), zero points too, so both are codes of `u{b}` here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from tilus.dtypes import DataType, dtype
from tilus.errors import FormatError
from tilus.runtime.arguments import describe
from tilus.runtime.weights.packing import native_pack
from tilus.runtime.weights.weight import QuantizedWeight, WeightFormat

_SUFFIX = ".weight_packed"
FORMAT = "pack-quantized"


def load_compressed_tensors(folder: str | os.PathLike[str]) -> dict[str, QuantizedWeight]:
    """Read every quantized linear layer of a checkpoint folder, by module name.

    Parameters
    ----------
    folder : path
        Holds `config.json` with its `quantization_config` and one or more `*.safetensors`.

    Raises
    ------
    FormatError
        For another format, or files that are damaged or do not agree with the configuration; then nothing is loaded.
    """
    root = Path(folder)
    config = _config(root)
    files = sorted(root.glob("*.safetensors"))
    if not files:
        raise FormatError(f"{root}: no *.safetensors files")
    weights: dict[str, QuantizedWeight] = {}
    for path in files:
        tensors = _tensors(path)
        for key in tensors:
            if key.endswith(_SUFFIX):
                name = key.removesuffix(_SUFFIX)
                weights[name] = _weight(path, name, tensors, _scheme(root, config, name))
    if not weights:
        raise FormatError(f"{root}: no packed weights (tensors named *{_SUFFIX})")
    return weights


def _config(root: Path) -> dict[str, Any]:
    try:
        config = json.loads((root / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise FormatError(f"{root}/config.json cannot be read: {error}") from error
    found: dict[str, Any] = config.get("quantization_config") or {}
    if found.get("quant_method") != "compressed-tensors":
        raise FormatError(f"{root}: quant_method is {found.get('quant_method')!r}, expected 'compressed-tensors'")
    return found


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors that belong to packed layers."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys() if key.rsplit(".", 1)[-1].startswith("weight_")}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise FormatError(
            f"{path}: not a whole safetensors file ({error})", hint="copy or download it again"
        ) from error


def _scheme(root: Path, config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the weight arguments that apply to a module, the first group that targets it."""
    for group in config.get("config_groups", {}).values():
        form = group.get("format") or config.get("format")
        if _targets(group.get("targets", []), name):
            if form != FORMAT:
                raise FormatError(f"{root}: layer {name!r} is stored as {form!r}, expected {FORMAT!r}")
            scheme: Mapping[str, Any] = group["weights"]
            return scheme
    raise FormatError(f"{root}: no group of quantization_config covers layer {name!r}")


def _targets(targets: list[str], name: str) -> bool:
    return any(t == "Linear" or t == name or fnmatch(name, t.removeprefix("re:").replace(".*", "*")) for t in targets)


def _weight(path: Path, name: str, tensors: Mapping[str, np.ndarray], scheme: Mapping[str, Any]) -> QuantizedWeight:
    def tensor(part: str) -> np.ndarray:
        key = f"{name}.weight_{part}"
        if key not in tensors:
            raise FormatError(f"{path}: tensor {key} is missing")
        return tensors[key]

    if f"{name}.weight_g_idx" in tensors:
        raise FormatError(
            f"{path}: layer {name!r} has its groups permuted (g_idx)", hint="export it without activation order"
        )
    kind = dtype(f"u{scheme['num_bits']}")
    n, k = (int(v) for v in tensor("shape"))
    scales = (
        tensor("scale").reshape(n, -1) if tensor("scale").size != 1 else np.full((n, 1), tensor("scale").ravel()[0])
    )
    groups = scales.shape[1]
    group_size = -1 if groups == 1 else int(scheme["group_size"])
    if groups > 1 and -(-k // group_size) != groups:
        raise FormatError(f"{path}: layer {name!r} has {groups} groups of {group_size} for {k} inputs")
    codes = _unpack(path, name, tensor("packed"), kind, k)
    zeros = None
    if not scheme.get("symmetric", True):
        zeros = np.ascontiguousarray(_unpack(path, name, tensor("zero_point").T, kind, n).astype(np.uint8))
    found = describe(scales)
    assert found is not None
    form = WeightFormat(native_pack(kind, "cpu"), group_size, "half" if zeros is None else "tensor")
    return QuantizedWeight(form, (n, k), form.pack.pack(codes), np.ascontiguousarray(scales.T), zeros, found.dtype)


def _unpack(path: Path, name: str, words: np.ndarray, kind: DataType, count: int) -> np.ndarray:
    """Return codes [rows, count] of int32 words [rows, W], dense or padded to whole codes a word."""
    words = np.ascontiguousarray(words).view(np.uint32)
    per_word = 32 // kind.nbits
    if words.shape[1] == -(-count * kind.nbits // 32):
        bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")[:, : count * kind.nbits]
        weights = (1 << np.arange(kind.nbits)).astype(np.uint8)
        codes: np.ndarray = (bits.reshape(len(words), count, kind.nbits) * weights).sum(axis=2).astype(np.uint8)
        return codes
    if words.shape[1] == -(-count // per_word):
        shifts = np.arange(per_word, dtype=np.uint32) * kind.nbits
        fields = (words[:, :, None] >> shifts) & np.uint32(kind.num_codes - 1)
        padded: np.ndarray = fields.reshape(len(words), -1)[:, :count].astype(np.uint8)
        return padded
    raise FormatError(f"{path}: layer {name!r} has {words.shape[1]} words a row for {count} codes of {kind}")
