"""Measuring: everything but the GPU, with a machine that runs calls and makes up times; the simulator as the device."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from tilus.bench.case import Case, Peer, Product, pack_along_k
from tilus.bench.gpu import CudaMachine, Rates, Refusal, measure, measure_rates, relative_error
from tilus.bench.peers import PEERS
from tilus.bench.rows import Row
from tilus.bench.shapes import Layer
from tilus.cli import main
from tilus.errors import LaunchError
from tilus.runtime.knobs import knobs

TINY = Layer("tiny", "o", 128, 256)
BY_NAME = {peer.name: peer for peer in PEERS}
RATES = Rates(3.0, 800.0)


class Fake:
    """A machine on which every call takes ten microseconds."""

    name, device, l2_bytes = "fake", "cpu", 100_000

    def __init__(self) -> None:
        self.calls: list[int] = []

    def seconds(self, calls) -> float:
        for call in calls:
            call()
        self.calls.append(len(calls))
        return 10e-6


def results(*peers: Peer, weights=("f16", "u4"), batches=(1, 3)):
    machine = Fake()
    found = list(measure(machine, RATES, peers, [TINY], batches, weights, 64))
    rows = {(row.system, row.weight, row.m): row for row in found if isinstance(row, Row)}
    return rows, [one for one in found if isinstance(one, Refusal)], machine


def test_rows_and_reasons() -> None:
    rows, refusals, machine = results(BY_NAME["tilus"], BY_NAME["cuBLAS"], BY_NAME["Marlin"])
    assert set(rows) == {("tilus", "u4", 1), ("tilus", "u4", 3), ("cuBLAS", "f16", 1), ("cuBLAS", "f16", 3)}
    row = rows["tilus", "u4", 1]
    assert (row.microseconds, row.predicted) == (pytest.approx(10), False)
    # codes, scales and zero points of 128 x 4 groups, activations and results
    moved = 128 * 256 // 2 + 128 * 4 * 3 + 2 * (128 + 256)
    assert row.floor == pytest.approx(moved / 3.0 * 1e-6)
    assert row.facts["tb_per_s"] == pytest.approx(moved / 10e-6 * 1e-12)
    assert row.facts["error"] < 2**-10
    assert Refusal("Marlin", "", "", "marlin is not installed") in refusals
    assert Refusal("cuBLAS", "u4", "tiny o", "it multiplies by f16") in refusals
    assert min(machine.calls) >= 3, "copies take turns"
    assert row.facts["copies"] * 17_920 >= 3 * 100_000


def damaged(product: Product, how) -> Product:
    return replace(product, run=lambda x: how(product.run(x)))


def one_row_wrong(y: torch.Tensor) -> torch.Tensor:
    y = y.clone()
    y[:, 77] += y.abs().max() / 2
    return y


@pytest.mark.parametrize(
    "how", [torch.zeros_like, lambda y: y * 1.01, one_row_wrong, lambda y: y * float("nan"), lambda y: y.roll(1, 1)]
)
def test_a_wrong_result_has_no_time(how) -> None:
    good = BY_NAME["cuBLAS"]
    bad = replace(good, name="bad", prepare=lambda case: damaged(good.prepare(case), how))
    rows, refusals, machine = results(bad, weights=("f16",))
    assert not rows
    assert not machine.calls
    assert all("its result is wrong" in refusal.reason for refusal in refusals)
    assert len(refusals) == 2


def test_an_adapter_that_fails_is_a_reason() -> None:
    def prepare(case: Case) -> Product:
        raise AttributeError("module 'other' has no attribute 'Layer'")

    bad = replace(BY_NAME["cuBLAS"], name="other", prepare=prepare)
    rows, [refusal], _ = results(bad, weights=("f16",))
    assert not rows
    assert refusal.reason == "AttributeError: module 'other' has no attribute 'Layer'"


@pytest.mark.parametrize("weight", ["u1", "u3", "f4e2m1"])
def test_rows_repeat_where_a_weight_has_many(weight: str) -> None:
    case = Case(Layer("tiny", "o", 1024, 128), weight, 64, "cpu")
    assert (case.rows, case.repeats) == (512, 2)
    assert relative_error(BY_NAME["tilus"].prepare(case), torch.randn(2, 128).half()) < 2**-10


def test_the_gpus_code_is_measured_in_simulation() -> None:
    with knobs.scope(target="simt:sm_90a"):
        case = Case(Layer("tiny", "o", 64, 128), "u4", 64, "cpu")
        product = BY_NAME["tilus"].prepare(case)
        assert case.quantized.format.pack.device == "cuda"
        assert relative_error(product, torch.randn(1, 128).half()) < 2**-10


def test_codes_packed_along_k() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(1, 2) % 16
    [[low], [high], *_] = pack_along_k(codes, 4).tolist()
    assert (low & 0xFFFFFFFF, high & 0xFFFFFFFF) == (0x76543210, 0xFEDCBA98)


def test_rates() -> None:
    found = measure_rates(Fake(), copied=1 << 20, square=64)
    assert found.copy == pytest.approx(2 * (1 << 20) / 10e-6 * 1e-12)
    assert found.matmul == pytest.approx(2 * 64**3 / 10e-6 * 1e-12)


def test_without_a_gpu_the_way_out_is_named(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LaunchError, match="tilus bench --model h100"):
        CudaMachine()


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    machine = CudaMachine()
    rates = measure_rates(machine)
    layer = Layer("small", "o", 4096, 4096)
    found = list(measure(machine, rates, [BY_NAME["tilus"], BY_NAME["cuBLAS"]], [layer], (1, 16), ("f16", "u4"), 128))
    rows = [row for row in found if isinstance(row, Row)]
    assert len(rows) == 4
    assert all(row.microseconds > row.floor * 0.9 for row in rows)


def test_the_command(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("tilus.bench.gpu.CudaMachine", Fake)
    monkeypatch.setattr("tilus.bench.gpu.measure_rates", lambda machine: RATES)
    monkeypatch.setattr("tilus.cli.bench.select_layers", lambda names: [TINY])
    options = ("--group", "64", "--batches", "1", "--weights", "u4", "--systems", "tilus,cuBLAS,Marlin")
    monkeypatch.setattr("tilus.cli.bench.draw", lambda *args: [])
    done = CliRunner().invoke(main, ["bench", *options, "--out", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "fake: a copy moves 3.00 TB/s, a matmul does 800 TFLOP/s" in done.output
    assert "no time of Marlin: marlin is not installed" in done.output
    [path] = tmp_path.glob("bench-measured-fake-*.json")
    record = json.loads(path.read_text())
    assert {(row["system"], row["weight"]) for row in record["rows"]} == {("tilus", "u4"), ("cuBLAS", "f16")}
    assert not record["predicted"]
