"""Checkpoints written by compressed-tensors, read by us, compared with its own dequantization bit for bit."""

import copy
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
from safetensors.torch import load_file, save_file

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


# --- altered files ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint of 4 bits with zero points in groups of 32: its dequantized weight, tensors and configuration."""
    folder = tmp_path_factory.mktemp("checkpoint")
    expected = write_checkpoint(folder, 4, False, 32, torch.bfloat16)
    config = json.loads((folder / "config.json").read_text())
    return expected, load_file(folder / "model.safetensors"), config


def write(folder, tensors, config, files=1):
    """Write a checkpoint, its tensors dealt to a number of files in turn."""
    (folder / "config.json").write_text(json.dumps(config))
    for number in range(files):
        part = {name: tensors[name].contiguous() for name in sorted(tensors)[number::files]}
        save_file(part, folder / f"model-{number}.safetensors")
    return folder


def weights_of(config):
    return config["quantization_config"]["config_groups"]["group_0"]["weights"]


def without(tensors, part):
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(part)}


PACKED, SCALE, SHAPE, ZEROS = "0.weight_packed", "0.weight_scale", "0.weight_shape", "0.weight_zero_point"
DAMAGED_TENSORS = {
    "rows": (lambda t: {**t, SHAPE: torch.tensor([47, 256])}, r"weight_scale must be .* \[47, \*\], got .* \[48, 8\]"),
    "twice the rows": (lambda t: {**t, SHAPE: torch.tensor([96, 256])}, r"weight_scale must be .* \[96, \*\]"),
    "columns": (lambda t: {**t, SHAPE: torch.tensor([48, 200])}, "8 groups of 32 for 200 inputs, expected 7"),
    "a few columns": (lambda t: {**t, SHAPE: torch.tensor([48, 247])}, "32 words a row for 247 codes of 4 bits, expected 31"),
    "negative": (lambda t: {**t, SHAPE: torch.tensor([-48, 256])}, r"weight_shape must be positive, got \[-48, 256\]"),
    "three extents": (lambda t: {**t, SHAPE: torch.tensor([48, 256, 1])}, r"weight_shape must be i64 or i32 \[2\], got int64 \[3\]"),
    "no shape": (lambda t: without(t, "shape"), "tensor weight_shape is missing"),
    "nan": (lambda t: {**t, SCALE: t[SCALE] * torch.nan}, "384 scales are not finite, the first that of row 0"),
    "inf": (lambda t: {**t, SCALE: t[SCALE].index_fill(0, torch.tensor([5]), torch.inf)}, "8 scales are not finite, the first that of row 5"),
    "no scale": (lambda t: without(t, "scale"), "tensor weight_scale is missing"),
    "integer scale": (lambda t: {**t, SCALE: torch.ones(48, 8, dtype=torch.int32)}, "weight_scale must be f16 or bf16 or f32"),
    "packed bytes": (lambda t: {**t, PACKED: t[PACKED].view(torch.int8)}, "weight_packed must be i32"),
    "packed rows": (lambda t: {**t, PACKED: t[PACKED][:40]}, r"weight_packed must be i32 \[48, \*\], got int32 \[40, 32\]"),
    "packed flat": (lambda t: {**t, PACKED: t[PACKED].reshape(-1)}, r"weight_packed must be i32 \[48, \*\]"),
    "packed words": (lambda t: {**t, PACKED: t[PACKED][:, :31]}, "31 words a row for 256 codes of 4 bits, expected 32"),
    "no zero points": (lambda t: without(t, "zero_point"), "tensor weight_zero_point is missing"),
    "zero points of few groups": (lambda t: {**t, ZEROS: t[ZEROS][:, :4]}, r"weight_zero_point must be i32 \[\*, 8\]"),
    "zero points of few rows": (lambda t: {**t, ZEROS: t[ZEROS][:5]}, "weight_zero_point has 5 words a row for 48 codes"),
    "permuted": (lambda t: {**t, "0.weight_g_idx": torch.arange(256)}, r"groups are permuted \(g_idx\)"),
    "nothing packed": (lambda t: without(t, "packed"), "no packed weights"),
}  # fmt: skip


@pytest.mark.parametrize("alter", DAMAGED_TENSORS)
def test_altered_tensors_are_refused(tmp_path, written, alter):
    change, match = DAMAGED_TENSORS[alter]
    _, tensors, config = written
    with pytest.raises(FormatError, match=match):
        load_compressed_tensors(write(tmp_path, change(tensors), config))


ALTERED_WEIGHTS = {
    "num_bits": [(16, "num_bits of layer '0' must be 1 to 8, got 16"), ("4", "got '4'"), (None, "got None"), (True, "got True"),
                 (3, "words a row for 256 codes of 3 bits")],
    "group_size": [(64, "8 groups of 64 for 256 inputs, expected 4"), (None, "8 groups of -1 for 256 inputs, expected 1"),
                   ("32", "group_size of layer '0' must be .* got '32'"), (0, "got 0"), (2.5, "got 2.5")],
    "symmetric": [("no", "symmetric of layer '0' must be true or false, got 'no'")],
    "type": [("float", "are of type 'float', expected 'int'")],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value", "match"), [(k, v, m) for k, rows in ALTERED_WEIGHTS.items() for v, m in rows])
def test_altered_configurations_are_refused(tmp_path, written, key, value, match):
    _, tensors, config = written
    config = copy.deepcopy(config)
    weights_of(config)[key] = value
    with pytest.raises(FormatError, match=match):
        load_compressed_tensors(write(tmp_path, tensors, config))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: [1], "no object 'quantization_config'"),
        (lambda c: {}, "no object 'quantization_config'"),
        (lambda c: {"quantization_config": [1]}, "no object 'quantization_config'"),
        (lambda c: {"quantization_config": {**c["quantization_config"], "config_groups": None}}, "no object 'config_groups'"),
        (lambda c: {"quantization_config": {**c["quantization_config"], "config_groups": {"a": 3}}}, "no object 'config_groups'"),
    ],
)  # fmt: skip
def test_configurations_of_another_form(tmp_path, written, change, match):
    _, tensors, config = written
    with pytest.raises(FormatError, match=match):
        load_compressed_tensors(write(tmp_path, tensors, change(config)))


