"""What products lose because tensor cores are given integers above powers of two: little beside a rounding to f16.

A code at bit p of a lane is a number 2^(10-p) above its value, or as far below in a turned lane, and sums of 24 bits
hold both. Where all activations have one sign the offsets would grow with K, as the product of weights of both signs
does not, if neighbours did not cancel.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

import tilus
from tests.tolerance import UNIT, check, exact
from tilus.casts import Form, best_unpacking
from tilus.dtypes import dtype
from tilus.runtime.weights.weight import QuantizedWeight

ALLOWED = UNIT["f16"] / 6  # of a result, as a root mean square
NAMES = ("u1", "u2", "u3", "u4", "i4", "u5", "u6", "u7", "u8", "t1.6")
SIGNS = pytest.mark.parametrize("one_sign", [False, True], ids=["both signs", "one sign"])
Operands = tuple[QuantizedWeight, np.ndarray]


def operands(name: str, one_sign: bool, group: int = 128, shape: tuple[int, int, int] = (4, 64, 1024)) -> Operands:
    (m, n, k), rng = shape, np.random.default_rng([*shape, group % 1000])
    x = rng.normal(size=(m, k)).astype(np.float16)
    return tilus.quantize(rng.normal(size=(n, k)).astype(np.float16), name, group), np.abs(x) if one_sign else x


def lost(weight: QuantizedWeight, x: np.ndarray) -> float:
    """Return by what a result is off besides being rounded, relative to its norm."""
    wanted = exact(x, weight)
    found = tilus.matmul(x, weight).astype(float)
    rounded = wanted.astype(x.dtype).astype(float)
    off, alone = (np.linalg.norm(y - wanted) / np.linalg.norm(wanted) for y in (found, rounded))
    return max(off**2 - alone**2, 0.0) ** 0.5


# One sign is what offsets would show in, and rows without groups have the longest sums. Of every way in which numbers lie
# one is taken; the others are run at length.
USUAL = {128: ("u1", "u3", "u4", "u7", "u8", "t1.6"), -1: ("u1", "u4", "u8")}
KINDS = [
    pytest.param(name, group, one_sign, marks=() if one_sign and name in USUAL[group] else pytest.mark.long)
    for name, group, one_sign in product(NAMES, (128, -1), (False, True))
]


@pytest.mark.parametrize(("name", "group", "one_sign"), KINDS)
def test_offsets_cost_less_than_a_sixth_of_f16s_roundoff(name: str, group: int, one_sign: bool) -> None:
    with tilus.knobs.scope(target="simt:sm_90a"):
        assert lost(*operands(name, one_sign, group)) < ALLOWED


@pytest.mark.parametrize(
    "one_sign", [pytest.param(False, marks=pytest.mark.long), True], ids=["both signs", "one sign"]
)
@pytest.mark.parametrize(
    ("name", "group", "shape"),
    [("u2", 128, (8, 64, 128)), ("u4", 128, (8, 64, 128)), ("u5", 96, (1, 130, 16)), ("u2", 16, (1, 130, 128)),
     ("u3", 256, (2, 33, 80)), ("u1", 16, (8, 64, 16))],
)  # fmt: skip
def test_each_element_keeps_to_the_bound_of_f32(
    name: str, group: int, shape: tuple[int, int, int], one_sign: bool
) -> None:
    weight, x = operands(name, one_sign, group, shape)
    with tilus.knobs.scope(target="simt:sm_90a"):
        check(tilus.matmul(x, weight), x, weight)


@pytest.mark.parametrize("name", ["u2", "u4"])
def test_an_offset_that_is_forgotten_is_seen(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Form.bias
    monkeypatch.setattr(Form, "bias", lambda form, *place: right(form, *place) + 2.0**-3)
    with tilus.knobs.scope(target="simt:sm_90a", cache_dir=tmp_path):
        assert lost(*operands(name, one_sign=True, group=256)) > ALLOWED  # a kernel of its own


# --- sums that are cut, which simt's are not ------------------------------------------------------------------------


def cut_sum(start: np.ndarray, terms: np.ndarray, extra: int) -> np.ndarray:
    """Add terms [..., 16] as tensor cores may: cut to `24 + extra` bits of the largest, and the sum to 24.

    One bit more fits what an A100 does, two an H100 (Fasi et al., PeerJ CS 7:e330; the model of `bench/tensor_sums.py`).
    """
    every = np.concatenate([start[..., None], terms], -1)
    unit = np.ldexp(1.0, np.frexp(np.abs(every).max(-1, keepdims=True))[1] - 24 - extra)
    total = (np.trunc(every / unit) * unit).sum(-1)
    unit = np.ldexp(1.0, np.frexp(np.abs(total))[1] - 24)
    cut: np.ndarray = np.trunc(total / unit) * unit
    return cut


def lost_by_cutting(name: str, one_sign: bool, extra: int, mirrored: bool) -> float:
    """Return by what sums of groups of 128 are off, relative to their norm, with numbers in turned lanes or not."""
    best, rng = best_unpacking(dtype(name), dtype("f16")), np.random.default_rng(7)
    assert best is not None
    turned = [mirrored and best.bits.turned(lane) for lane in range(best.bits.lanes)]
    bias = np.array([[best.form.bias(p, lane) for lane in turned] for p in best.positions])
    bias = np.tile(bias.repeat(128 // len(bias) // 2 or 1, 0).reshape(-1)[:128], 16)
    x = rng.normal(size=(16, 128)).astype(np.float16).astype(float).reshape(-1)
    x, most = np.abs(x) if one_sign else x, 2**best.bits.nbits - 1
    values = rng.integers(0, most + 1, (64, x.size)) - most / 2
    steps = (-1, 16, 8, 16)
    sums, products = (part.reshape(*steps[1:]) for part in (bias * x, x)), (values - bias) * x
    total = np.zeros((1, 16))
    of_bias, _ = sums
    for step in range(8):
        total = cut_sum(total, of_bias[None, :, step], extra)
    total = np.broadcast_to(total, (64, 16))
    for step in range(8):
        total = cut_sum(total, products.reshape(steps)[:, :, step], extra)
    wanted = (values * x).reshape(64, 16, 128).sum(-1)
    return float(np.linalg.norm(total.sum(-1) - wanted.sum(-1)) / np.linalg.norm(wanted.sum(-1)))


@SIGNS
@pytest.mark.parametrize("extra", [1, 2])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("i4", "u8", "t1.6")])
def test_sums_that_are_cut_lose_little_too(name: str, one_sign: bool, extra: int) -> None:
    assert lost_by_cutting(name, one_sign, extra, mirrored=True) < ALLOWED


@pytest.mark.parametrize("name", ["u2", "u4", "u5"])
def test_without_turned_lanes_cut_sums_would_be_off(name: str) -> None:
    assert lost_by_cutting(name, one_sign=True, extra=1, mirrored=False) > ALLOWED
