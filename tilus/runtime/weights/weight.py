"""Quantized weights: packed codes with scales and zero points, and the text that describes them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np

from tilus.dtypes import DataType, dtype
from tilus.errors import QuantizeError
from tilus.runtime.arguments import DTYPES, as_numpy, is_torch
from tilus.runtime.targets import Device
from tilus.runtime.weights.packing import PackLayout, native_pack, native_packs

ZeroPoint = Literal["none", "half", "tensor"]
_FORMAT = re.compile(
    r"(.*) \| group (-?\d+) \| zero (none|half|tensor)(?: \| scale (\w+))?(?: \| times ([-+.\de]+))?", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """Everything about a quantized weight but its numbers: a value with a text form.

    Attributes
    ----------
    pack : PackLayout
        Type of the codes and their order in memory.
    group_size : int
        Weights along K that share a scale; -1 for a whole row.
    zero_point : "none", "half" or "tensor"
        What is subtracted from a code's value: nothing, 2^(bits-1), or a zero point of its group.
    scale : DataType, optional
        Type of scales of 8 bits, whose array holds codes; scales of other types are an array of that type.
    tensor_scale : float
        By which every value is multiplied, besides; 1 for most.
    """

    pack: PackLayout
    group_size: int
    zero_point: ZeroPoint
    scale: DataType | None = None
    tensor_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.group_size != -1 and (self.group_size <= 0 or self.group_size % 16):
            raise QuantizeError(f"group_size must be a positive multiple of 16 or -1, got {self.group_size}")
        if self.zero_point != "none" and not self.dtype.is_integer:
            raise QuantizeError(f"{self.dtype} has a sign of its own and takes no zero point")

    @property
    def dtype(self) -> DataType:
        """Type of the codes."""
        return self.pack.dtype

    @property
    def of_stored(self) -> WeightFormat:
        """The format of the same arrays that kernels are made for: of what the words store."""
        pack, scale = self.pack.of_stored, self.tensor_scale * self.pack.unit
        return self if pack is self.pack else replace(self, pack=pack, tensor_scale=scale)

    def groups(self, k: int) -> int:
        """Return the number of groups along K."""
        return 1 if self.group_size < 0 else -(-k // self.group_size)

    def __str__(self) -> str:
        scale = "" if self.scale is None else f" | scale {self.scale}"
        times = "" if self.tensor_scale == 1.0 else f" | times {self.tensor_scale!r}"
        return f"{self.pack} | group {self.group_size} | zero {self.zero_point}{scale}{times}"

    @staticmethod
    @cache
    def parse(text: str) -> WeightFormat:
        """Read what `str` wrote."""
        found = _FORMAT.fullmatch(text.strip())
        if found is None:
            raise QuantizeError(f"expected 'type | layout | words | group G | zero Z', got {text!r}")
        pack, size, kind, scale, times = found.groups()
        return WeightFormat(
            PackLayout.parse(pack),
            int(size),
            kind,  # type: ignore[arg-type]
            None if scale is None else dtype(scale),
            float(times or 1.0),
        )


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight [N, K]: value = (decode(code) - zero point) * scale.

    Attributes
    ----------
    format : WeightFormat
    shape : (int, int)
        N (outputs) and K (inputs).
    words : array of 32-bit integers
        Packed codes, shape `format.pack.packed_shape(N, K)`; NumPy uint32 or torch int32.
    scales : float array [groups, N]
        Codes, uint8, if the format gives scales a type of 8 bits.
    zero_points : int8 or uint8 array [groups, N], or None
    weight_dtype : DataType
        Type of the weight before it was quantized: what `dequantize` returns.
    """

    format: WeightFormat
    shape: tuple[int, int]
    words: Any
    scales: Any
    zero_points: Any | None
    weight_dtype: DataType

    def __repr__(self) -> str:
        n, k = self.shape
        return f"QuantizedWeight({self.dtype}, [{n}, {k}], group_size={self.format.group_size}, {self.nbytes} bytes)"

    @property
    def dtype(self) -> DataType:
        """Type of the codes."""
        return self.format.dtype

    @cached_property
    def format_text(self) -> str:
        """`str(format)`, as `torch.ops.tilus` takes it."""
        return str(self.format)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points together."""
        arrays = (self.words, self.scales, self.zero_points)
        return sum(
            a.size * a.itemsize if isinstance(a, np.ndarray) else a.numel() * a.element_size()
            for a in arrays
            if a is not None
        )

    def codes(self) -> np.ndarray:
        """Return the codes [N, K]."""
        return self.format.pack.unpack(host(self.words).view(np.uint32), *self.shape)

    def dequantize(self, dtype: str | DataType | None = None) -> Any:
        """Return the weight [N, K], each value rounded once to `dtype` (default: `weight_dtype`).

        A NumPy array, or a torch tensor on the device of the weight if that is one.

        Raises
        ------
        QuantizeError
            For a type that arrays of numbers do not have.
        """
        kind = as_dtype(dtype) if dtype is not None else self.weight_dtype
        if not kind.is_float or kind.numpy_dtype is None:
            raise QuantizeError(
                f"a weight is dequantized to an array of floats, got {kind}",
                hint="f16, bf16, f32 and f64 are such types",
            )
        values = self.dtype.decode(self.codes()).astype(np.float64)
        if self.format.zero_point == "half":
            values -= 2 ** (self.dtype.nbits - 1)
        if self.zero_points is not None:
            values -= self._spread(self.zero_points)
        values *= self._spread(self.scales) if self.format.scale is None else self._spread_codes(self.format.scale)
        values *= self.format.tensor_scale
        return like(kind.encode(values).view(kind.numpy_dtype), self.words)

    def _spread_codes(self, kind: DataType) -> np.ndarray:
        return self._spread(kind.decode(host(self.scales)))

    def _spread(self, per_group: Any) -> np.ndarray:
        """Return [groups, N] numbers as [N, K] float64."""
        k = self.shape[1]
        size = self.format.group_size if self.format.group_size > 0 else max(k, 1)
        return np.repeat(host(per_group).astype(np.float64).T, size, axis=1)[:, :k]

    def packed_for(self, device: Device) -> QuantizedWeight:
        """Return the weight in an order that the kernels of a device read; repacked once, then remembered."""
        if device not in self._packed:
            fits = self.format.pack in native_packs(self.dtype, device)
            self._packed[device] = self if fits else self.repack(native_pack(self.dtype, device, self.weight_dtype))
        return self._packed[device]

    @cached_property
    def _packed(self) -> dict[Device, QuantizedWeight]:
        return {}

    def repack(self, pack: PackLayout) -> QuantizedWeight:
        """Return the same weight with its codes in another order."""
        if pack == self.format.pack:
            return self
        words = like(pack.pack(self.codes()), self.words)
        return replace(self, format=replace(self.format, pack=pack), words=words)


def as_dtype(name: str | DataType) -> DataType:
    """Return a data type by name; a torch or NumPy type works too."""
    if isinstance(name, DataType):
        return name
    text = str(name).removeprefix("torch.")
    return DTYPES[text] if text in DTYPES else dtype(text)


def host(array: Any) -> np.ndarray:
    """Return an array as NumPy, copied from a device if it must be."""
    result: np.ndarray = as_numpy(array.cpu() if is_torch(array) else array)
    return result


def like(array: np.ndarray, model: Any) -> Any:
    """Return a NumPy array as what `model` is: NumPy, or torch on its device."""
    if not is_torch(model):
        return array
    import torch  # the model is a tensor: torch is loaded already

    name = array.dtype.name
    if name == "uint32":
        return torch.from_numpy(array.view(np.int32)).to(model.device)
    if array.dtype.kind == "V" or name == "bfloat16":
        raw = torch.from_numpy(array.view(f"i{array.itemsize}"))
        return raw.view(getattr(torch, name)).to(model.device)
    return torch.from_numpy(array).to(model.device)
