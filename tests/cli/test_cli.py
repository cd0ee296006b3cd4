"""The commands: what they print, their JSON, and errors without a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
from click.testing import CliRunner

import tilus
from tilus.cli import main
from tilus.dtypes import ALL
from tilus.runtime.backends import BACKENDS
from tilus.runtime.knobs import knobs

KERNELS = """
import tilus
from tilus import f16, f32, i32


@tilus.kernel
def double(x: tilus.ptr[f32], y: tilus.ptr[f32], n: i32, *, BN: int = 128, SCALE: float = 2.0, T: tilus.DataType = f16):
    tilus.launch(blocks=tilus.cdiv(n, BN), warps=1)
    start = tilus.block_id(0) * BN
    tile = tilus.load_global(tilus.global_view(x, shape=(n,)), offset=(start,), shape=(BN,))
    tilus.store_global(tilus.global_view(y, shape=(n,)), (tile.to(T).to(f32) * SCALE), offset=(start,))


class Unreadable:
    pass


@tilus.kernel
def odd(x: tilus.ptr[f32], *, HOW: Unreadable = None):
    tilus.launch(blocks=1, warps=1)


number = 3
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in an empty folder with a cache of its own; returns its output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TILUS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_COLOR", "1")
    (tmp_path / "kernels.py").write_text(KERNELS)

    def invoke(*args: str, status: int = 0) -> str:
        result = CliRunner().invoke(main, args, catch_exceptions=False)
        assert result.exit_code == status, result.output
        return result.output

    return invoke


def test_every_command_has_help(run) -> None:
    commands = run("--help")
    for name in ("cache", "check", "compile", "demo", "doctor", "dtypes", "layout"):
        assert name in commands
        assert "Usage" in run(name, "--help")


def test_version(run) -> None:
    assert tilus.__version__ in run("--version")


def test_doctor_says_what_is_there(run, tmp_path) -> None:
    rows = {row["item"]: row for row in json.loads(run("doctor", "--json"))}
    assert rows["tilus"]["found"] == tilus.__version__
    assert "vectors" in rows["cpu"]["found"]
    assert int(rows["cpu threads"]["found"]) >= 1
    assert rows["cache"]["found"] == f"{tmp_path / 'cache'}: 0 kernels, 0.0 MB"
    assert rows["llvmlite"]["state"] == "ok"
    table = run("doctor")
    assert all(item in table for item in rows)


def test_doctor_survives_what_is_missing(run, monkeypatch) -> None:
    def missing() -> str:
        raise tilus.TilusError("nvdisasm was not found", hint="install it")

    monkeypatch.setattr("tilus.cli.doctor._nvdisasm", missing)
    rows = {row["item"]: row for row in json.loads(run("doctor", "--json"))}
    assert rows["nvdisasm"]["found"] == "-"
    assert "nvdisasm was not found" in rows["nvdisasm"]["state"]


def test_dtypes_lists_all_types(run) -> None:
    rows = {row["name"]: row for row in json.loads(run("dtypes", "--json"))}
    assert list(rows) == [kind.name for kind in ALL]
    assert rows["u3"].items() >= {
        "name": "u3", "bits": 3.0, "kind": "unsigned integer", "least": 0, "greatest": 7, "codes": 8,
    }.items()  # fmt: skip
    assert (rows["f4e2m1"]["least"], rows["f4e2m1"]["greatest"], rows["f4e2m1"]["kind"]) == (-6, 6, "float")
    assert rows["t1.6"]["bits"] == 1.6
    assert rows["nf4"]["kind"] == "codebook"
    table = run("dtypes")
    assert all(name in table for name in rows)


def test_layout_shows_threads_and_locals(run) -> None:
    assert run("layout", "spatial(2, 2) * local(1, 2)").splitlines() == [
        f"{tilus.spatial(2, 2).local(1, 2)}  (threads:local)",
        "0:0  0:1  1:0  1:1",
        "2:0  2:1  3:0  3:1",
    ]
    record = json.loads(run("layout", "spatial(2, 2) * local(1, 2)", "--json"))
    assert record["shape"] == [2, 4]
    assert record["index"][3] == [[1, 2], [1, 3]]


def test_layout_shows_addresses(run) -> None:
    assert run("layout", "column_major(2, 3)").splitlines()[1:] == ["0  2  4", "1  3  5"]
    assert json.loads(run("layout", "column_major(2, 3)", "--json"))["offset"] == [[0, 2, 4], [1, 3, 5]]


def test_layout_error_has_a_caret(run) -> None:
    lines = run("layout", "spatail(2)", status=1).splitlines()
    assert lines[0].startswith("Error: ")
    assert "expected a layout, got 'spatail'" in lines[0]
    assert lines[2].strip() == "^"


def test_compile_for_the_cpu_writes_every_stage(run, tmp_path) -> None:
    output = run(
        "compile", "kernels.py:double", "--target", "cpu", "--set", "BN=64", "--set", "SCALE=3", "--out", "out"
    )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"program.txt", "lowered.txt", *BACKENDS["cpu"].names} - {"meta.json"}
    assert all(name in output for name in names)
    assert "64" in (tmp_path / "out" / "program.txt").read_text()
    assert (tmp_path / "out" / "kernel.o").read_bytes()[:4] == b"\x7fELF"


