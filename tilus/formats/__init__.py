"""Files of quantized weights: our own, and checkpoints of other libraries."""

from tilus.formats.compressed_tensors import load_compressed_tensors
from tilus.formats.packed import load_weights, save_weights

__all__ = ["load_compressed_tensors", "load_weights", "save_weights"]
