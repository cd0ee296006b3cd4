"""Scales of 8 bits multiply weights where batches are large, and sums of a group where they are small."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import tilus
from tests.tolerance import numpy_type
from tilus.dtypes import dtype
from tilus.kernels.candidates import named_problem
from tilus.kernels.configure import matmul_program
from tilus.runtime.weights.quantize import quantize
from tilus.runtime.weights.weight import QuantizedWeight

K = 64


def folded(name: str, activation: str, group: int, bm: int) -> bool:
    kind = dtype(activation)
    problem = named_problem(name, kind, group, (bm, 64, 1024))
    _, constants = matmul_program(problem.form, kind, problem.scale, bm, bias=False)
    return bool(constants["FOLDED"])


@pytest.mark.parametrize(
    ("name", "activation", "group", "least"),
    [
        ("nvfp4", "f16", 16, 32),
        ("nvfp4", "bf16", 16, 32),
        ("mxfp4", "bf16", 32, 64),
        ("mxfp6", "bf16", 32, 64),
        ("mxfp8", "bf16", 32, None),  # bf16 has not the least products
        ("i4:g16:f8e4m3", "f16", 16, 32),
        ("u4:g16:f8e4m3:zu4", "f16", 16, None),  # zero points are any byte
        ("mxfp4", "f16", 32, None),  # f16 has not the scales
        ("mxfp8", "f16", 32, None),
        ("f6e3m2:g64:f8e4m3", "f16", 64, None),  # as many instructions
        ("u8:g16:f8e4m3", "f16", 16, 32),  # 128 is subtracted first: 8 bits and 4
        ("i4:g16:f8e5m2", "f16", 16, None),  # f16 has not the greatest products
        ("i8:g16:f8e4m3", "bf16", 16, None),  # 8 bits and 4: bf16 would round
        ("u4", "f16", 32, None),  # f16 scales: f16 would round
    ],
)
def test_weights_are_scaled_where_that_is_exact_and_costs_less(
    name: str, activation: str, group: int, least: int | None
) -> None:
    found = [bm for bm in (8, 16, 32, 64) if folded(name, activation, group, bm)]
    assert found == [bm for bm in (8, 16, 32, 64) if least is not None and bm >= least]


def every_scale(name: str, activation: str) -> QuantizedWeight:
    """Return a weight whose row n has scales of code n, and in columns all codes one after the other."""
    rng = np.random.default_rng(0)
    with tilus.knobs.scope(target="simt"):
        w = quantize(rng.normal(size=(256, K)).astype(numpy_type(dtype(activation))), name)
    count, rows = w.format.dtype.num_codes, np.arange(256, dtype=np.uint8)
    codes = np.resize(np.arange(count, dtype=np.uint8), (256, K))
    codes[1::2] = codes[1::2, ::-1]
    form = replace(w.format, tensor_scale=1.0)
    return QuantizedWeight(
        form, codes.shape, form.pack.pack(codes), np.repeat(rows[None], form.groups(K), 0), None, w.dtype
    )


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(
    ("name", "activation", "m"),
    [("nvfp4", "f16", 5), ("nvfp4", "f16", 32), ("mxfp4", "bf16", 5), ("mxfp4", "bf16", 64)],
)
def test_every_scale_times_every_code(name: str, activation: str, m: int, arch: str) -> None:
    """Of every scale, the subnormal ones and NaN among them; a sum has one term only, so nothing is rounded."""
    kind, weight = dtype(activation), every_scale(name, activation)
    x = np.zeros((m, K))
    x[np.arange(m), np.arange(m)] = np.resize([1.0, -2.0, 0.5], m)
    with tilus.knobs.scope(target=f"simt:{arch}"):
        y = tilus.matmul(kind.encode(x).view(numpy_type(kind)), weight)
    values = weight.dequantize("f64")
    wanted = kind.decode(kind.encode(x @ values.T))
    beyond = ~(np.abs(values).max(1) < 2.0**128) & np.isfinite(values).all(1)  # rows of weights that f32 has not
    assert beyond.sum() == 2 * (name == "mxfp4")
    np.testing.assert_array_equal(y.astype(float)[:, ~beyond], wanted[:, ~beyond])
    assert np.isnan(wanted).any()
