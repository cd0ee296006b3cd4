"""`tilus bench --model`: the table of predictions, on facts of no machine code, so that nothing is compiled."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tilus.bench.published import best_published
from tilus.bench.rows import read_row, table
from tilus.bench.shapes import LAYERS, MODELS, select_layers
from tilus.cli import main
from tilus.errors import TilusError

ONE = ("--layers", "llama-3.3-70b:o", "--batches", "1,64,4096", "--weights", "u2,u4")


@pytest.fixture
def run(slim_facts):
    def invoke(*args: str, status: int = 0) -> str:
        result = CliRunner().invoke(main, ["bench", *args], catch_exceptions=False)
        assert result.exit_code == status, result.output
        return result.output

    return invoke


def test_shapes_are_those_of_the_models() -> None:
    shapes = {str(layer): (layer.n, layer.k) for layer in LAYERS}
    assert len(shapes) == 16
    assert shapes["llama-3.1-8b qkv"] == (6144, 4096)
    assert shapes["llama-3.3-70b qkv"] == (10240, 8192)
    assert shapes["qwen2.5-32b gate_up"] == (55296, 5120)
    assert shapes["gemma-2-9b o"] == (3584, 4096)
    assert [layer.name for layer in select_layers(["gemma-2-9b"])] == ["qkv", "o", "gate_up", "down"]
    assert len(select_layers([])) == 4 * len(MODELS)
    with pytest.raises(TilusError, match="no layer is called 'gpt'"):
        select_layers(["gpt"])


def test_a_prediction_says_that_it_is_one(run) -> None:
    text = run("--model", "h100", *ONE)
    assert "PREDICTED for h100, nothing was measured" in text
    assert "27 (Marlin)" in text
    record = json.loads(run("--model", "h100", *ONE, "--json"))
    rows = [read_row(row) for row in record["rows"]]
    assert [(row.m, row.weight) for row in rows] == [(m, w) for m in (1, 64, 4096) for w in ("u2", "u4")]
    assert all(row.predicted and row.microseconds > row.floor for row in rows)
    assert [row.record() for row in rows] == record["rows"]
    assert {row.facts["bound"] for row in rows} >= {"memory", "tensor"}


def test_what_was_measured_shows_the_error(run, tmp_path) -> None:
    record = json.loads(run("--model", "h100", *ONE, "--json"))
    [first, *_] = record["rows"]
    kept = {**first, "microseconds": first["microseconds"] / 1.25, "predicted": False}
    (tmp_path / "run.json").write_text(json.dumps({"rows": [kept]}))
    assert "+25%" in run("--model", "h100", *ONE, "--measured", str(tmp_path / "run.json"))


def test_columns() -> None:
    record = {"model": "a", "layer": "o", "n": 8192, "k": 8192, "m": 16, "weight": "u8", "system": "tilus",
              "microseconds": 30.0, "floor": 24.0, "terabytes": 7e-5, "predicted": False}  # fmt: skip
    [line] = table([read_row(record)])
    assert line["us"] == 30.0
    assert line["of floor"] == "80%"
    assert "published us" not in line
    found = best_published("h100", "u8", 16, 8192, 8192)
    assert found is not None
    assert (found.system, found.microseconds) == ("humming", 42.1)


def test_mistakes(run, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "expected numbers from 1 on" in run("--model", "h100", "--batches", "1,x", status=1)
    assert "known are h100" in run("--model", "tpu", status=1)
    assert "tilus bench --model h100 predicts" in run(*ONE, status=1)
    assert "no system is called 'cublas'" in run(*ONE, "--systems", "cublas", status=1)


def test_files_that_cannot_be(run, tmp_path) -> None:
    wrong = {"text": "# no JSON", "list": "[]", "other": '{"rows": [{"type": "u4"}]}'}
    for name, text in wrong.items():
        (tmp_path / name).write_text(text)
        found = run("--model", "h100", *ONE, "--measured", str(tmp_path / name), status=1)
        assert "is no result of `tilus bench`" in found
        assert "bench-measured-" in found
    assert "cannot write to" in run("--model", "h100", *ONE, "--out", str(tmp_path / "text" / "folder"), status=1)
    run("--model", "tpu", "--out", str(tmp_path / "new"), status=1)
    assert not (tmp_path / "new").exists()


def test_a_file_and_plots(run, tmp_path) -> None:
    run("--model", "a100", *ONE, "--out", str(tmp_path / "out"))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names[0].startswith("bench-predicted-a100-")
    assert names[1:] == ["floor.png", "roofline.png"]
    record = json.loads((tmp_path / "out" / names[0]).read_text())
    assert record["predicted"] is True
    assert record["versions"]["torch"]
    assert len(record["rows"]) == 6
