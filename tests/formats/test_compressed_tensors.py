"""Checkpoints written by compressed-tensors, read by us, compared with its own dequantization bit for bit."""

import json
import shutil

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

from tilus.errors import FormatError
from tilus.formats import load_compressed_tensors


def write_checkpoint(folder, bits, symmetric, group_size, dtype, shape=(48, 256)):
    """Quantize a random linear layer by rounding with that library; return its own dequantized weight."""
    n, k = shape
    model = torch.nn.Sequential(torch.nn.Linear(k, n, bias=False)).to(dtype)
    torch.nn.init.normal_(model[0].weight, std=0.05, generator=torch.Generator().manual_seed(bits))
    strategy = "channel" if group_size is None else "group"
    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=group_size)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format="pack-quantized")
    config = QuantizationConfig(config_groups={"group_0": scheme}, quantization_status=QuantizationStatus.INITIALIZED)
    apply_quantization_config(model, config)
    rows = model[0].weight.detach().reshape(n, -1, group_size or k)
    scale, zero_point = calculate_qparams(rows.amin(-1), rows.amax(-1), args)
    model[0].weight_scale.data.copy_(scale)
    if not symmetric:
        model[0].weight_zero_point.data.copy_(zero_point)
    for module in model.modules():
        if hasattr(module, "quantization_status"):
            module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "test"}))
    compressor.update_config(folder)
    compressor.decompress_model(model)
    return model[0].weight.detach()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group_size", [32, 128, None])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_equal_to_its_own_dequantization(tmp_path, bits, symmetric, group_size, dtype):
    expected = write_checkpoint(tmp_path, bits, symmetric, group_size, dtype)
    weights = load_compressed_tensors(tmp_path)
    assert list(weights) == ["0"]
    weight = weights["0"]
    assert weight.shape == tuple(expected.shape)
    assert weight.dtype.name == f"u{bits}"
    assert (weight.zero_points is None) == symmetric
    values = weight.dequantize()
    assert np.abs(values.astype(np.float32)).max() > 0
    np.testing.assert_array_equal(values.astype(np.float32), expected.float().numpy())


def test_one_flipped_code_is_seen(tmp_path):
    expected = write_checkpoint(tmp_path, 4, True, 32, torch.bfloat16)
    weight = load_compressed_tensors(tmp_path)["0"]
    weight.words.ravel()[0] ^= 1
    assert (weight.dequantize().astype(np.float32) != expected.float().numpy()).sum() == 1


def test_damaged_and_foreign_checkpoints(tmp_path):
    write_checkpoint(tmp_path, 4, True, 32, torch.bfloat16)
    config = json.loads((tmp_path / "config.json").read_text())

    cut = tmp_path / "cut"
    shutil.copytree(tmp_path, cut, ignore=shutil.ignore_patterns("cut"))
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[:-7])
    with pytest.raises(FormatError, match="not a whole safetensors file"):
        load_compressed_tensors(cut)

    config["quantization_config"]["quant_method"] = "gptq"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="quant_method is 'gptq', expected 'compressed-tensors'"):
        load_compressed_tensors(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FormatError, match="cannot be read"):
        load_compressed_tensors(tmp_path)
