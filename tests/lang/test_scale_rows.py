"""The kernel of the documentation, typed as it stands there: annotations are objects, without the future import."""

import tilus
from tilus import f16, f32, i32
from tilus.ir.printer import to_text
from tilus.ir.verify import verify
from tilus.lang import define


def scale_rows(x: tilus.ptr[f16], s: tilus.ptr[f32], y: tilus.ptr[f16], m: i32, n: i32, *, BN: int = 512):
    tilus.launch(blocks=(m, tilus.cdiv(n, BN)), warps=4)
    i, j = tilus.block_id(0), tilus.block_id(1) * BN
    gx = tilus.global_view(x, shape=(m, n))
    tile = tilus.load_global(gx, offset=(i, j), shape=(1, BN))
    tilus.store_global(tilus.global_view(y, shape=(m, n)), (tile.to(f32) * s[i]).to(f16), offset=(i, j))


def test_it_is_a_program() -> None:
    program = define(scale_rows).specialize({"BN": 256}, {"x": 16})
    verify(program)
    text = to_text(program)
    assert text.startswith("program scale_rows(x: ptr[f16] % 16, s: ptr[f32], y: ptr[f16], m: i32, n: i32) {")
    assert "grid (m, (n + 255) // 256)" in text
    assert 'elementwise(op="mul", args=(t, s_element))' in text
