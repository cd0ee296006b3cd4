"""The passes one after the other: the program after each is a golden file, and hooks see it."""

from __future__ import annotations

import pytest

from tests.conftest import Golden
from tests.passes.programs import chained, matmul, quantized, softmax, vector_add
from tilus.errors import VerifyError
from tilus.ir.expr import const
from tilus.ir.parser import parse
from tilus.ir.printer import to_text
from tilus.ir.program import Program
from tilus.ir.stmt import Break
from tilus.ir.target import TARGETS
from tilus.layouts import column_local, local, spatial
from tilus.passes import pipeline as pipeline_module
from tilus.passes.pipeline import lower, pipeline

FRAGMENT = local(1, 4) * spatial(4, 1) * column_local(2, 2) * spatial(8, 4) * local(1, 2)
GOLDEN = {
    "vector_add": (vector_add(16), "sm_80"),
    "softmax": (softmax(rows=4), "sm_80"),
    "matmul": (matmul(), "sm_80"),
    "chained": (chained(), "sm_80"),
    "dot_of_itself": (chained(same=True), "sm_80"),
    "quantized": (quantized(spatial(128) * local(16), FRAGMENT), "sm_80"),
    "matmul_cpu": (matmul(bm=8, bn=16, bk=8), "cpu"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_program_after_every_pass(name: str, golden: Golden) -> None:
    program, target = GOLDEN[name]
    seen: list[tuple[str, Program]] = [("written", program)]

    def hook(step: str, after: Program) -> None:
        if after is not seen[-1][1]:  # a pass that has nothing to do returns the same object
            text = to_text(after)
            assert to_text(parse(text)) == text
            golden.check(text, part=step)
        seen.append((step, after))

    lower(program, TARGETS[target], hook=hook)
    assert [step for step, _ in seen[1:]] == [step.__name__ for step in pipeline(TARGETS[target])]


def test_a_lowered_program_lowers_to_itself() -> None:
    for program, target in GOLDEN.values():
        once = lower(program, TARGETS[target])
        assert to_text(lower(once, TARGETS[target])) == to_text(once)


def test_a_pass_that_breaks_a_rule_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(program: Program, target: object) -> Program:
        return Program(program.name, program.params, (const(1),), program.num_warps, (Break(),))

    monkeypatch.setattr(pipeline_module, "pipeline", lambda target: (spoil,))
    with pytest.raises(VerifyError, match="after pass spoil: break stands in no loop"):
        lower(vector_add(), TARGETS["sm_80"])


def test_a_program_that_breaks_a_rule_gets_no_pass() -> None:
    broken = Program("p", (), (const(1),), 1, (Break(),))
    with pytest.raises(VerifyError, match=r"^break stands in no loop"):
        lower(broken, TARGETS["sm_80"])
