"""What a thread alone adds to addresses in shared memory: made of its number, once, before all loops."""

import re

import pytest

from tilus.dtypes import f16
from tilus.kernels.programs import matmul

OWN = re.compile(r"const u32 (own(?:_\d+)?) = __shfl_sync\(0xffffffffu, (.*), tid\);")


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_a_loop_uses_what_the_head_made_of_the_threads_number(target: str) -> None:
    source = matmul.compile(target=target, T=f16).source
    body = source[source.index("__global__") :]
    found = OWN.findall(body)
    assert len(found) >= 4
    before, loop = body.split("for (", 1)
    for name, value in found:
        assert set(re.findall(r"[a-z]\w*", value)) <= {"tid", *re.findall(r"\bdigit_\d+_\d+\b", value)}
        assert f" {name} = " in before
        assert re.search(rf"\b{name}\b", loop)
    assert "__shfl_sync" not in loop, "each lane has it from itself, once"


def test_code_without_a_loop_computes_in_place() -> None:
    from tilus.kernels.programs import vector_add

    assert "own" not in vector_add.compile(target="sm_90a", T=f16).source