def test_compile_for_a_gpu_prints_resources(run, tmp_path) -> None:
    row = json.loads(
        run("compile", "kernels.py:double", "--target", "sm_90a", "--multiple", "n=16", "--set", "T=bf16", "--json")
    )[0]
    assert row["target"] == "sm_90a"
    assert row["threads"] == 32
    assert 8 <= row["registers"] <= 255
    assert row["spill bytes"] == 0
    assert row["blocks per SM"] >= 1
    folder = tmp_path / "double-sm_90a"
    assert "double" in (folder / "kernel.ptx").read_text()
    assert "EXIT" in (folder / "kernel.sass").read_text()
    assert "bf16" in (folder / "program.txt").read_text()


def test_compile_a_kernel_of_the_library(run) -> None:
    row = json.loads(
        run(
            "compile",
            "tilus.kernels.programs:softmax",
            "--target",
            "cpu",
            "--set",
            "T=f16",
            "--set",
            "BN=256",
            "--json",
        )
    )
    assert row[0]["object bytes"] > 1000


ERRORS = [
    (("compile", "kernels.py"), "expected MODULE:KERNEL, got 'kernels.py'"),
    (("compile", "nothing.py:k"), "there is no file nothing.py"),
    (("compile", "no.such.module:k"), "cannot import 'no.such.module'"),
    (("compile", "kernels.py:triple"), "Error: kernels.py has no 'triple'\n"),
    (("compile", "kernels.py:triple"), "its kernels are double, odd"),
    (("compile", "kernels.py:number"), "kernels.py defines 'number' as int, not as a kernel"),
    (
        ("compile", "kernels.py:double", "--multiple", "n=0"),
        "'n' cannot be a multiple of 0: expected an integer from 1 on",
    ),
    (("compile", "kernels.py:double", "--multiple", "m=16"), "kernel 'double' has no parameter 'm'"),
    (("layout", "spatial(3000, 3000)"), "has 9000000 elements, a table shows at most 65536"),
    (("layout", "spatial(3000, 3000)", "--json"), "has 9000000 elements"),
    (("layout", "column_major(3000, 3000)"), "has 9000000 elements"),
    (("compile", "kernels.py:double", "--set", "BN"), "expected NAME=VALUE, got 'BN'"),
    (("compile", "kernels.py:double", "--set", "BN=many"), "BN must be an integer, got 'many'"),
    (("compile", "kernels.py:double", "--set", "SCALE=many"), "SCALE must be a number, got 'many'"),
    (("compile", "kernels.py:double", "--set", "T=f99"), "f99"),
    (("compile", "kernels.py:double", "--set", "BK=1"), "kernel 'double' has no constant 'BK'"),
    (("compile", "kernels.py:odd", "--set", "HOW=1"), "a constant of type Unreadable cannot be given"),
    (("compile", "broken.py:k"), "broken.py cannot be imported: ZeroDivisionError"),
    (("compile", "wrong.py:k", "--target", "cpu"), "wrong.py:7:9"),
    (("demo", "--types", "u99"), "no data type is named 'u99'"),
    (("demo", "--types", "f16"), "cannot quantize to f16"),
    (("demo", "--types", ","), "no types to show"),
    (("demo", "--group", "7"), "group_size must be a positive multiple of 16 or -1, got 7"),
]


@pytest.mark.parametrize(("args", "message"), ERRORS)
def test_errors_are_clean(run, tmp_path, args, message) -> None:
    (tmp_path / "broken.py").write_text("x = 1 / 0")
    (tmp_path / "wrong.py").write_text(
        textwrap.dedent("""
        import tilus

        @tilus.kernel
        def k(n: tilus.i32):
            tilus.launch(blocks=1, warps=1)
            x = unknown
        """)
    )
    output = run(*args, status=1)
    assert output.startswith("Error: ")
    assert message in output
    assert "Traceback" not in output


def test_an_unknown_target_is_refused(run) -> None:
    assert "'sm_1'" in run("compile", "kernels.py:double", "--target", "sm_1", status=2)


def test_cache_lists_and_clears(run, tmp_path) -> None:
    assert "holds no compiled kernels" in run("cache", "ls")
    assert json.loads(run("cache", "ls", "--json")) == []
    run("compile", "kernels.py:double", "--target", "cpu")
    rows = json.loads(run("cache", "ls", "--json"))
    assert [row["target"] for row in rows] == ["cpu"]
    assert "double" in rows[0]["kernel"]
    assert rows[0]["bytes"] > 1000
    assert rows[0]["kernel"] in run("cache", "ls")
    assert "removed 1 kernels" in run("cache", "clear")
    assert json.loads(run("cache", "ls", "--json")) == []
    assert not list(knobs.cache_dir.glob("??/*/meta.json"))


def test_the_package_is_the_command():
    shown = subprocess.run([sys.executable, "-m", "tilus", "--help"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("Usage: tilus ")
    assert "explain" in shown.stdout
    wrong = subprocess.run([sys.executable, "-m", "tilus", "layouts", "nonsense("], capture_output=True, text=True)
    assert wrong.returncode != 0
    assert "Traceback" not in wrong.stderr
