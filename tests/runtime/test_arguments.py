"""What counts as an argument: described rightly, checked against its parameter, copied where it must be."""

import timeit

import ml_dtypes
import numpy as np
import pytest
import torch

from tilus.dtypes import dtype
from tilus.errors import LaunchError
from tilus.ir.types import PointerType, ScalarType
from tilus.runtime.arguments import (
    as_numpy,
    check_argument,
    check_writable,
    copy_back,
    describe,
    device_of,
    element_type,
    is_torch,
    make_contiguous,
    multiple_of,
)

TYPES = {
    "i8": (np.int8, torch.int8), "i16": (np.int16, torch.int16), "i32": (np.int32, torch.int32),
    "i64": (np.int64, torch.int64), "u8": (np.uint8, torch.uint8), "u16": (np.uint16, torch.uint16),
    "u32": (np.uint32, torch.uint32), "u64": (np.uint64, torch.uint64), "bool": (np.bool_, torch.bool),
    "f16": (np.float16, torch.float16), "bf16": (ml_dtypes.bfloat16, torch.bfloat16),
    "f32": (np.float32, torch.float32), "f64": (np.float64, torch.float64),
    "f8e4m3": (ml_dtypes.float8_e4m3fn, torch.float8_e4m3fn), "f8e5m2": (ml_dtypes.float8_e5m2, torch.float8_e5m2),
    "e8m0": (ml_dtypes.float8_e8m0fnu, torch.float8_e8m0fnu),
}  # fmt: skip


def pointer(name):
    return PointerType(dtype(name))


def scalar(name):
    return ScalarType(dtype(name))


@pytest.mark.parametrize("name", TYPES)
def test_every_type_of_both_libraries(name):
    for array in (np.zeros((3, 4), TYPES[name][0]), torch.zeros((3, 4), dtype=torch.float32).to(TYPES[name][1])):
        buffer = describe(array)
        assert (buffer.dtype, buffer.device, buffer.contiguous) == (dtype(name), "cpu", True)
        assert buffer.nbytes == 12 * dtype(name).nbits // 8
        data = array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr()
        assert buffer.address == data
        assert check_argument("x", pointer(name), array) == buffer


@pytest.mark.parametrize("name", TYPES)
def test_tensors_as_arrays_share_memory(name):
    tensor = torch.tensor([1, 2, 3], dtype=torch.float32).to(TYPES[name][1])
    array = as_numpy(tensor)
    assert element_type(array.dtype) == dtype(name)
    assert describe(array).address == tensor.data_ptr()
    assert as_numpy(array) is array


@pytest.mark.parametrize("value", [[1, 2], 3, 2.5, "x", None, np.float32(1), object()], ids=lambda v: type(v).__name__)
def test_what_is_no_array(value):
    assert describe(value) is None
    assert not is_torch(value)
    with pytest.raises(LaunchError, match="argument 'x' must be an array of f16, got"):
        check_argument("x", pointer("f16"), value)


@pytest.mark.parametrize(
    "array", [np.zeros(2, np.complex64), np.zeros(2, ">f4"), np.zeros(2, "U3"), np.zeros(2, [("a", "i4")]), np.zeros(2, object),
              torch.zeros(2, dtype=torch.complex64)], ids=lambda a: str(a.dtype))  # fmt: skip
def test_elements_that_have_no_type_here(array):
    assert describe(array) is None
    with pytest.raises(LaunchError, match="must be an array of f32, got an array of"):
        check_argument("x", pointer("f32"), array)


def test_arrays_of_another_type_are_refused():
    with pytest.raises(LaunchError, match=r"argument 'x' must be an array of f16, got bf16"):
        check_argument("x", pointer("f16"), np.zeros(2, ml_dtypes.bfloat16))
    with pytest.raises(LaunchError, match="must be an array of i32, got f32"):
        check_argument("x", pointer("i32"), np.zeros(2, np.float32))
    with pytest.raises(LaunchError, match="must be an array of i32, got i64"):
        check_argument("x", pointer("i32"), np.zeros(2, np.int64))
    with pytest.raises(LaunchError, match="must be an array of u4, got f32"):
        check_argument("x", pointer("u4"), np.zeros(2, np.float32))


def test_signed_and_unsigned_words_and_packed_codes_carry_the_same_bits():
    assert check_argument("x", pointer("u32"), torch.zeros(2, dtype=torch.int32)).dtype == dtype("i32")
    for array in (np.zeros(4, np.uint8), np.zeros(1, np.uint32), np.zeros(1, np.int32)):
        assert check_argument("x", pointer("u4"), array).nbytes == 4


def test_codes_of_a_type_that_no_array_library_has_are_bytes():
    assert check_argument("x", pointer("f8e3m4"), np.zeros(4, np.uint8)).nbytes == 4
    with pytest.raises(LaunchError, match="must be an array of f8e3m4, got u16"):
        check_argument("x", pointer("f8e3m4"), np.zeros(4, np.uint16))
    assert check_argument("x", pointer("f8e4m3"), np.zeros(4, np.uint8)).nbytes == 4
    with pytest.raises(LaunchError, match="must be an array of f8e4m3, got u16"):
        check_argument("x", pointer("f8e4m3"), np.zeros(4, np.uint16))


def test_tensors_without_rows():
    with pytest.raises(LaunchError, match=r"layout torch\.sparse_coo"):
        describe(torch.zeros(3, 3).to_sparse())
    with pytest.raises(LaunchError, match="on device meta"):
        describe(torch.zeros(3, device="meta"))


