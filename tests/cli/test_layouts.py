"""`tilus dtypes` and `tilus layout`: what casts cost, and layouts down to the bit as text, JSON and pictures."""

import json

import pytest
from click.testing import CliRunner

from tilus.casts import best_unpacking
from tilus.cli import main
from tilus.dtypes import dtype

U8 = 'bits(8, 16, "bbbbbbbbaaaaaaaa", units=1)'


def run(*args, status=0):
    result = CliRunner().invoke(main, args)
    assert result.exit_code == status, result.output
    return result.output


def test_dtypes_says_what_casts_cost():
    rows = {row["name"]: row for row in json.loads(run("dtypes", "--json"))}
    best = best_unpacking(dtype("u3"), dtype("f16"))
    assert rows["u3"]["to f16"] == f"={best.alu:.2f} {best.issue:.2f}"
    assert rows["u3"]["bits for f16"] == best.bits.pattern
    assert rows["u8"]["to bf16"] == "=parts"
    assert rows["u8"]["to f8e4m3"] == " single"
    assert rows["nf4"]["to f16"] == " table"
    assert rows["f7e6m0"]["to f16"] == " by bf16"
    assert rows["t1.6"]["to f16"] == "=digits"
    assert rows["f16"]["to bf16"] == ""


def test_a_bit_layout_as_text_and_json():
    lines = run("layout", U8).splitlines()
    assert lines[1].split()[:3] == ["w0", "3.7", "3.6"]
    record = json.loads(run("layout", U8, "--json"))
    assert record["elements"] == 4
    assert record["owner"][0][8] == [2, 0]
    assert json.loads(run("layout", "u8:f16", "--json"))["layout"] == U8


@pytest.mark.parametrize("expression", [U8, "u3:f16", "spatial(4, 8) * local(1, 2)", "row_major(8, 16)"])
@pytest.mark.parametrize("ending", ["svg", "png"])
def test_pictures(tmp_path, expression, ending):
    path = tmp_path / f"layout.{ending}"
    assert run("layout", expression, "--out", str(path)) == f"wrote {path}\n"
    head = path.read_bytes()[:400]
    assert head.startswith(b"\x89PNG") if ending == "png" else b"<svg" in head or b"<!DOCTYPE svg" in head


def test_what_cannot_be_drawn_says_why(tmp_path):
    def failure(expression, name):
        return run("layout", expression, "--out", str(tmp_path / name), status=1)

    assert "pictures are .svg or .png, not '.jpg'" in failure(U8, "a.jpg")
    assert "one or two dimensions, the layout 3" in failure("local(2, 2, 2)", "a.png")
    assert "up to 128 rows and columns" in failure("local(2, 300)", "a.png")
    assert not list(tmp_path.iterdir())
    assert "nf4 has no bit layout for f16\nhint: there is none for any target" in run("layout", "nf4:f16", status=1)
    assert "u8 has no bit layout for bf16\nhint: there is u8:f16" in run("layout", "u8:bf16", status=1)