@pytest.mark.parametrize(
    ("group", "match"),
    [({"weights": None}, "does not say how weights are quantized"), ({"targets": None}, "targets must be a list of names"),
     ({"targets": [1]}, "targets must be a list"), ({"targets": ["re:(", "Linear"]}, "is no regular expression"),
     ({"format": "nvfp4-pack-quantized"}, "is stored as 'nvfp4-pack-quantized'"), ({"targets": []}, "targets layer '0'")],
)  # fmt: skip
def test_altered_groups_are_refused(tmp_path, written, group, match):
    _, tensors, config = written
    config = copy.deepcopy(config)
    config["quantization_config"]["config_groups"]["group_0"].update(group)
    with pytest.raises(FormatError, match=match):
        load_compressed_tensors(write(tmp_path, tensors, config))


LAYER = "model.layers.0.self_attn.q_proj"


def renamed(written):
    expected, tensors, config = written
    return expected, {f"{LAYER}{name[1:]}": tensor for name, tensor in tensors.items()}, copy.deepcopy(config)


@pytest.mark.parametrize(
    ("target", "found"),
    [("Linear", True), (LAYER, True), (r"re:.*q_proj$", True), (r"re:model\.layers\.\d+\.self_attn\.q_proj", True),
     ("re:.*(q|k)_proj.*", True), ("re:model", True), ("re:.*mlp.*", False), ("re:q_proj", False), ("QKVLinear", False),
     ("model.layers.0", False)],
)  # fmt: skip
def test_targets_are_names_patterns_and_classes(tmp_path, written, target, found):
    expected, tensors, config = renamed(written)
    config["quantization_config"]["config_groups"]["group_0"]["targets"] = [target]
    write(tmp_path, tensors, config)
    if not found:
        with pytest.raises(FormatError, match="no group of config_groups targets layer"):
            load_compressed_tensors(tmp_path)
        return
    values = load_compressed_tensors(tmp_path)[LAYER].dequantize()
    np.testing.assert_array_equal(values.astype(np.float32), expected.float().numpy())


def test_a_name_goes_before_a_pattern_and_a_pattern_before_a_class(tmp_path, written):
    expected, tensors, config = renamed(written)
    groups = config["quantization_config"]["config_groups"]
    right = groups.pop("group_0")
    wrong = copy.deepcopy(right)
    wrong["weights"]["num_bits"] = 8
    for loose, tight in (("Linear", "re:.*"), ("re:.*", LAYER), ("Linear", LAYER)):
        groups["a"], groups["b"] = {**wrong, "targets": [loose]}, {**right, "targets": [tight]}
        values = load_compressed_tensors(write(tmp_path, tensors, config))[LAYER].dequantize()
        np.testing.assert_array_equal(values.astype(np.float32), expected.float().numpy())


@pytest.mark.parametrize("files", [2, 3, 4])
def test_a_layer_may_lie_in_several_files(tmp_path, written, files):
    expected, tensors, config = written
    values = load_compressed_tensors(write(tmp_path, tensors, config, files))["0"].dequantize()
    np.testing.assert_array_equal(values.astype(np.float32), expected.float().numpy())


def test_a_tensor_in_two_files_is_refused(tmp_path, written):
    _, tensors, config = written
    write(tmp_path, tensors, config)
    save_file({PACKED: tensors[PACKED]}, tmp_path / "more.safetensors")
    with pytest.raises(FormatError, match=r"0\.weight_packed is in another file too"):
        load_compressed_tensors(tmp_path)


def pack_padded(codes, bits):
    """32 // bits codes a word, as versions before 0.18 wrote them."""
    per_word = 32 // bits
    words = np.zeros((len(codes), -(-codes.shape[1] // per_word)), np.uint32)
    for k in range(codes.shape[1]):
        words[:, k // per_word] |= codes[:, k].astype(np.uint32) << np.uint32(k % per_word * bits)
    return torch.from_numpy(words.view(np.int32))


@pytest.mark.parametrize("k", [20, 30, 100, 256])
@pytest.mark.parametrize("bits", [3, 5])
def test_the_version_tells_how_codes_lie_where_their_words_do_not(tmp_path, bits, k):
    expected = write_checkpoint(tmp_path, bits, True, None, torch.float16, (48, k))
    config, tensors = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")
    weight = load_compressed_tensors(tmp_path)["0"]
    np.testing.assert_array_equal(weight.dequantize(), expected.numpy())
    (tmp_path / "old").mkdir()
    config["quantization_config"]["version"] = "0.17.1.a20260601"
    tensors[PACKED] = pack_padded(weight.codes(), bits)
    old = load_compressed_tensors(write(tmp_path / "old", tensors, config))["0"]
    np.testing.assert_array_equal(old.dequantize(), expected.numpy())
    del config["quantization_config"]["version"]
    write(tmp_path / "old", tensors, config)
    if -(-k * bits // 32) == -(-k // (32 // bits)):
        with pytest.raises(FormatError, match="in two ways"):
            load_compressed_tensors(tmp_path / "old")
    else:
        np.testing.assert_array_equal(load_compressed_tensors(tmp_path / "old")["0"].dequantize(), expected.numpy())