def test_contiguous_means_ordered_dense_and_aligned():
    x = np.zeros((4, 6), np.float32)
    assert describe(x[1:3]).contiguous
    for part in (x.T, x[:, 1:], x[::2], x[::-1], np.frombuffer(bytes(9), np.uint8)[1:].view(np.float32)):
        assert not describe(part).contiguous
    t = torch.zeros(4, 6)
    assert describe(t[1:3]).contiguous
    for part in (t.T, t[:, 1:], t[::2], t[:1].expand(4, 6)):
        assert not describe(part).contiguous
    negated = torch.conj(torch.tensor([1 + 2j, 3 - 4j])).imag[:1]  # a view with its sign put off
    assert negated.is_neg()
    assert not describe(negated).contiguous


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_copies_are_made_of_what_has_gaps_only_and_go_back(library):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    whole = base.copy() if library == "numpy" else torch.from_numpy(base.copy())
    part, other = whole[:, ::2], whole[0]
    values = [check_argument("x", pointer("f32"), a) for a in (part, other)] + [7]
    arrays, described, copies = make_contiguous([part, other, 7], list(values))
    assert copies == [0]
    assert arrays[1] is other
    assert described[1:] == values[1:]
    assert described[0].contiguous
    np.testing.assert_array_equal(np.asarray(arrays[0]), base[:, ::2])
    arrays[0][...] = 9
    np.testing.assert_array_equal(np.asarray(part), base[:, ::2])
    copy_back(arrays[0], part)
    assert (np.asarray(whole)[:, ::2] == 9).all()
    np.testing.assert_array_equal(np.asarray(whole)[:, 1::2], base[:, 1::2])


def test_a_view_with_its_sign_put_off_is_copied_with_it():
    negated = torch.conj(torch.tensor([1 + 2j, 3 - 4j])).imag
    arrays, _, copies = make_contiguous([negated], [check_argument("x", pointer("f32"), negated)])
    assert copies == [0]
    assert not arrays[0].is_neg()
    assert arrays[0].tolist() == [-2.0, 4.0]


def test_what_may_not_be_written():
    x = np.zeros((2, 3), np.float32)
    check_writable("y", x)
    check_writable("y", x.T)
    check_writable("y", torch.zeros(2, 3))
    frozen = x.copy()
    frozen.flags.writeable = False
    with pytest.raises(LaunchError, match="argument 'y' is a read-only array"):
        check_writable("y", frozen)
    for repeated in (np.lib.stride_tricks.as_strided(x, (4, 3), (0, 4)), torch.zeros(1, 3).expand(4, 3)):
        with pytest.raises(LaunchError, match="argument 'y' repeats elements"):
            check_writable("y", repeated)


@pytest.mark.parametrize(("name", "low", "high"), [("i32", -(1 << 31), (1 << 31) - 1), ("i64", -(1 << 63), (1 << 63) - 1),
                                                   ("u32", 0, (1 << 32) - 1), ("i8", -128, 127), ("bool", 0, 1)])  # fmt: skip
def test_integers_that_fit_and_do_not(name, low, high):
    for number in (low, high, 0, True, np.int8(1), np.bool_(True)):
        assert check_argument("n", scalar(name), number) == int(number)
    for number in (low - 1, high + 1):
        with pytest.raises(LaunchError, match=f"argument 'n' does not fit {name}: {number}"):
            check_argument("n", scalar(name), number)
    for other in (1.0, "1", None, np.float32(1), [1]):
        with pytest.raises(LaunchError, match=f"argument 'n' must be a number of type {name}, got"):
            check_argument("n", scalar(name), other)


def test_floats_that_fit_and_do_not():
    for number in (0, 1.5, -3, np.float32(2.5), np.float64(1), float("inf"), np.int64(4), True):
        assert check_argument("s", scalar("f32"), number) == float(number)
    assert np.isnan(check_argument("s", scalar("f32"), float("nan")))
    with pytest.raises(LaunchError, match="argument 's' does not fit f32: 1e\\+39"):
        check_argument("s", scalar("f32"), 1e39)
    with pytest.raises(LaunchError, match="argument 's' does not fit f16: 70000"):
        check_argument("s", scalar("f16"), 70000)
    assert check_argument("s", scalar("f64"), 1e39) == 1e39
    for other in ("1", None, 1j, [1.0]):
        with pytest.raises(LaunchError, match="argument 's' must be a number of type f32"):
            check_argument("s", scalar("f32"), other)


def test_a_number_is_checked_without_decoding_its_type():
    kinds = [scalar(name) for name in ("f32", "i32", "f16")]
    for kind in kinds:
        check_argument("n", kind, 1)
        seconds = min(timeit.repeat(lambda kind=kind: check_argument("n", kind, 1), number=100, repeat=20)) / 100
        assert seconds < 2e-5  # 1e-6 on an idle machine; decoding takes 1e-4


def test_promises():
    assert [multiple_of(n) for n in (0, 16, 48, -32, 1, 8, 24, 2.5, 16.0)] == [16, 16, 16, 16, 1, 1, 1, 1, 1]
    block = np.zeros(64, np.uint8)
    start = -block.ctypes.data % 16
    assert multiple_of(describe(block[start:])) == 16
    assert multiple_of(describe(block[start + 8 :])) == 1


def test_one_device():
    here, there = describe(np.zeros(1, np.float32)), describe(torch.zeros(1))
    assert device_of([here, 3, there]) == "cpu"
    assert device_of([3]) == "cpu"
    with pytest.raises(LaunchError, match="different devices: cpu, cuda:0"):
        device_of([here, there._replace(device="cuda:0")])
