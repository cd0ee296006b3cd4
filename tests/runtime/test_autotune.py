"""Tuning chooses by measuring, and the caller's arrays see one call: the one that was asked for."""

import numpy as np
import pytest
import torch

import tilus
from tilus import f32, i32
from tilus.errors import LaunchError, TilusError


@tilus.autotune(BN=[256, 512])
@tilus.kernel
def double(x: tilus.ptr[f32], n: i32, *, BN: int):
    tilus.launch(blocks=tilus.cdiv(n, BN), warps=1)
    view, start = tilus.global_view(x, shape=(n,)), tilus.block_id(0) * BN
    tilus.store_global(view, tilus.load_global(view, offset=(start,), shape=(BN,)) * 2.0, offset=(start,))


@tilus.autotune(WARPS=[1, 2, 4])
@tilus.kernel
def count(x: tilus.ptr[f32], y: tilus.ptr[f32], n: i32, *, WARPS: int):
    tilus.launch(blocks=n, warps=WARPS)
    tile = tilus.load_global(tilus.global_view(x, shape=(4,)), offset=(0,), shape=(4,))
    tilus.atomic_add(tilus.global_view(y, shape=(4,)), tile, offset=(0,))


def fresh(tuned):
    tuned.best.clear()
    return tuned


def test_a_kernel_that_works_in_place():
    x = np.ones(1000, np.float32)
    fresh(double)(x, 1000)
    np.testing.assert_array_equal(x, 2)
    double(x, 1000)  # chosen already
    np.testing.assert_array_equal(x, 4)


def test_a_kernel_that_adds_to_its_output():
    x, y = torch.arange(4.0), torch.full((4,), 10.0)
    fresh(count)(x, y, 7)
    assert y.tolist() == [10, 17, 24, 31]
    assert x.tolist() == [0, 1, 2, 3]


def test_arrays_with_gaps():
    whole = np.ones((4, 20), np.float32)
    part = whole[:, ::2]
    fresh(double)(part, 40)
    np.testing.assert_array_equal(part, 2)
    np.testing.assert_array_equal(whole[:, 1::2], 1)


def test_it_chooses_one_of_its_candidates_for_each_kind_of_arguments(capsys):
    with tilus.knobs.scope(print_autotuning=True):
        fresh(double)(np.ones(1000, np.float32), 1000)
        double(np.ones(1000, np.float32), 1000)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["double {'BN'", "double {'BN'"]
    [chosen] = double.best.values()
    assert chosen in ({"BN": 256}, {"BN": 512})
    double(np.ones(9000, np.float32), 9000)
    assert len(double.best) == 2


def test_the_fastest_is_chosen(monkeypatch):
    seconds = {256: 2.0, 512: 1.0}
    monkeypatch.setattr(type(double), "_seconds", lambda self, constants, args: seconds[constants["BN"]])
    fresh(double)(np.ones(8, np.float32), 8)
    assert list(double.best.values()) == [{"BN": 512}]


def test_constants_of_the_caller_are_not_tuned():
    x = np.ones(100, np.float32)
    fresh(double)(x, 100, BN=64)
    np.testing.assert_array_equal(x, 2)


def test_a_candidate_that_cannot_run_is_left_out():
    @tilus.autotune(BN=[1 << 25, 64])  # the first is more than a block holds
    @tilus.kernel
    def fill(x: tilus.ptr[f32], n: i32, *, BN: int):
        tilus.launch(blocks=tilus.cdiv(n, BN), warps=1)
        tilus.store_global(
            tilus.global_view(x, shape=(n,)), tilus.full((BN,), 1.0, f32), offset=(tilus.block_id(0) * BN,)
        )

    x = np.zeros(100, np.float32)
    fill(x, 100)
    np.testing.assert_array_equal(x, 1)
    fill.candidates.pop()
    fill.best.clear()
    with pytest.raises(TilusError, match="too large for one block"):
        fill(x, 100)


def test_wrong_use():
    with pytest.raises(TilusError, match="zz is no keyword"):
        tilus.autotune(zz=[1])(double.kernel)
    with pytest.raises(TilusError, match="a choice is empty"):
        tilus.autotune(BN=[])(double.kernel)
    with pytest.raises(TilusError, match="autotune takes a kernel"):
        tilus.autotune(BN=[1])(lambda x: x)
    with pytest.raises(LaunchError, match=r"constant 'BN' .* must be a value that cannot change, got \[64\]"):
        double(np.ones(8, np.float32), 8, BN=[64])
    frozen = np.ones(8, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(LaunchError, match="read-only"):
        fresh(double)(frozen, 8)
