"""`tilus explain`: what it prints, on facts of no machine code, so that nothing is compiled."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tilus.cli import main


@pytest.fixture
def run(slim_facts):
    def invoke(*args: str, status: int = 0) -> str:
        result = CliRunner().invoke(main, args, catch_exceptions=False)
        assert result.exit_code == status, result.output
        return result.output

    return invoke


def test_what_is_chosen_its_parts_and_its_bound(run) -> None:
    text = run("explain", "u4", "--shape", "1,8192,8192", "--device", "h100")
    assert "floor 11.7 us: 35.2 MB at 3.0 TB/s" in text
    assert "bound memory: the bytes of weights" in text
    record = json.loads(run("explain", "u4", "--shape", "1,8192,8192", "--device", "h100", "--json"))
    best = record["candidates"][0]
    assert best["configuration"] in text
    assert best["bound"] == record["bound"] == "memory"
    assert best["time"] == pytest.approx(best["fixed"] + best["memory"], abs=0.1)
    assert best["time"] > record["floor"] == pytest.approx(record["bytes"] / 3.0e6)


def test_mistakes(run) -> None:
    shape = ("--shape", "1,64,64")
    assert "known are h100" in run("explain", "u4", *shape, "--device", "h1000", status=1)
    assert "expected three positive extents" in run("explain", "u4", "--shape", "1,2", status=1)
    assert "cannot quantize to i16" in run("explain", "i16", *shape, status=1)
    assert "activations are f16" in run("explain", "u4", *shape, "--activation", "f8", status=1)
