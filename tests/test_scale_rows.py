"""The example of the README, typed as it stands there, on the arrays of both libraries."""

import ml_dtypes
import numpy as np
import pytest
import torch

import tilus
from tests.agreement.machines import on_device
from tilus import f16, f32, i32


@tilus.kernel
def scale_rows(x: tilus.ptr[f16], s: tilus.ptr[f32], y: tilus.ptr[f16], m: i32, n: i32, *, BN: int = 512):
    tilus.launch(blocks=(m, tilus.cdiv(n, BN)), warps=4)
    i, j = tilus.block_id(0), tilus.block_id(1) * BN
    gx = tilus.global_view(x, shape=(m, n))
    tile = tilus.load_global(gx, offset=(i, j), shape=(1, BN))
    tilus.store_global(tilus.global_view(y, shape=(m, n)), (tile.to(f32) * s[i]).to(f16), offset=(i, j))


def arrays(m, n):
    rng = np.random.default_rng(0)
    x, s = rng.normal(size=(m, n)).astype(np.float16), rng.normal(size=m).astype(np.float32)
    return x, s, (x.astype(np.float32) * s[:, None]).astype(np.float16)


@pytest.mark.parametrize("options", [{}, {"BN": 256}, {"BN": 64}], ids=str)
@pytest.mark.parametrize(("m", "n"), [(7, 1000), (1, 512), (3, 1), (64, 513)])
def test_numpy(m, n, options):
    x, s, expected = arrays(m, n)
    y = np.full_like(x, np.nan)
    scale_rows(x, s, y, m, n, **options)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(("m", "n"), [(7, 1000), (2, 16)])
def test_torch(m, n):
    x, s, expected = arrays(m, n)
    y = torch.full((m, n), torch.nan, dtype=torch.float16)
    scale_rows(torch.from_numpy(x), torch.from_numpy(s), y, m, n, BN=256)
    np.testing.assert_array_equal(y.numpy(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")
@pytest.mark.parametrize("options", [{}, {"BN": 256}, {"BN": 64}], ids=str)
@pytest.mark.parametrize(("m", "n"), [(7, 1000), (1, 512), (3, 1), (64, 513)])
def test_on_a_device(m, n, options):
    x, s, expected = arrays(m, n)
    y = torch.full((m, n), torch.nan, dtype=torch.float16, device="cuda")
    scale_rows(torch.from_numpy(x).cuda(), torch.from_numpy(s).cuda(), y, m, n, **options)
    np.testing.assert_array_equal(y.cpu().numpy(), expected)
    column = torch.full((n, m), 9.0, dtype=torch.float16, device="cuda")
    scale_rows(torch.from_numpy(x).cuda(), torch.from_numpy(s).cuda(), column.T, m, n, **options)
    np.testing.assert_array_equal(column.T.cpu().numpy(), expected)


@pytest.mark.gpu
def test_without_torch_on_a_device():
    """Compared with the reference machine; CuPy holds the arrays."""
    x, s, expected = arrays(7, 1000)
    args = [x, s, np.full_like(x, np.nan), 7, 1000]
    np.testing.assert_array_equal(on_device(scale_rows.program(), args)[2], expected)


@pytest.mark.parametrize("target", ["cpu", "vm"])
def test_forced_target(target):
    x, s, expected = arrays(3, 300)
    y = np.full_like(x, np.nan)
    with tilus.knobs.scope(target=target):
        scale_rows(x, s, y, 3, 300, BN=256)
    np.testing.assert_array_equal(y, expected)


def test_parts_of_larger_arrays():
    x, s, expected = arrays(6, 200)
    wide, y = np.zeros((6, 400), np.float16), np.full((6, 3, 200), 9, np.float16)
    wide[:, ::2] = x
    scale_rows(wide[:, ::2], s, y[:, 1], 6, 200)
    np.testing.assert_array_equal(y[:, 1], expected)
    assert (y[:, 0] == 9).all()
    assert (y[:, 2] == 9).all()
    column = torch.full((200, 6), 9.0, dtype=torch.float16)
    scale_rows(torch.from_numpy(x), torch.from_numpy(s), column.T, 6, 200)
    np.testing.assert_array_equal(column.T.numpy(), expected)


def test_nothing_to_do():
    x, s, _ = arrays(4, 4)
    y = np.full_like(x, 9)
    scale_rows(x, s, y, 0, 4)
    scale_rows(x, s, y, 4, 0)
    scale_rows(np.empty((0, 4), np.float16), s[:0], y[:0], 0, 4)
    assert (y == 9).all()


def test_the_stages_of_a_compiled_kernel():
    compiled = scale_rows.compile(target="cpu", BN=256)
    assert "store_global" in str(compiled.ir)
    assert "define" in compiled.llvm
    x, s, expected = arrays(3, 300)
    y = np.zeros_like(x)
    compiled.launch(x, s, y, 3, 300)
    np.testing.assert_array_equal(y, expected)
    with pytest.raises(tilus.TilusError, match=r"kernel\.cubin exists for a CUDA target"):
        _ = compiled.cubin


def wrong(match, *args, **constants):
    with pytest.raises(tilus.TilusError, match=match):
        scale_rows(*args, **constants)


def test_wrong_arguments():
    x, s, _ = arrays(4, 8)
    y = np.empty_like(x)
    wrong("argument 'x' must be an array of f16, got f32", x.astype(np.float32), s, y, 4, 8)
    wrong("argument 'x' must be an array of f16, got bf16", x.astype(ml_dtypes.bfloat16), s, y, 4, 8)
    wrong("argument 's' must be an array of f32, got list", x, [1.0] * 4, y, 4, 8)
    wrong("takes 5 arguments .* got 4", x, s, y, 4)
    wrong("argument 'm' must be a number of type i32, got 4.0", x, s, y, 4.0, 8)
    wrong("argument 'm' does not fit i32: 2147483648", x, s, y, 1 << 31, 8)
    wrong("no constant 'BM'", x, s, y, 4, 8, BM=3)
    wrong("constant 'BN' must be int, got 'wide'", x, s, y, 4, 8, BN="wide")
    wrong("argument 'x' must be an array of f16, got an array of complex64", x.astype(np.complex64), s, y, 4, 8)
    wrong("argument 'x' must be an array of f16, got an array of >f2", x.astype(">f2"), s, y, 4, 8)
    y.flags.writeable = False
    wrong("argument 'y' is a read-only array", x, s, y, 4, 8)


def test_read_only_inputs_are_read():
    x, s, expected = arrays(4, 8)
    y = np.empty_like(x)
    x.flags.writeable = False
    scale_rows(x, np.broadcast_to(s[:1], 4), y, 4, 8)
    np.testing.assert_array_equal(y, (x.astype(np.float32) * s[0]).astype(np.float16))
    scale_rows(x, s, y, 4, 8)
    np.testing.assert_array_equal(y, expected)
