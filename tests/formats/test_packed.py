"""Our own files of packed weights: read as written, refused when anything in them changed."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch

from tilus.errors import FormatError
from tilus.formats import load_weights, save_weights
from tilus.runtime.weights.quantize import quantize

WEIGHT = np.random.default_rng(0).normal(size=(70, 300)).astype(np.float32)


@pytest.fixture
def saved(tmp_path):
    weights = {
        "block.0.up": quantize(WEIGHT, "u3", 64),
        "down": quantize(WEIGHT.astype(ml_dtypes.bfloat16), "f6e3m2", -1),
        "nf": quantize(WEIGHT, "nf4", 32, scale_dtype="f16"),
    }
    save_weights(tmp_path / "w.safetensors", weights)
    return tmp_path / "w.safetensors", weights


def test_read_as_written(saved):
    path, weights = saved
    loaded = load_weights(path)
    assert sorted(loaded) == sorted(weights)
    for name, weight in weights.items():
        assert loaded[name].format == weight.format
        assert loaded[name].weight_dtype == weight.weight_dtype
        np.testing.assert_array_equal(loaded[name].words, weight.words)
        np.testing.assert_array_equal(loaded[name].dequantize("f32"), weight.dequantize("f32"))


def test_read_as_torch(saved):
    path, weights = saved
    loaded = load_weights(path, framework="torch")
    assert loaded["down"].dequantize().dtype == torch.bfloat16
    np.testing.assert_array_equal(
        loaded["down"].dequantize().float().numpy(), weights["down"].dequantize().astype(np.float32)
    )


def test_header_describes_itself(saved):
    path, weights = saved
    with safetensors.safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["tilus"])
    assert header["version"] == 1
    assert header["weights"]["nf"]["format"] == str(weights["nf"].format)
    assert header["weights"]["nf"]["shape"] == [70, 300]


@pytest.mark.parametrize("position", [9, 200, -1, -5000])
def test_every_altered_byte_is_seen(saved, position):
    path, _ = saved
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)
    with pytest.raises(FormatError):
        load_weights(path)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_truncated(saved, length):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FormatError, match=r"not a whole safetensors file.*\nhint: copy or download it again"):
        load_weights(path)


def test_missing_file_and_foreign_file(tmp_path):
    with pytest.raises(FormatError, match="there is no such file"):
        load_weights(tmp_path / "none.safetensors")
    safetensors.numpy.save_file({"a": WEIGHT}, tmp_path / "foreign.safetensors")
    with pytest.raises(FormatError, match="no packed weights of this project"):
        load_weights(tmp_path / "foreign.safetensors")


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(FormatError, match="cannot be written: disk full"):
        save_weights(tmp_path / "w.safetensors", {"a": quantize(WEIGHT, "u4")})
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written(tmp_path):
    weight = quantize(WEIGHT, "u4")
    with pytest.raises(FormatError, match="cannot be written"):
        save_weights(tmp_path / "no" / "w.safetensors", {"a": weight})
    for thing in (WEIGHT, None, 3):
        with pytest.raises(
            FormatError, match=f"expected quantized weights by name, got {type(thing).__name__} for 'a'"
        ):
            save_weights(tmp_path / "w.safetensors", {"a": thing})
    with pytest.raises(FormatError, match="expected quantized weights by name, got QuantizedWeight for 3"):
        save_weights(tmp_path / "w.safetensors", {3: weight})
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_library(saved):
    with pytest.raises(FormatError, match="framework must be 'numpy' or 'torch', got 'jax'"):
        load_weights(saved[0], framework="jax")
