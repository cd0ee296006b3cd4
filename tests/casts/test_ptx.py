"""The PTX that casts ship as, executed thread by thread: every code at every position, for every row of the table."""

import numpy as np
import pytest

from tilus import simt
from tilus.casts import best_unpacking
from tilus.casts.table import TARGETS, sources
from tilus.dtypes import dtype
from tilus.ir.target import target as find_target
from tilus.kernels.cast_cost import cast_program
from tilus.runtime.compiled import CompiledKernel

THREADS, UNITS = 32, 4  # of a cast's program
ROWS = {f"{s.name}-{t}": (s, dtype(t)) for s in sources() for t in TARGETS if best_unpacking(s, dtype(t))}


def packed(bits, source, target, count, turn):
    """Words, and the codes that they hold: in num_codes / 128 turns every one comes to every lane of every slot."""
    lanes = 32 // target.nbits
    slot, place = np.divmod(np.arange(count), UNITS * lanes)
    unit, lane = np.divmod(place, lanes)
    codes = np.arange(THREADS)[:, None] + THREADS * (unit + UNITS * turn) + 37 * slot + 5 * lane
    codes = (codes % source.num_codes).astype(np.uint8)
    return codes, bits.pack(codes) if bits else source.pack(codes).view(np.uint32).reshape(THREADS, -1)


def executed(source, target, arch, numbers):
    """Yield codes and what becomes of them, until each has been everywhere."""
    program, bits, count = cast_program(source, target, numbers)
    kernel = CompiledKernel(program, find_target(arch))
    resources = kernel.resources
    for turn in range(-(-source.num_codes // (THREADS * UNITS))):
        codes, words = packed(bits, source, target, count, turn)
        out = np.zeros((THREADS, count), target.code_dtype)
        report = simt.run(kernel.ptx, resources.kernel, [words, out], 1, THREADS, shared_bytes=resources.shared_bytes)
        report.check()
        yield codes, out


@pytest.mark.parametrize("name", ROWS)
def test_numbers(name):
    source, target = ROWS[name]
    best = best_unpacking(source, target)
    lanes = 32 // target.nbits
    tables = np.stack([[best.form.patterns(p, odd) for p in best.positions] for odd in (False, True)])
    seen = np.zeros((best.bits.num_slots, lanes, source.num_codes), bool)
    for codes, out in executed(source, target, "sm_80", numbers=True):
        element = np.broadcast_to(np.arange(codes.shape[1]), codes.shape)
        slots = element // (UNITS * lanes)
        turned = element % 2 * best.bits.mirrored
        np.testing.assert_array_equal(out, tables[turned, slots, codes].astype(out.dtype))
        seen[slots, element % lanes, codes] = True
    assert seen.all()


@pytest.mark.parametrize(
    "name", ["u1-f16", "i4-bf16", "u8-bf16", "f8e4m3-f16", "f8e5m2-bf16", "f7e5m1-f16", "f6e5m0-f16", "nf4-f16"]
)
def test_values(name):
    """NaN and infinity are what they were."""
    text, to = name.split("-")
    source, target = dtype(text), dtype(to)
    for codes, out in executed(source, target, "sm_90a", numbers=False):
        np.testing.assert_array_equal(target.decode(out), target.decode(target.encode(source.decode(codes))))
