"""Checkpoints in the `pack-quantized` format of compressed-tensors.

Per linear layer (tensor names end in these; N outputs, K inputs, G groups, b bits):

* `weight_packed`, int32 [N, words]: codes along K as a little-endian bit stream of ceil(K*b/32) words. Writers before
  0.18 put 32 // b codes into each word and left its top bits empty. The number of words tells which, and where both
  take as many (3 bits, K = 20), the version in the configuration does.
* `weight_scale`, float [N, G], or a single one; `weight_shape`, integers [2]: N and K.
* `weight_zero_point` (asymmetric), int32 [words, G]: zero points, packed along N in the same way.

Signed values are stored with an offset of 2^(b-1), zero points too, so both are codes of `u{b}` here. The tensors of a
layer may lie in different files of a checkpoint.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import safetensors

from tilus.dtypes import DataType, dtype
from tilus.errors import FormatError, TilusError
from tilus.runtime.arguments import describe
from tilus.runtime.weights.packing import native_pack
from tilus.runtime.weights.weight import QuantizedWeight, WeightFormat

FORMAT = "pack-quantized"
_PACKED, _DENSE_SINCE = "packed", (0, 18)
_PARTS = (_PACKED, "scale", "shape", "zero_point", "g_idx")
_FLOATS = ("f16", "bf16", "f32")
_DAMAGED = "copy or download the checkpoint again"


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
    config = _Config.read(root)
    paths = sorted(root.glob("*.safetensors"))
    if not paths:
        raise FormatError(f"{root}: no *.safetensors files")
    with ExitStack() as files:
        layers = _layers(paths, files)
        if not layers:
            raise FormatError(f"{root}: no packed weights (tensors named *.weight_{_PACKED})")
        return {name: _Layer(root, name, parts, config.scheme(name)).weight() for name, parts in layers.items()}


Reader = Callable[[], np.ndarray]


def _layers(paths: list[Path], files: ExitStack) -> dict[str, dict[str, Reader]]:
    """Return how to read the tensors of every layer that has packed codes: by layer, then by part."""
    found: dict[str, dict[str, Reader]] = {}
    for path in paths:
        try:
            file = files.enter_context(safetensors.safe_open(path, framework="numpy"))
            keys = list(file.keys())
        except (safetensors.SafetensorError, OSError) as error:
            raise FormatError(f"{path}: not a whole safetensors file ({error})", hint=_DAMAGED) from error
        for key in keys:
            name, _, part = key.rpartition(".weight_")
            if part not in _PARTS:
                continue
            if part in found.setdefault(name, {}):
                raise FormatError(f"{path}: tensor {key} is in another file too", hint=_DAMAGED)
            found[name][part] = lambda path=path, file=file, key=key: _tensor(path, file, key)  # type: ignore[misc]
    return {name: parts for name, parts in found.items() if _PACKED in parts}


def _tensor(path: Path, file: Any, key: str) -> np.ndarray:
    try:
        array: np.ndarray = file.get_tensor(key)
    except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:  # also types that NumPy lacks
        raise FormatError(f"{path}: tensor {key} cannot be read: {error}", hint=_DAMAGED) from error
    return array


# --- configuration ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scheme:
    """How the weights of a layer are quantized; `dense` says how codes lie where their number of words does not."""

    kind: DataType
    group_size: int | None
    symmetric: bool
    dense: bool | None


@dataclass(frozen=True, slots=True)
class _Config:
    root: Path
    content: Mapping[str, Any]

    @classmethod
    def read(cls, root: Path) -> _Config:
        try:
            config = json.loads((root / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise FormatError(f"{root}/config.json cannot be read: {error}") from error
        found = config.get("quantization_config") if isinstance(config, dict) else None
        if not isinstance(found, dict):
            raise FormatError(f"{root}/config.json: no object 'quantization_config'")
        if found.get("quant_method") != "compressed-tensors":
            raise FormatError(f"{root}: quant_method is {found.get('quant_method')!r}, expected 'compressed-tensors'")
        return cls(root, found)

    def error(self, message: str, hint: str | None = None) -> FormatError:
        return FormatError(f"{self.root}/config.json: {message}", hint=hint)

    def scheme(self, layer: str) -> _Scheme:
        group = self.group(layer)
        form = group.get("format") or self.content.get("format")
        if form != FORMAT:
            raise self.error(f"layer {layer!r} is stored as {form!r}, expected {FORMAT!r}")
        weights = group.get("weights")
        if not isinstance(weights, dict):
            raise self.error(f"the group of layer {layer!r} does not say how weights are quantized")
        bits, size = weights.get("num_bits"), weights.get("group_size")
        if weights.get("type", "int") != "int":
            raise self.error(f"weights of layer {layer!r} are of type {weights['type']!r}, expected 'int'")
        if not _is_int(bits) or not 1 <= bits <= 8:
            raise self.error(f"num_bits of layer {layer!r} must be 1 to 8, got {bits!r}")
        if size is not None and (not _is_int(size) or (size != -1 and size <= 0)):
            raise self.error(f"group_size of layer {layer!r} must be a positive integer, -1 or null, got {size!r}")
        symmetric = weights.get("symmetric", True)
        if not isinstance(symmetric, bool):
            raise self.error(f"symmetric of layer {layer!r} must be true or false, got {symmetric!r}")
        return _Scheme(dtype(f"u{bits}"), None if size == -1 else size, symmetric, self.dense())

    def group(self, layer: str) -> Mapping[str, Any]:
        """Return the group that targets a layer: by its name before a pattern, by a pattern before its class."""
        groups = self.content.get("config_groups")
        if not isinstance(groups, dict) or not all(isinstance(g, dict) for g in groups.values()):
            raise self.error("no object 'config_groups' of objects")
        ranked = [(rank, group) for group in groups.values() if (rank := self.rank(group, layer)) is not None]
        if not ranked:
            raise self.error(f"no group of config_groups targets layer {layer!r}")
        found: Mapping[str, Any] = min(ranked, key=lambda pair: pair[0])[1]
        return found

    def rank(self, group: Mapping[str, Any], layer: str) -> int | None:
        targets = group.get("targets")
        if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
            raise self.error(f"targets must be a list of names, got {targets!r}")
        ranks = [rank for target in targets if (rank := self.match(target, layer)) is not None]
        return min(ranks, default=None)

    def match(self, target: str, layer: str) -> int | None:
        """Return how loosely a target names a layer, or None. Classes are not stored: every layer is a Linear."""
        if target == layer:
            return 0
        if target.startswith("re:"):
            try:
                return 1 if re.match(target.removeprefix("re:"), layer) else None
            except re.error as error:
                raise self.error(f"the target {target!r} is no regular expression: {error}") from error
        return 2 if target == "Linear" else None

    def dense(self) -> bool | None:
        """Return whether the writer left no bits empty; None if the configuration does not say which version it was."""
        version = re.match(r"(\d+)\.(\d+)", str(self.content.get("version", "")))
        return None if version is None else (int(version[1]), int(version[2])) >= _DENSE_SINCE


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


# --- one layer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layer:
    root: Path
    name: str
    parts: Mapping[str, Reader]
    scheme: _Scheme

    def error(self, message: str, hint: str | None = _DAMAGED) -> FormatError:
        return FormatError(f"{self.root}: layer {self.name!r}: {message}", hint=hint)

    def weight(self) -> QuantizedWeight:
        if "g_idx" in self.parts:
            raise self.error("its groups are permuted (g_idx)", "export it without activation order")
        n, k = self.extents()
        scales = self.scales(n)
        groups = scales.shape[1]
        size = self.scheme.group_size or -1
        expected = 1 if size == -1 else -(-k // size)
        if groups not in (1, expected):
            raise self.error(f"{groups} groups of {size} for {k} inputs, expected {expected}")
        codes = self.codes(_PACKED, self.tensor(_PACKED, ("i32",), (n, None)), k)
        zeros = None
        if not self.scheme.symmetric:
            packed = self.tensor("zero_point", ("i32",), (None, groups))
            zeros = np.ascontiguousarray(self.codes("zero_point", packed.T, n))
        found = describe(scales)
        assert found is not None, "checked by tensor"
        try:
            pack = native_pack(self.scheme.kind, "cpu")
            form = WeightFormat(pack, -1 if groups == 1 else size, "half" if zeros is None else "tensor")
        except TilusError as error:
            raise self.error(error.message, error.hint) from error
        return QuantizedWeight(form, (n, k), pack.pack(codes), np.ascontiguousarray(scales.T), zeros, found.dtype)

    def tensor(self, part: str, kinds: tuple[str, ...], shape: tuple[int | None, ...]) -> np.ndarray:
        """Return a tensor of one of some types and a shape, where None stands for any extent."""
        if part not in self.parts:
            raise self.error(f"tensor weight_{part} is missing")
        array = self.parts[part]()
        found = describe(array)
        fits = len(shape) == array.ndim and all(
            want in (None, got) for want, got in zip(shape, array.shape, strict=True)
        )
        if not fits or found is None or found.dtype.name not in kinds:
            wanted = ", ".join("*" if want is None else str(want) for want in shape)
            raise self.error(
                f"weight_{part} must be {' or '.join(kinds)} [{wanted}], got {array.dtype} {list(array.shape)}"
            )
        return array

    def extents(self) -> tuple[int, int]:
        n, k = (int(extent) for extent in self.tensor("shape", ("i64", "i32"), (2,)))
        if n <= 0 or k <= 0:
            raise self.error(f"weight_shape must be positive, got [{n}, {k}]")
        return n, k

    def scales(self, n: int) -> np.ndarray:
        """Return the scales [N, groups]; a single one is that of every row."""
        whole = self.parts["scale"]() if "scale" in self.parts else None
        if whole is not None and whole.size == 1 and whole.ndim <= 2:
            if not self.scheme.symmetric and n > 1:
                raise self.error("one scale for the whole weight and zero points is not supported", None)
            scales = np.repeat(self.tensor("scale", _FLOATS, whole.shape).reshape(1, 1), n, axis=0)
        elif whole is not None and whole.ndim == 1:
            scales = self.tensor("scale", _FLOATS, (n,)).reshape(n, 1)
        else:
            scales = self.tensor("scale", _FLOATS, (n, None))
        bad = ~np.isfinite(scales.astype(np.float32))
        if bad.any():
            raise self.error(f"{int(bad.sum())} scales are not finite, the first that of row {np.argwhere(bad)[0][0]}")
        return scales

    def codes(self, part: str, words: np.ndarray, count: int) -> np.ndarray:
        """Return codes [rows, count] of words [rows, W]."""
        bits, per_word = self.scheme.kind.nbits, 32 // self.scheme.kind.nbits
        given, dense, padded = words.shape[1], -(-count * bits // 32), -(-count // per_word)
        if given not in (dense, padded):
            raise self.error(
                f"weight_{part} has {given} words a row for {count} codes of {bits} bits, expected {dense}"
                + (f" or {padded}" if padded != dense else "")
            )
        is_dense = given == dense
        if dense == padded and 32 % bits:
            if self.scheme.dense is None:
                raise self.error(
                    f"{given} words a row may hold {count} codes of {bits} bits in two ways, "
                    "and the configuration does not say by which version they were written",
                    "add the version of compressed-tensors to quantization_config",
                )
            is_dense = self.scheme.dense
        words = np.ascontiguousarray(words).view(np.uint32)
        return _dense(words, bits, count) if is_dense else _padded(words, bits, count)


def _dense(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    stream = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")[:, : count * bits]
    weights = (1 << np.arange(bits)).astype(np.uint8)
    codes: np.ndarray = (stream.reshape(len(words), count, bits) * weights).sum(axis=2, dtype=np.uint8)
    return codes


def _padded(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
    fields = (words[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)
    codes: np.ndarray = fields.reshape(len(words), -1)[:, :count].astype(np.uint8)
    return codes
