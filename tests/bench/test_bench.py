"""The benchmarks run, on shapes too small to say anything, and refuse to time a wrong result."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tilus.runtime.cpu_pool import num_threads, set_num_threads

ROOT = Path(__file__).parents[2]


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return (
        importlib.import_module("cpu_matmul"),
        importlib.import_module("cpu_peers"),
        importlib.import_module("record"),
    )


def test_cpu_matmul(modules, monkeypatch, capsys) -> None:
    """In this process, with a small cache to exceed and no waiting for a quiet machine: times are not looked at."""
    matmul, _, record = modules
    monkeypatch.setattr(matmul, "last_level_cache", lambda: 1 << 16)
    monkeypatch.setattr(record.Stopwatch, "patience", 0)
    small = ["--n", "256", "--k", "256", "--m", "1,3", "--threads", "1", "--rounds", "1", "--burst", "0.001"]
    monkeypatch.setattr(sys, "argv", ["bench/cpu_matmul.py", *small, "--types", "u4,u3", "--no-write"])
    ours, theirs = num_threads(), torch.get_num_threads()
    try:
        matmul.main()
    finally:
        set_num_threads(ours)
        torch.set_num_threads(theirs)
    found = capsys.readouterr().out
    for text in (
        "M=1 N=256 K=256, 1 thread",
        "M=3 N=256",
        "torch float32",
        "torch int4",
        "tilus u4, exact",
        "tilus u3, fixed16",
    ):
        assert text in found


def test_cpu_unpack(modules, monkeypatch, capsys) -> None:
    """Every way gives the right product; a kernel without permutations is another one, and they are back afterwards."""
    bench = importlib.import_module("cpu_unpack")
    known = bench.tables.PERMUTATIONS
    small = ["--n", "64", "--k", "256", "--m", "5", "--types", "u3,f4e2m1", "--rounds", "1", "--burst", "0.001"]
    monkeypatch.setattr(sys, "argv", ["bench/cpu_unpack.py", *small, "--no-write"])
    threads = num_threads()
    try:
        bench.main()
    finally:
        set_num_threads(threads)
    lines = [line for line in capsys.readouterr().out.splitlines() if " u3 " in line or " f4e2m1 " in line]
    assert len(lines) == 5 + 3
    assert bench.tables.PERMUTATIONS is known


def test_sass_counts() -> None:
    command = [sys.executable, "bench/sass_counts.py", "--types", "u5", "--targets", "sm_80", "--no-write"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sm_80") == 2


def test_cast_cost(monkeypatch, capsys) -> None:
    """Ours is cheaper than the naive sequence for every kind of type, and only a codebook has a table to fill."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    bench = importlib.import_module("cast_cost")
    monkeypatch.setattr(bench, "CONVERSIONS", {"f16": bench.CONVERSIONS["f16"]})
    monkeypatch.setattr(sys, "argv", ["bench/cast_cost.py", "--types", "i4,nf4", "--targets", "sm_80", "--no-write"])
    bench.main()
    found = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines() if "| sm_80 |" in line]
    assert [cells[0].strip() for cells in found] == ["i4", "nf4"]
    for name, _, _, numbers, _, values, _, naive, _, fill in found:
        assert float(numbers) <= float(values) < float(naive)
        assert bool(fill.strip()) == (name.strip() == "nf4")


def test_the_page_of_mutants_says_what_the_data_do(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    bench = importlib.import_module("mutants")
    rows = json.loads((ROOT / "bench/results/mutants.json").read_text())["rows"]
    page = bench.report(rows)
    assert page == (ROOT / "bench/results/mutants.md").read_text()
    assert {row["kernel"] for row in rows} == set(bench.SUBJECTS)
    assert bench._score(rows)[-1] >= 0.99
    assert bench.condensed(rows) == rows


def test_the_page_of_targets_says_what_was_counted(monkeypatch) -> None:
    """And what was counted is what tests hold kernels to, and every type is on it or keeps its target."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    bench, counts = importlib.import_module("missed_targets"), importlib.import_module("sass_counts")
    casts, loops, times = bench._rows("cast_cost"), bench._rows("sass_counts"), bench.predictions()
    assert bench.page(casts, loops, times) == bench.PAGE.read_text()
    assert "".join(counts._budget(loops)) == counts.BUDGET.read_text()
    assert {row["type"] for row in casts} == {k.name for k in counts.weight_types()}
    assert {row["type"] for row in loops} == {*counts.weight_names()}
    worse = [dict(row, numbers_alu=row["numbers_alu"] + 1) for row in casts]
    assert bench.page(worse, loops, times).count("| u5 |") == bench.page(casts, loops, times).count("| u5 |") + 2


def test_a_wrong_peer_is_not_timed(modules) -> None:
    import numpy as np

    matmul, peers, _ = modules
    weight = np.random.default_rng(0).standard_normal((32, 128), np.float32)
    peer = peers.Peer("wrong", 8, 1e-3, lambda x, copies: (lambda: None, 1, lambda: 0 * (x @ weight.T)), weight)
    with pytest.raises(SystemExit, match=r"wrong: relative error 1, expected at most 0\.001: not timed"):
        matmul._case(peer, np.ones((1, 128), np.float32), 0.001)


def test_a_result_file_says_how_it_was_made(modules, monkeypatch, tmp_path) -> None:
    _, _, record = modules
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench/x.py", "--m", "1"])
    path = record.write("x", {"m": 1}, [{"ms": 2.0}])
    found = json.loads(path.read_text())
    assert found["command"] == "python bench/x.py --m 1"
    assert found["rows"] == [{"ms": 2.0}]
    assert found["machine"]["threads"] >= 1
    assert found["versions"]["numpy"] != "-"
    assert found["commit"] != "unknown"
    assert path.name.startswith("x-")
