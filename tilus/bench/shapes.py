"""The linear layers of four models, as they run: q, k and v as one matrix, gate and up as one.

N and K follow from the models' published configurations (`config.json`): hidden and intermediate size, heads, and
key/value heads times the size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilus.errors import TilusError

BATCHES = (1, 4, 16, 32, 64, 128, 256, 1024, 4096)


@dataclass(frozen=True, slots=True)
class Layer:
    """A weight [n, k] of a model."""

    model: str
    name: str
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.model} {self.name}"


def _layers(model: str, hidden: int, intermediate: int, heads: int, kv_heads: int, head: int) -> tuple[Layer, ...]:
    return (
        Layer(model, "qkv", (heads + 2 * kv_heads) * head, hidden),
        Layer(model, "o", hidden, heads * head),
        Layer(model, "gate_up", 2 * intermediate, hidden),
        Layer(model, "down", hidden, intermediate),
    )


LAYERS: tuple[Layer, ...] = (
    *_layers("llama-3.1-8b", 4096, 14336, 32, 8, 128),
    *_layers("llama-3.3-70b", 8192, 28672, 64, 8, 128),
    *_layers("qwen2.5-32b", 5120, 27648, 40, 8, 128),
    *_layers("gemma-2-9b", 3584, 14336, 16, 8, 256),
)
MODELS = tuple(dict.fromkeys(layer.model for layer in LAYERS))


def select_layers(names: Sequence[str]) -> list[Layer]:
    """Return the layers of models, or single ones: `llama-3.3-70b`, `llama-3.3-70b:o`; all, if nothing is named."""
    found: list[Layer] = []
    for name in names:
        model, _, part = name.partition(":")
        chosen = [layer for layer in LAYERS if layer.model == model and part in ("", layer.name)]
        if not chosen:
            raise TilusError(
                f"no layer is called {name!r}", hint=f"models are {', '.join(MODELS)}; layers qkv, o, gate_up, down"
            )
        found += chosen
    return list(dict.fromkeys(found)) or list(LAYERS)
