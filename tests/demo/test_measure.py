"""The table of floors is what its program measures, and loading the model leaves the process as it was."""

from __future__ import annotations

import os

import pytest
import torch

from tilus.demo.floors import MEASURED
from tilus.demo.measure import mean_cosine
from tilus.demo.model import load_encoder
from tilus.demo.sentences import SENTENCES
from tilus.dtypes import dtype
from tilus.kernels.linear import QuantLinear


def test_the_table_is_what_is_measured() -> None:
    before = os.environ.get("HF_HUB_OFFLINE")
    encoder = load_encoder(SENTENCES)
    assert os.environ.get("HF_HUB_OFFLINE") == before
    full = encoder.embed()
    for name, column, group in (("i4", 1, 128), ("f4e2m1", 2, -1)):
        assert mean_cosine(encoder, dtype(name), group) == pytest.approx(MEASURED[name][column], abs=2e-4)
    assert torch.equal(encoder.embed(), full)
    assert not any(isinstance(module, QuantLinear) for module in encoder.model.modules())
