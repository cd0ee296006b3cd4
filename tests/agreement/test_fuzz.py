"""Random programs on all machines: the reference machine, the PTX that ships, and this CPU write the same bits.

`python bench/fuzz.py --minutes 20` runs more of them, and says how many a minute takes.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.agreement import fuzz
from tests.agreement.machines import examples

PORTABLE = """# operations, seed 3, portable: a title
program copy(f: ptr[f16], g: ptr[f32], h: ptr[i8], k: ptr[u4], y: ptr[u8], z: ptr[f16], w: ptr[u4], n: i32) {
  grid (1,)
  warps 1
  a: global[f16, 1] = global_view(ptr=f, shape=(64,), strides=(1,))
  t: register[f16, (64,)] = load_global(view=a, offset=(0,), shape=(64,), dims=(0,), other=0.0)
  b: global[f16, 1] = global_view(ptr=z, shape=(64,), strides=(1,))
  store_global(view=b, tile=t, offset=(0,), dims=(0,))
}
"""


@pytest.mark.parametrize("kind", fuzz.ARGUMENTS)
@examples(0.1)
@given(st.data())
def test_all_machines_agree(kind: str, data: st.DataObject) -> None:
    fuzz.check(data.draw(fuzz.cases(kind)))


@pytest.mark.parametrize("path", sorted(fuzz.KEPT.glob("*.txt")), ids=lambda path: path.stem)
def test_programs_that_once_failed(path) -> None:
    fuzz.check(fuzz.read(path.read_text()))


def test_a_case_is_read_as_it_was_written() -> None:
    case = fuzz.read(PORTABLE)
    assert (case.kind, case.seed, case.portable) == ("operations", 3, True)
    assert fuzz.read(case.text()).text("a title") == case.text("a title") == PORTABLE


@pytest.mark.parametrize("machine", ["on_simt", "on_cpu"])
def test_one_wrong_bit_is_noticed(machine: str, monkeypatch) -> None:
    case, right = fuzz.read(PORTABLE), getattr(fuzz, machine)
    fuzz.check(case)

    def wrong(*args, **options):
        found = right(*args, **options)
        z = (found[0] if machine == "on_simt" else found)[5]
        z.view(np.uint16)[7] ^= 1
        return found

    monkeypatch.setattr(fuzz, machine, wrong)
    with pytest.raises(AssertionError):
        fuzz.check(case)
