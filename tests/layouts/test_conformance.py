"""Facts about layouts that were computed outside of this project, read from a file and reproduced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tilus.errors import LayoutError
from tilus.layouts import (
    RegisterLayout,
    Replicated,
    SharedLayout,
    Swizzle,
    auto_local_spatial,
    parse,
    parse_shared,
    row_major_swizzle,
)

Fact = dict[str, Any]
FACTS: list[Fact] = json.loads((Path(__file__).parents[1] / "conformance" / "facts.json").read_text())["facts"]
# These kinds are facts about data types: tests/dtypes reproduces them.
DTYPE_KINDS = {"float_decode", "float_decode_table", "float_encode", "int_decode", "subbyte_pack"}


def check_fields(layout: RegisterLayout, fact: Fact) -> None:
    """Compare with the facts' notation, where -r stands for a replication by r."""
    spatial_modes = [-m.size if isinstance(m, Replicated) else m for m in layout.spatial_modes]
    assert list(layout.shape) == fact["shape"]
    assert list(layout.mode_shape) == fact["mode_shape"]
    assert spatial_modes == fact["spatial_modes"]
    assert list(layout.local_modes) == fact["local_modes"]
    assert (layout.num_threads, layout.local_size) == (fact["threads"], fact["local_size"])


def check_map(fact: Fact) -> None:
    assert list(parse(fact["expr"])(fact["thread"], fact["local"])) == fact["index"]


def check_table(fact: Fact) -> None:
    layout = parse(fact["expr"])
    table = [[list(layout(t, i)) for i in range(layout.local_size)] for t in range(layout.num_threads)]
    assert table == fact["table"]


def check_canonical(fact: Fact) -> None:
    check_fields(parse(fact["expr"]), fact)


def check_inverse(fact: Fact) -> None:
    assert parse(fact["expr"]).locate(*fact["index"]) == (tuple(fact["threads"]), fact["local"])


def check_reduce(fact: Fact) -> None:
    layout = parse(fact["expr"]).reduce(fact["dims"], keepdims=fact["keepdims"])
    assert list(layout.shape) == fact["shape"]
    assert layout.local_size == fact["local_size"]
    assert {str(i): list(layout.locate(i)[0]) for i in range(layout.shape[0])} == fact["threads_of_index"]


def check_equal(fact: Fact) -> None:
    lhs, rhs = parse(fact["lhs"]), parse(fact["rhs"])
    assert (lhs == rhs) is fact["equal"]
    if fact["equal"]:
        assert hash(lhs) == hash(rhs)


def check_divide(fact: Fact) -> None:
    if fact["quotient"] is None:
        with pytest.raises(LayoutError):
            parse(fact["lhs"]) / parse(fact["rhs"])
    else:
        check_fields(parse(fact["lhs"]) / parse(fact["rhs"]), fact["quotient"])


def check_left_divide(fact: Fact) -> None:
    check_fields(parse(fact["layout"]).left_divide(parse(fact["divisor"])), fact["quotient"])


def check_reshape(fact: Fact) -> None:
    check_fields(parse(fact["expr"]).reshape(fact["shape"]), fact["result"])


def check_auto(fact: Fact) -> None:
    check_fields(auto_local_spatial(fact["num_threads"], fact["shape"]), fact)


def check_fragment(fact: Fact) -> None:
    layout = parse(fact["expr"])
    assert list(layout.shape) == fact.get("shape", list(layout.shape))
    for point in fact["points"]:
        assert list(layout(point["lane"], point["reg_elem"])) == point["index"]


def check_wgmma(fact: Fact) -> None:
    layout = parse(f"spatial(4,1) * local(1,{fact['n'] // 8}) * local(2,1) * spatial(8,4) * local(1,2)")
    assert layout.shape == (fact["m"], fact["n"])
    for point in fact["points"]:
        assert list(layout(point["thread"], point["reg"])) == point["index"]


def check_shared(layout: SharedLayout, fact: Fact) -> None:
    assert list(layout.mode_shape) == fact["mode_shape"]
    assert list(layout.mode_strides) == fact["mode_strides"]
    for point in fact["points"]:
        assert layout(*point["index"]) == point["offset_elems"]


def check_swizzle(fact: Fact) -> None:
    assert fact["constructor"] == "row_major_swizzle"
    layout = row_major_swizzle(fact["shape"], fact["elem_bytes"])
    assert layout.swizzle == Swizzle(**fact["swizzle"])
    check_shared(layout, fact)


def check_shared_product(fact: Fact) -> None:
    check_shared(parse_shared(f"{fact['lhs']} * {fact['rhs']}"), fact)


CHECKS: dict[str, Callable[[Fact], None]] = {
    "register_layout_map": check_map,
    "register_layout_table": check_table,
    "register_layout_canonical": check_canonical,
    "register_layout_inverse": check_inverse,
    "register_layout_reduce": check_reduce,
    "register_layout_equal": check_equal,
    "register_layout_divide": check_divide,
    "register_layout_left_divide": check_left_divide,
    "register_layout_reshape": check_reshape,
    "auto_local_spatial": check_auto,
    "mma_fragment": check_fragment,
    "mma_fragment_veck": check_fragment,
    "wgmma_d_fragment": check_wgmma,
    "shared_swizzle_offset": check_swizzle,
    "shared_compose": check_shared_product,
}


def test_every_fact_has_a_check() -> None:
    assert {fact["kind"] for fact in FACTS} == set(CHECKS) | DTYPE_KINDS


@pytest.mark.parametrize(
    "fact", [pytest.param(f, id=f"{f['id']}-{f['kind']}") for f in FACTS if f["kind"] not in DTYPE_KINDS]
)
def test_fact(fact: Fact) -> None:
    CHECKS[fact["kind"]](fact)
