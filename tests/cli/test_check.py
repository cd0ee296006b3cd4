"""`tilus check`: what it says of wrong kernels to the letter, of right ones in numbers, and of what it is asked wrongly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner

from tilus.cli import main
from tilus.cli.arguments import make_arguments, random_array
from tilus.dtypes import dtype
from tilus.kernels.programs import softmax

MODULE = Path(__file__).parent / "wrong_kernels.py"


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Run `tilus check` in a folder with the module; returns its output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    shutil.copy(MODULE, "kernels.py")

    def invoke(*args: str, status: int = 0) -> str:
        result = CliRunner().invoke(main, ["check", *args], catch_exceptions=False)
        assert result.exit_code == status, result.output
        return result.output

    return invoke


WRONG = {
    "fold": ("x=f32[512]",),
    "gather": ("x=f32[64]", "index=i32[4]:62..66", "n=4"),
    "copied": ("n=1024",),
    "pipelined": ("n=512",),
    "staged": ("n=1024",),
    "total": ("n=300",),
    "unwritten": ("n=128",),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_named_with_its_line(check, golden, tmp_path, name):
    args = [text for given in WRONG[name] for text in ("--arg", given)]
    texts = []
    for target in ("sm_80", "sm_90a"):
        output = check(f"kernels.py:{name}", *args, "--target", target, status=1).replace(f"{tmp_path}/", "")
        head, _, rest = output.partition("\n\n")
        assert head.startswith(f"{name} for {target}: x = ")
        findings, _, tables = rest.partition(" finding")
        assert "kernels.py" in tables
        texts.append(findings)
    assert texts[0] == texts[1]
    golden.check(texts[0].rpartition("\n")[0].strip())


def test_the_right_number_of_copies_under_way_is_clean(check):
    assert "no findings; no address" in check("kernels.py:pipelined", "--set", "PENDING=1", "--arg", "n=1024")


def test_equal_writes_speak_for_themselves_only(check):
    args = ("kernels.py:agreed", "--arg", "x=f32[8]", "--arg", "y=i32[1]", "--target", "sm_80")
    assert "equal values to one place at once: this run speaks for its own contents" in check(*args)
    np.save("mixed.npy", np.array([0, 200] * 4, np.float32))
    assert "race" in check(*args[:2], "x=mixed.npy", *args[3:], status=1)


def test_what_a_clean_run_costs(check):
    found = json.loads(check("kernels.py:scale_rows", "--arg", "x=f16[5,1000]", "--json"))
    assert found["ok"] is True
    assert [c["target"] for c in found["certificates"]] == ["sm_80", "sm_90a"]
    for record in found["certificates"]:
        assert record["grid"] == [5, 2]
        assert record["threads"] == 128
        assert record["data_independent"] is True
        assert record["findings"] == []
        assert record["spill_bytes"] == record["shared_bytes"] == record["bank_conflicts"] == 0
        assert 0 < record["occupancy"] <= 1
        # 2000 bytes of a row begin at a multiple of 16: 63 sectors of 32 bytes, or half a one more.
        load, store = record["lines"]
        text = MODULE.read_text().splitlines()[load["loc"]["line"] - 1]
        assert "tilus.load_global(gx" in text
        assert 5 * 63 <= load["sectors"] <= 5 * 64 + 5 * 16
        assert load["ideal_sectors"] <= load["sectors"]
        assert store["loc"]["line"] == load["loc"]["line"] + 1
        assert record["instructions"]["ret"] == 5 * 2 * 4


def test_a_layout_without_swizzle_shows_as_passes(check):
    def loads(layout: str) -> tuple[int, int]:
        output = check("kernels.py:transpose", "--set", f"LAYOUT={layout}", "--target", "sm_80", "--json")
        (record,) = json.loads(output)["certificates"]
        line = next(i for i, t in enumerate(MODULE.read_text().splitlines(), 1) if "tilus.transpose(" in t)
        (cost,) = [c for c in record["lines"] if c["loc"]["line"] == line]
        assert record["bank_conflicts"] == cost["wavefronts"] - cost["ideal_wavefronts"]
        return cost["wavefronts"], cost["ideal_wavefronts"]

    assert loads("chosen") == (32, 32)
    assert loads("plain") == (256, 32)


def test_a_product_of_the_library(check):
    for weight, data in (("u4", True), ("nf4", False)):
        output = check("--matmul", weight, "--shape", "5,40,70", "--group", "32", "--target", "sm_90a", "--json")
        (record,) = json.loads(output)["certificates"]
        assert record["kernel"] == "sliced_matmul"
        assert record["data_independent"] is data
        assert record["landings"] == ["late", "early"]
        assert any(name.startswith("mma.sync") for name in record["instructions"])


def test_a_tuned_kernel_and_one_of_the_library(check):
    output = check("kernels.py:tuned", "--arg", "x=f16[300]", "--target", "sm_80")
    assert "3 blocks of 32 threads" in output
    output = check("kernels.py:tuned", "--arg", "x=f16[300]", "--set", "BN=256", "--target", "sm_80")
    assert "2 blocks of 32 threads" in output
    assert "tilus.store_global(tilus.global_view(y, shape=(n,))" in output
    args = ("--set", "T=f16", "--set", "BN=64", "--arg", "x=[3,100]", "--target", "sm_80")
    assert "y = f16[300], m = 3, n = 100" in check("tilus.kernels.programs:softmax", *args)


def test_arrays_out_of_files(check):
    np.save("x.npy", np.arange(64, dtype=np.float32))
    np.save("index.npy", np.array([0, 63, 64], np.int32))
    output = check("kernels.py:gather", "--arg", "x=x.npy", "--arg", "index=index.npy", "--arg", "n=3", status=1)
    assert "by thread (0, 0, 0) of block (2, 0, 0), at byte 256 of 'x', which has 256 bytes" in output


ERRORS = [
    ((), "expected MODULE:KERNEL or --matmul TYPE"),
    (("kernels.py:fold", "--matmul", "u4"), "expected MODULE:KERNEL or --matmul TYPE"),
    (("--matmul", "u4", "--arg", "n=1"), "--arg and --set are for kernels"),
    (("--matmul", "u4", "--shape", "1,2"), "expected three positive extents M,N,K, got '1,2'"),
    (("--matmul", "u4", "--activation", "f64"), "activations are f16, bf16, f32, got 'f64'"),
    (("--matmul", "f99"), "f99"),
    (("kernels.py:fold",), "no value of 'n' is known"),
    (("kernels.py:fold", "--arg", "n"), "expected NAME=VALUE, got 'n'"),
    (("kernels.py:fold", "--arg", "k=1"), "kernel 'fold' has no parameter 'k'"),
    (("kernels.py:fold", "--arg", "n=many"), "'n' must be a number of type i32, got 'many'"),
    (("kernels.py:fold", "--arg", "n=9", "--arg", "x=no.npy"), "cannot read 'x' from no.npy"),
    (("kernels.py:fold", "--arg", "n=9", "--arg", "x=f16[9]"), "argument 'x' must be an array of f32, got f16"),
    (("kernels.py:fold", "--arg", "n=9", "--arg", "x=f32[8]"), "the view [9] of 'x' needs 9 elements, the array has 8"),
    (("kernels.py:fold", "--arg", "n=0"), "kernel 'fold' has no blocks for these arguments"),
    (("kernels.py:gather", "--arg", "n=4"), "the size of 'x' is not known"),
]


@pytest.mark.parametrize(("args", "message"), ERRORS)
def test_errors_are_clean(check, args, message):
    output = check(*args, status=1)
    assert output.startswith("Error: ")
    assert message in output
    assert "Traceback" not in output


def test_arguments_are_inferred():
    program = softmax.program(T=dtype("f16"), BN=64)
    x, y, m, n = make_arguments(program, {"x": "f16[3,50]"}, 0)
    assert (x.shape, x.dtype, y.size, m, n) == ((3, 50), np.float16, 150, 3, 50)
    x, y, m, n = make_arguments(program, {"m": "2", "n": "0x10"}, 0)
    assert (x.size, y.size, m, n) == (32, 32, 2, 16)
    assert (make_arguments(program, {"m": "2", "n": "16"}, 0)[0] == x).all()
    assert (make_arguments(program, {"m": "2", "n": "16"}, 1)[0] != x).any()


@pytest.mark.parametrize(
    ("kind", "numpy_type", "size"),
    [("f16", np.float16, 100), ("bf16", ml_dtypes.bfloat16, 100), ("i64", np.int64, 100), ("u32", np.uint32, 100),
     ("bool", np.bool_, 100), ("u3", np.uint8, 38), ("f8e4m3", ml_dtypes.float8_e4m3fn, 100)],
)  # fmt: skip
def test_random_arrays(kind, numpy_type, size):
    array = random_array(dtype(kind), (100,), np.random.default_rng(0))
    assert (array.dtype, array.size) == (numpy_type, size)
    assert len(np.unique(array)) > 1
    if dtype(kind).is_integer:
        limited = dtype(kind).unpack(
            random_array(dtype(kind), (100,), np.random.default_rng(0), (1, 3)).view(np.uint8), 100
        )
        assert set(limited.tolist()) == {1, 2, 3}
