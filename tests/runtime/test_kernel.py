"""`@tilus.kernel` as an object: its constants, its variants, its stages, what it says of itself."""

import numpy as np
import pytest

import tilus
from tests.test_scale_rows import scale_rows
from tilus import f32, i32
from tilus.errors import LaunchError, TilusError


@tilus.kernel
def fill(x: tilus.ptr[f32], n: i32, *, B: int = 32, SCALE: float = 1.0):
    tilus.launch(blocks=1, warps=1)
    tilus.store_global(tilus.global_view(x, shape=(n,)), tilus.full((B,), SCALE, f32), offset=(0,))


@pytest.mark.parametrize("value", [32.0, True, "32", None, np.float32(32)], ids=repr)
def test_a_constant_of_another_type_is_refused_before_and_after_its_equal_was_given(value):
    x = np.zeros(4, np.float32)
    for _ in range(2):
        with pytest.raises(TilusError, match="constant 'B' must be int, got"):
            fill(x, 4, B=value)
        fill(x, 4, B=32)
    with pytest.raises(TilusError, match="constant 'SCALE' must be float, got True"):
        fill(x, 4, SCALE=True)
    fill(x, 4, SCALE=3)
    assert (x == 3).all()


@pytest.mark.parametrize("value", [[1], {}, {1}, np.zeros(2)], ids=repr)
def test_a_constant_that_can_change_is_refused(value):
    with pytest.raises(LaunchError, match=r"constant 'B' of kernel 'fill' must be a value that cannot change, got"):
        fill(np.zeros(4, np.float32), 4, B=value)


def test_equal_constants_are_one_kernel():
    assert fill.bind(B=32) is fill.bind(B=32)
    assert fill.bind(B=32, SCALE=1.0) is fill.bind(SCALE=1.0, B=32)
    assert fill.bind(B=32) is not fill.bind(B=64)


@pytest.mark.parametrize("thing", [3, "f", None, int, np.zeros(1)], ids=repr)
def test_only_functions_are_kernels(thing):
    with pytest.raises(TilusError, match="decorates a function, got"):
        tilus.kernel(thing)


def test_what_it_says_of_itself():
    assert repr(fill) == f"<kernel {__name__}.fill>"
    assert repr(fill.compile(target="vm")) == "<compiled kernel fill for vm>"
    assert repr(tilus.autotune(B=[32, 64])(fill)) == f"<tuned <kernel {__name__}.fill>: 2 candidates>"


def test_compile_compiles():
    @tilus.kernel
    def hungry(x: tilus.ptr[f32]):
        tilus.launch(blocks=1, warps=1)
        s = tilus.alloc_shared(f32, (1 << 20,))
        tilus.store_shared(s, tilus.full((64,), 1.0, f32), offset=(0,))
        tilus.sync()
        tilus.store_global(
            tilus.global_view(x, shape=(64,)), tilus.load_shared(s, offset=(0,), shape=(64,)), offset=(0,)
        )

    with pytest.raises(TilusError, match="shared"):
        hungry.compile(target="cpu")


def test_a_dump_has_every_stage_whether_or_not_the_cache_is_warm(tmp_path):
    expected = None
    for turn in ("cold", "warm"):
        with tilus.knobs.scope(dump_dir=str(tmp_path / turn), cache_dir=tmp_path / "cache"):
            scale_rows._bound.clear()
            x, s = np.ones((2, 64), np.float16), np.ones(2, np.float32)
            scale_rows(x, s, x.copy(), 2, 64, BN=64)
        names = sorted(path.name for path in (tmp_path / turn / "scale_rows-cpu").iterdir())
        assert names[0] == "00-program.txt"
        assert any("infer" in name for name in names)
        assert {"kernel.ll", "kernel.o", "meta.json"} <= set(names)
        assert expected in (None, names)
        expected = names
