"""The demo on one type, the model's first two layers and a few sentences; and that each of its checks can fail.

Its parts are compared with torch. `test_measure` runs all of its sentences through all layers.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import tilus
from tilus.cli import main
from tilus.demo import Options, run_demo
from tilus.demo.accuracy import layer_errors
from tilus.demo.floors import MEASURED, floor
from tilus.demo.model import LayerData, load_encoder
from tilus.demo.sentences import SENTENCES
from tilus.dtypes import dtype
from tilus.kernels.linear import QuantLinear
from tilus.runtime.nvrtc import compile_cuda
from tilus.runtime.weights import quantize

TYPE = "u4"
FEW = SENTENCES[:3]


@cache
def loaded(sentences):
    return load_encoder(sentences)


def load_once(sentences):
    """Load the model for some sentences, once; its layers are the original ones."""
    found = loaded(tuple(sentences))
    found.install(found.linears)
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """Whole demos take turns once, on few sentences, and share the loaded model."""
    monkeypatch.setattr("tilus.demo.run.ROUNDS", 1)
    monkeypatch.setattr("tilus.demo.run.SENTENCES", FEW)
    monkeypatch.setattr("tilus.demo.run.load_encoder", load_once)


@pytest.fixture
def encoder():
    return load_once(FEW)


@pytest.fixture
def layer():
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(256, 48)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(48, 256, generator=generator))
        linear.bias.copy_(torch.randn(48, generator=generator))
    x = torch.randn(5, 256, generator=generator)
    with torch.no_grad():
        return linear, LayerData(x, linear(x))


def test_the_model_is_the_real_one(encoder) -> None:
    shapes = [tuple(linear.weight.shape) for linear in encoder.linears.values()]
    assert {shape: shapes.count(shape) for shape in shapes} == {(384, 384): 25, (1536, 384): 6, (384, 1536): 6}
    embeddings = torch.nn.functional.normalize(encoder.embed(), dim=1)
    assert embeddings.shape == (3, 384)
    same = load_encoder([FEW[0], "At the port it was calm; a single ferry departed before midday."])
    close = torch.nn.functional.normalize(same.embed(), dim=1)
    assert float(close[0] @ close[1]) > 0.6  # it knows a paraphrase ...
    assert float(embeddings[0] @ embeddings[1]) < 0.3  # ... from another sentence


def test_padding_does_not_change_an_embedding(encoder) -> None:
    alone = load_encoder(FEW[:1]).embed()
    assert torch.allclose(alone[0], encoder.embed()[0], atol=1e-5)


def test_captured_activations_are_those_of_the_layers(encoder) -> None:
    data = encoder.capture()
    assert data.keys() == encoder.linears.keys()
    tokens = int(encoder.mask.sum())
    for name, linear in encoder.linears.items():
        assert len(data[name].x) == (len(FEW) if name.startswith("pooler") else tokens)
        with torch.no_grad():
            assert torch.allclose(linear(data[name].x), data[name].y, atol=1e-4)


def test_a_right_layer_is_within_the_bound(layer) -> None:
    linear, data = layer
    errors = layer_errors(QuantLinear.from_linear(linear, TYPE, 32), linear, data)
    assert errors.of_bound <= 1
    assert 0 < errors.kernel < 1e-6
    assert 0.01 < errors.output < 0.2
    assert 0.01 < errors.weight < 0.2


def test_one_wrong_code_breaks_the_bound(layer) -> None:
    linear, data = layer
    quantized = QuantLinear.from_linear(linear, TYPE, 32)

    class Wrong(QuantLinear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.weight.dequantize()
            weight[7, 100] += self.scales[100 // 32, 7]  # the neighbouring code
            return torch.nn.functional.linear(x, weight, self.bias)

    wrong = Wrong(quantized.weight, linear.bias)
    assert layer_errors(wrong, linear, data).of_bound > 10


@pytest.mark.parametrize("result", [0.0, float("nan"), float("inf")])
def test_a_result_that_was_never_written_breaks_the_bound(layer, result) -> None:
    linear, data = layer

    class Unwritten(QuantLinear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), self.out_features), result)

    wrong = Unwritten(quantize(linear.weight, TYPE, 32), linear.bias)
    assert layer_errors(wrong, linear, data).of_bound > 10


def test_floors_follow_the_bits() -> None:
    for column in range(3):
        values = [MEASURED[f"u{bits}"][column] for bits in range(2, 9)]
        assert values == sorted(values)
    assert floor(dtype("u4"), 32) == pytest.approx(1 - 1.25 * (1 - MEASURED["u4"][0]))
    assert floor(dtype("u4"), 64) == pytest.approx(1 - 1.25 * (1 - MEASURED["u4"][1]))
    assert floor(dtype("u4"), -1) == pytest.approx(1 - 1.25 * (1 - MEASURED["u4"][2]))
    assert floor(dtype("u1"), 32) is None


def run(*args: str):
    arguments = ["demo", "--types", TYPE, "--layers", "2", *args]
    return CliRunner().invoke(main, arguments, catch_exceptions=False, env={"COLUMNS": "200"})


def test_the_command_prints_two_tables(tmp_path) -> None:
    (tmp_path / "more.txt").write_text("One more sentence.\n\nAnd another one.\n")
    result = run("--sentences", str(tmp_path / "more.txt"), "--target-arch", "sm_80")
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert f"2 linear layers, 0.3 million weights, groups of 32; {len(FEW) + 2} sentences" in text
    assert "kernel error" in result.output
    assert "compiled for sm_80" in result.output
    assert "races 0, conflicts 0" in result.output
    assert "all checks passed" in result.output


def test_the_command_prints_json() -> None:
    result = run("--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.output)
    assert (record["layers"], record["weights"], record["problems"]) == (2, 2 * 384 * 384, [])
    (row,), (gpu,) = record["types"], record["gpu"]
    assert row["bits"] == 4 + 16 / 32 + 8 / 32  # codes, f16 scales, u8 zero points
    assert row["megabytes"] == pytest.approx(row["bits"] * record["weights"] / 8e6)
    assert row["kernel_error"] < 1e-6
    assert row["of_bound"] <= 1
    assert 0.97 < row["cosine"] < 1
    assert row["milliseconds"] > 0
    assert gpu["spill_bytes"] == gpu["findings"] == gpu["races"] == gpu["run_conflicts"] == 0
    assert 0.5 < gpu["instructions_per_weight"] < 50
    assert 16 <= gpu["registers"] <= 255


def test_a_wrong_kernel_fails_the_demo(monkeypatch) -> None:
    right = QuantLinear.forward
    monkeypatch.setattr(QuantLinear, "forward", lambda self, x: right(self, x) * 1.001)
    result = run()
    assert result.exit_code == 1
    assert "Error: the demo's own checks failed" in result.output
    assert "times what rounding allows" in result.output
    assert "Traceback" not in result.output


def test_a_race_in_the_code_for_a_gpu_fails_the_demo(monkeypatch, tmp_path) -> None:
    def without_barriers(*args):
        binary = compile_cuda(*args)
        return replace(binary, ptx=binary.ptx.replace("bar.sync \t0;", ""))

    monkeypatch.setattr("tilus.runtime.backends.compile_cuda", without_barriers)
    with tilus.knobs.scope(cache_dir=tmp_path):
        result = run("--target-arch", "sm_86")
    assert result.exit_code == 1
    assert re.search(r"u4: \d+ findings in the code for sm_86", result.output)
    assert re.search(r"races [1-9]\d*, conflicts 0", result.output)


def test_a_bad_quantization_fails_the_demo(monkeypatch) -> None:
    def bad(weight, *args, **options):
        return quantize(weight * torch.linspace(-1, 1, weight.shape[1]), *args, **options)

    monkeypatch.setattr("tilus.demo.run.quantize", bad)
    report = run_demo(Options((tilus.dtype(TYPE),), layers=4))
    (problem,) = report.problems
    assert "mean cosine" in problem
    assert report.types[0].of_bound <= 1  # the kernel did what it was told


@pytest.mark.parametrize(("text", "message"), [(b"\n \n", "has no sentences"), (b"\xff\xfe", "cannot read sentences")])
def test_a_bad_file_of_sentences(tmp_path, text, message) -> None:
    (tmp_path / "bad.txt").write_bytes(text)
    result = run("--sentences", str(tmp_path / "bad.txt"))
    assert result.exit_code == 1
    assert message in result.output


def test_cosine_matches_numpy(encoder) -> None:
    from tilus.demo.accuracy import cosines

    a, b = encoder.embed(), torch.randn(3, 384, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, y = a.numpy(), b.numpy()
    wanted = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert np.allclose(cosines(a, b), wanted)
