"""Random programs around weights mean the same before and after `absorb_casts`, to the bit."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings

from tests.agreement.machines import copies_of, examples
from tests.passes.weight_programs import Case, weight_programs
from tilus import vm
from tilus.ir.instructions import Unpack
from tilus.ir.stmt import inst_stmts
from tilus.ir.target import target
from tilus.ir.verify import verify
from tilus.passes.absorb_casts import absorb_casts


def test_random_programs() -> None:
    forms: Counter[str] = Counter()

    # The same programs in every run: which forms they meet is asked below, and chance may leave one out.
    @settings(examples(0.75), derandomize=True, database=None)
    @given(weight_programs())
    def check(case: Case) -> None:
        results = []
        for program in (case.program, absorb_casts(case.program, target("sm_80"))):
            verify(program)
            *_, y, _ = args = copies_of(case.arguments())
            vm.run(program, args)
            results.append(y)
        assert np.isfinite(results[0]).all()
        np.testing.assert_array_equal(results[1], results[0])
        forms.update({stmt.inst.form for stmt in inst_stmts(program) if isinstance(stmt.inst, Unpack)})

    check()
    assert forms.keys() >= {"subnormal", "offset", "exponent", "value"}
