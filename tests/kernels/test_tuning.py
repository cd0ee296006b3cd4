"""The choice of a configuration: ranked by the model, decided by a timer, kept on disk; M stays dynamic."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import tilus
from tests.kernels.cases import activations, weight
from tests.kernels.test_model import problem
from tilus.errors import LaunchError
from tilus.kernels import dispatch, ranking, tuning
from tilus.kernels.candidates import Configuration, Problem, default_configuration
from tilus.kernels.devices import DEVICES
from tilus.kernels.facts import CodeFacts
from tilus.runtime.knobs import knobs

H100 = "NVIDIA H100 80GB HBM3"
SHAPE = problem("i4", 8)


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    ranking.ranked.cache_clear()
    with knobs.scope(cache_dir=tmp_path):
        yield
    ranking.ranked.cache_clear()


@pytest.fixture
def compiled(monkeypatch) -> list[Configuration]:
    """Facts of no machine code: deep pipelines look fast. Returns what would have been compiled."""
    asked: list[Configuration] = []

    def facts(configuration: Configuration, form: object, target: str) -> CodeFacts:
        asked.append(configuration)
        return CodeFacts(
            256, 300, 100, 0, 0, 40, 131072, (9000 // configuration["STAGES"],) * 2, 1000, 128, 128, 0, 81920, 2
        )

    monkeypatch.setattr(ranking, "code_facts", facts)
    return asked


class Clock:
    """A timer for which configurations take what a table says, and the rest a second."""

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds, self.asked = seconds or {}, []

    def __call__(self, configuration: Configuration) -> float:
        self.asked.append(configuration.label)
        return self.seconds.get(configuration.label, 1.0)


def files() -> list:
    return sorted((knobs.cache_dir / "tuning").glob("*"))


def test_few_are_compiled_and_the_default_is_one(compiled) -> None:
    found = ranking.ranked(SHAPE, DEVICES["h100"])
    assert len(compiled) <= ranking.SCOUTS + ranking.COMPILED + 1
    assert default_configuration(SHAPE).alone in compiled
    assert {c["PRODUCERS"] for c in compiled} == {0, 1}
    assert len(compiled) > ranking.SCOUTS, "the best of all kinds are compiled, too"
    weighed = [one.prediction.total + ranking.FRICTION * sum(one.prediction.parts.values()) for one in found]
    assert weighed == sorted(weighed)


def test_what_spills_is_the_last_resort(monkeypatch) -> None:
    def spilling(configuration: Configuration, form: object, target: str) -> CodeFacts:
        return CodeFacts(
            256, 300, 100, 0, 0, 40, 131072, (900, 900), 0, 128, 255, 8 * (configuration["TILES"] > 1), 81920, 2
        )

    monkeypatch.setattr(ranking, "code_facts", spilling)
    assert {one.configuration["TILES"] for one in ranking.ranked(SHAPE, DEVICES["h100"])} == {1}


def test_without_a_timer_the_model_decides_and_the_choice_is_kept(compiled) -> None:
    best = ranking.ranked(SHAPE, DEVICES["h100"])[0].configuration
    compiled.clear()
    assert tuning.choose(SHAPE, H100) == best
    [path] = files()
    record = json.loads(path.read_text())
    assert record["device"] == H100
    assert record["constants"] == {name: best[name] for name in tuning.VARIED}
    assert record["microseconds"] == {}
    ranking.ranked.cache_clear()
    assert tuning.choose(SHAPE, H100) == best
    assert not compiled, "a kept choice needs no machine code"


def test_the_timer_overrules_the_model_once(compiled) -> None:
    first = tuning.choose(SHAPE, H100)
    order = [one.configuration for one in ranking.ranked(SHAPE, DEVICES["h100"])]
    clock = Clock({order[2].label: 0.5})
    assert tuning.choose(SHAPE, H100, clock) == order[2] != first
    assert clock.asked[: tuning.TIMED] == [c.label for c in order[: tuning.TIMED]]
    assert {"PRODUCERS 0" in label for label in clock.asked} == {True, False}, "what one saves the model does not know"
    again = Clock()
    assert tuning.choose(SHAPE, H100, again) == tuning.choose(SHAPE, H100) == order[2]
    assert not again.asked, "a measurement is kept"


@pytest.mark.parametrize(
    "changed",
    [{"name": "NVIDIA A100-SXM4-80GB"}, {"versions": "nvrtc 99"}, {"compiler": "0"}, {"shape": replace(SHAPE, n=4096)},
     {"shape": replace(SHAPE, m=16)}],
)  # fmt: skip
def test_choices_are_keyed_by_device_versions_source_and_problem(compiled, monkeypatch, changed) -> None:
    tuning.choose(SHAPE, H100)
    if "versions" in changed:
        monkeypatch.setattr(tuning, "toolchain_version", lambda: changed["versions"])
    if "compiler" in changed:
        monkeypatch.setattr(tuning.disk, "fingerprint", lambda: changed["compiler"])
    tuning.choose(changed.get("shape", SHAPE), changed.get("name", H100))
    assert len(files()) == 2


@pytest.mark.parametrize(
    "text", ["", "[1]", "{}", '{"constants": {"BM": 8, "SLICES": 3, "STAGES": 2}, "microseconds": {}}']
)
def test_a_damaged_file_is_ignored_with_a_warning(compiled, text: str) -> None:
    best = tuning.choose(SHAPE, H100)
    [path] = files()
    good = path.read_text()
    path.write_text(text)
    with pytest.warns(RuntimeWarning, match="is damaged"):
        assert tuning.choose(SHAPE, H100) == best
    assert path.read_text() == good, "it is made again"


def test_a_candidate_that_the_device_refuses_is_left_out(compiled) -> None:
    def refusing(configuration: Configuration) -> float:
        if configuration["STAGES"] > 2:
            raise LaunchError("too much shared memory")
        return 1.0

    order = [one.configuration for one in ranking.ranked(SHAPE, DEVICES["h100"])][: tuning.TIMED]
    chosen = tuning.choose(SHAPE, H100, refusing)
    assert chosen["STAGES"] == 2 or all(c["STAGES"] > 2 for c in order)


def test_an_unknown_device_has_the_default(compiled) -> None:
    assert tuning.choose(SHAPE, "GPU of tomorrow", Clock()) == default_configuration(SHAPE)
    assert tuning.choose(SHAPE, "GPU of tomorrow") == default_configuration(SHAPE)
    assert not compiled


# --- dispatch ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch) -> list[tuple[Problem, Configuration]]:
    """Calls on simulated arrays are dispatched as on an H100; returns what is chosen."""
    chosen: list[tuple[Problem, Configuration]] = []

    def choose(shape: Problem, name: str, timer: tuning.Timer | None = None) -> Configuration:
        configuration = tuning.choose(shape, name, timer)
        chosen.append((shape, configuration))
        return configuration

    monkeypatch.setattr(dispatch, "_gpu", lambda x: H100)
    monkeypatch.setattr(dispatch, "_CHOSEN", {})
    monkeypatch.setattr(dispatch, "choose", choose)
    with knobs.scope(target="simt:sm_90a"):
        yield chosen


def test_a_product_runs_as_chosen_and_m_is_dynamic(compiled, gpu) -> None:
    w = weight("i4", False, 128, 64, 256)
    for m in (2, 3, 8, 7):
        x = activations("f16", m, 256)
        y = tilus.matmul(x, w)
        exact = x.astype(np.float64) @ w.dequantize().astype(np.float64).T
        np.testing.assert_allclose(y.astype(np.float64), exact, rtol=2e-3, atol=2e-2)
    assert [shape.m for shape, _ in gpu] == [8], "chosen once for the bucket"
    [kernels] = dispatch._CHOSEN.values()
    assert len(kernels.product._variants) == 1, "one compilation"
    assert kernels.product is gpu[0][1].kernel


def test_the_knob_asks_for_measurements(compiled, gpu, capsys) -> None:
    clock = Clock()
    assert dispatch._chosen(SHAPE, H100, clock).product is gpu[0][1].kernel
    assert not clock.asked
    with knobs.scope(tune=True, print_autotuning=True):
        for _ in range(2):
            dispatch._chosen(SHAPE, H100, clock)
    assert len(clock.asked) in (tuning.TIMED, tuning.TIMED + 1)
    assert capsys.readouterr().out.count(" us") == len(clock.asked)


@pytest.mark.gpu
def test_on_a_gpu_the_fastest_is_kept_and_launches_are_captured() -> None:
    torch = pytest.importorskip("torch")
    w = tilus.quantize(torch.randn(512, 1024).half().cuda(), "u4", 128)
    x = torch.randn(3, 1024).half().cuda()
    with knobs.scope(tune=True):
        y = tilus.matmul(x, w)
        [path] = files()
        times = json.loads(path.read_text())["microseconds"]
        assert times
        assert all(0 < time < 1e4 for time in times.values())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            z = tilus.matmul(x, w)
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, z)
