"""Measure the table of `tilus.demo.floors` anew: `python -m tilus.demo.measure [TYPE ...]` prints its lines.

Every linear layer is replaced by an ordinary one of torch with the quantized weight's values, and the sentences are
embedded: no kernel of ours takes part. All types take about half an hour.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from tilus.demo.accuracy import cosines
from tilus.demo.floors import MEASURED
from tilus.demo.model import SentenceEncoder, load_encoder
from tilus.demo.sentences import SENTENCES
from tilus.dtypes import DataType, dtype
from tilus.runtime.weights.quantize import quantize

GROUPS = (32, 128, -1)


def mean_cosine(encoder: SentenceEncoder, kind: DataType, group_size: int) -> float:
    """Return the mean cosine of the embeddings to full precision, with all linear layers of a type."""
    encoder.install(encoder.linears)
    full = encoder.embed()
    try:
        encoder.install({name: _rounded(layer, kind, group_size) for name, layer in encoder.linears.items()})
        return float(cosines(encoder.embed(), full).mean())
    finally:
        encoder.install(encoder.linears)


def _rounded(layer: torch.nn.Linear, kind: DataType, group_size: int) -> torch.nn.Linear:
    """Return a layer whose weight is rounded to a type, and kept in f32."""
    result = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    with torch.no_grad():
        result.weight.copy_(quantize(layer.weight, kind, group_size, scale_dtype="f32").dequantize("f32"))
        if layer.bias is not None:
            result.bias.copy_(layer.bias)
    return result


def main(names: Sequence[str]) -> None:
    """Print the table's lines for some types, all of them by default."""
    encoder = load_encoder(SENTENCES)
    for name in names or MEASURED:
        values = (round(mean_cosine(encoder, dtype(name), group), 4) for group in GROUPS)
        print(f'    "{name}": ({", ".join(map(str, values))}),', flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
