"""The published facts about data types in `tests/conformance/facts.json`, each one a test."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import tilus

FACTS = json.loads((Path(__file__).parent.parent / "conformance" / "facts.json").read_text())["facts"]
KINDS = {"float_decode_table", "float_decode", "float_encode", "int_decode", "subbyte_pack"}
MINE = [fact for fact in FACTS if fact["kind"] in KINDS]


def ours(name: str) -> tilus.DataType:
    """Return our type for a name of the facts: float3_e1m1 is f3e1m1, int3b is i3."""
    if match := re.fullmatch(r"float(\d)_(e\dm\d)", name):
        return tilus.dtype(f"f{match[1]}{match[2]}")
    match = re.fullmatch(r"(u?)int(\d)b?", name)
    return tilus.dtype(f"{match[1] or 'i'}{match[2]}")


def test_all_are_covered() -> None:
    assert len(MINE) == 10
    assert {fact["kind"] for fact in MINE} == KINDS


@pytest.mark.parametrize("fact", MINE, ids=lambda fact: f"{fact['id']}-{fact['kind']}")
def test_fact(fact: dict) -> None:
    match fact["kind"]:
        case "float_decode_table":
            dtype = ours(fact["dtype"])
            np.testing.assert_array_equal(dtype.decode(np.arange(dtype.num_codes)), fact["values"])
        case "float_decode" | "int_decode":
            codes = [point["code"] for point in fact["points"]]
            values = [float(point["value"]) for point in fact["points"]]
            np.testing.assert_array_equal(ours(fact["dtype"]).decode(codes), values)
        case "float_encode":
            values = [point["value"] for point in fact["points"]]
            codes = [point["code"] for point in fact["points"]]
            assert ours(fact["dtype"]).encode(values).tolist() == codes
        case "subbyte_pack":
            dtype = tilus.dtype(f"u{fact['nbits']}")
            assert dtype.pack(fact["codes"]).tolist() == fact["bytes"]
            assert dtype.unpack(bytes(fact["bytes"]), len(fact["codes"])).tolist() == fact["codes"]
