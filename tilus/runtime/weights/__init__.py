"""Quantized weights: packed orders, quantization, and the pair of numbers and description that kernels take."""

from tilus.runtime.targets import Device
from tilus.runtime.weights.packing import PackLayout, native_pack, native_packs
from tilus.runtime.weights.quantize import quantize
from tilus.runtime.weights.trits import TritPack
from tilus.runtime.weights.weight import QuantizedWeight, WeightFormat

__all__ = [
    "Device",
    "PackLayout",
    "QuantizedWeight",
    "TritPack",
    "WeightFormat",
    "native_pack",
    "native_packs",
    "quantize",
]
