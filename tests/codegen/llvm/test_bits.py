"""Codes in bit layouts on the CPU: as they are, as values, and as the numbers that GPUs multiply."""

import numpy as np
import pytest

from tests.codegen.llvm import harness
from tilus.casts import best_unpacking, parts, unpack
from tilus.dtypes import dtype

LANES = 8


@pytest.mark.parametrize("to", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["u1", "i3", "u4", "u8", "f4e2m1", "f6e3m2", "f8e5m2", "t2"])
def test_codes_values_and_numbers(name, to):
    kind, target = dtype(name), dtype(to)
    found = best_unpacking(kind, target)
    bits = (found or best_unpacking(kind, dtype("f16"))).bits.repeated(2)
    forms = [found.form] if found else list(parts(kind, target))
    count, words = bits.num_elements, bits.num_words
    shape, layout = f"({LANES}, {count})", f"spatial({LANES}, 1) * local(1, {count})"
    body = [
        f"  gx: global[u32, 2] = global_view(ptr=x, shape=({LANES}, {words}), strides=({words}, 1))",
        f"  w: register[u32, ({LANES}, {words}), spatial({LANES}, 1) * local(1, {words})] = "
        f"load_global(view=gx, offset=(0, 0), shape=({LANES}, {words}), dims=(0, 1), other=0.0)",
        f"  c: register[{name}, {shape}, {layout}] = view(x=w, dtype={name}, layout={layout}, bits={bits})",
        f"  d: register[{to}, {shape}, {layout}] = cast(x=c, dtype={to})",
    ]
    ways = [("value", ())] + [(form.name, unpack(bits, form).positions) for form in forms]
    for i, (form, positions) in enumerate(ways):
        body.append(
            f"  n{i}: register[{to}, {shape}, {layout}] = unpack(x=w, source={name}, dtype={to}, layout={layout}, "
            f'bits={bits}, form="{form}", positions={positions})'
        )
    tiles = ["d", *(f"n{i}" for i in range(len(ways)))]
    for tile in tiles:
        body.append(f"  g{tile}: global[{to}, 2] = global_view(ptr=p{tile}, shape={shape}, strides=({count}, 1))")
        body.append(f"  store_global(view=g{tile}, tile={tile}, offset=(0, 0), dims=(0, 1))")
    params = ", ".join(["x: ptr[u32]", *(f"p{tile}: ptr[{to}]" for tile in tiles)])
    finite = np.flatnonzero(np.isfinite(kind.decode(np.arange(kind.num_codes))))
    codes = np.random.default_rng(0).choice(finite, (LANES, count)).astype(np.uint8)
    outputs = [np.zeros((LANES, count), np.uint16) for _ in tiles]
    harness.run(harness.lowered("\n".join(body), params), [bits.pack(codes), *outputs])
    values = target.encode(kind.decode(codes))
    np.testing.assert_array_equal(outputs[0], values)
    np.testing.assert_array_equal(outputs[1], values)
    slots = np.arange(count) // (bits.units * bits.lanes)
    for form, (_, positions), got in zip(forms, ways[1:], outputs[2:], strict=True):
        tables = np.stack([[form.patterns(p, odd) for p in positions] for odd in (False, True)])
        np.testing.assert_array_equal(got, tables[np.arange(count) % 2 * bits.mirrored, slots, codes])
