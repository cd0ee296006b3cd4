"""The PTX that casts ship as, executed thread by thread: every code at every position, for every row of the table."""

import numpy as np
import pytest

from tilus import simt
from tilus.casts import best_unpacking
from tilus.casts.table import sources
from tilus.dtypes import dtype
from tilus.ir.target import target as find_target
from tilus.kernels.cast_cost import cast_program
from tilus.runtime.compiled import CompiledKernel

LANES = 32
ROWS = {f"{s.name}-{t}": (s, dtype(t)) for s in sources() for t in ("f16", "bf16") if best_unpacking(s, dtype(t))}


def packed(bits, source, count):
    """Words of codes that take every value in every slot, and what the codes are."""
    # A slot has 8 codes in each of 32 threads: all 256 in turn, beginning elsewhere in every slot.
    element = np.arange(count)
    codes = (np.arange(LANES)[:, None] * 8 + element % 8 + element // 8 * 37) % source.num_codes
    finite = np.isfinite(source.decode(np.arange(source.num_codes)))
    codes = np.where(finite[codes], codes, 0).astype(np.uint8)
    return codes, bits.pack(codes) if bits else source.pack(codes).view(np.uint32).reshape(LANES, -1)


def executed(source, target, arch, numbers):
    program, bits, count = cast_program(source, target, numbers)
    codes, words = packed(bits, source, count)
    kernel = CompiledKernel(program, find_target(arch))
    out, resources = np.zeros((LANES, count), np.uint16), kernel.resources
    report = simt.run(kernel.ptx, resources.kernel, [words, out], 1, LANES, shared_bytes=resources.shared_bytes)
    report.check()
    return codes, out, bits


@pytest.mark.parametrize("name", ROWS)
def test_numbers(name):
    source, target = ROWS[name]
    best = best_unpacking(source, target)
    codes, out, bits = executed(source, target, "sm_80", numbers=True)
    slots = np.arange(bits.num_elements) // (bits.units * bits.lanes)
    tables = np.stack([best.form.patterns(p) for p in best.positions])
    np.testing.assert_array_equal(out, tables[slots, codes])
    finite = int(np.isfinite(source.decode(np.arange(source.num_codes))).sum())
    assert len(set(zip(slots.tolist() * LANES, codes.ravel().tolist(), strict=True))) == bits.num_slots * finite


@pytest.mark.parametrize("name", ["u1-f16", "i4-bf16", "u8-bf16", "f8e4m3-f16", "f7e5m1-bf16", "nf4-f16"])
def test_values(name):
    text, to = name.split("-")
    source, target = dtype(text), dtype(to)
    codes, out, _ = executed(source, target, "sm_90a", numbers=False)
    np.testing.assert_array_equal(out, target.encode(source.decode(codes)))
