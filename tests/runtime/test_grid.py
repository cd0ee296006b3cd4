"""Grids: evaluated from arguments, refused where a target cannot number their blocks."""

import pytest

import tilus
from tilus import f32, i32
from tilus.errors import LaunchError
from tilus.runtime.grid import check_grid, grid_function


@tilus.kernel
def grid(x: tilus.ptr[f32], n: i32, m: i32):
    tilus.launch(blocks=(tilus.cdiv(n, 32), max(m - 3, 1)), warps=1)


def test_extents_from_arguments():
    extents = grid_function(grid.program())
    assert extents([None, 33, 2]) == (2, 1)
    assert extents([None, 64, 9]) == (2, 6)


def test_counts_of_blocks():
    assert check_grid((2, 3, 4), "k") == 24
    assert check_grid((2, 0), "k") == 0
    assert check_grid((2, -1), "k") == 0
    assert check_grid((1, 70000), "k", "cpu") == 70000
    with pytest.raises(LaunchError, match="asks for 4294967296 blocks"):
        check_grid((1 << 16, 1 << 16), "k")


@pytest.mark.parametrize("shape", [(1, 70000), (2, 1, 65536)])
def test_a_gpu_counts_to_65535_along_the_later_axes(shape):
    axis = len(shape) - 1
    with pytest.raises(LaunchError, match=f"{shape[-1]} blocks along axis {axis}, a GPU has at most 65535 there"):
        check_grid(shape, "k", "cuda")
    assert check_grid((70000, 2), "k", "cuda") == 140000
    assert check_grid((1, 65535), "k", "cuda") == 65535
