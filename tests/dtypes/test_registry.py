"""Finding types by name; equality, hashing and the facts that all types share."""

from __future__ import annotations

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import tilus
from tests.dtypes.reference import MINI_FLOATS
from tilus.dtypes import ALL, Float, Integer, Specials, names
from tilus.errors import DTypeError

LISTED = (
    [f"{sign}{n}" for sign in "ui" for n in (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64)]
    + MINI_FLOATS
    + ["bool", "f16", "bf16", "tf32", "f32", "f64", "e8m0", "nf4", "t2", "t1.6"]
)


def test_every_listed_type_is_there_and_no_other() -> None:
    assert sorted(each.name for each in ALL) == sorted(LISTED)
    assert len(MINI_FLOATS) == 28


@pytest.mark.parametrize("name", LISTED)
def test_by_name(name: str) -> None:
    dtype = tilus.dtype(name)
    attribute = {"bool": "boolean", "t1.6": "t1_6"}.get(name, name)
    assert str(dtype) == repr(dtype) == dtype.name == name
    assert tilus.dtype(dtype) is dtype
    assert getattr(tilus, attribute) is dtype
    assert attribute in names.__all__


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_compared_by_value(dtype: tilus.DataType) -> None:
    for other in (copy.deepcopy(dtype), pickle.loads(pickle.dumps(dtype))):
        assert other == dtype
        assert hash(other) == hash(dtype)
    assert sum(each == dtype for each in ALL) == 1
    with pytest.raises(AttributeError):
        dtype.nbits = 3


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_range_is_reached_by_codes(dtype: tilus.DataType) -> None:
    ends = dtype.decode(dtype.encode([dtype.min_value, dtype.max_value]))
    assert [float(end) for end in ends] == [float(dtype.min_value), float(dtype.max_value)]
    assert dtype.is_signed == (dtype.min_value < 0)


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_shapes_are_kept(dtype: tilus.DataType) -> None:
    codes = dtype.encode(np.ones((2, 3)))
    assert codes.shape == dtype.decode(codes).shape == (2, 3)
    assert codes.dtype == dtype.code_dtype
    assert dtype.encode(np.float32(1)).shape == dtype.decode(codes[0, 0]).shape == ()


@pytest.mark.parametrize("dtype", [each for each in ALL if each.numpy_dtype], ids=str)
def test_numpy_types_have_the_same_bits(dtype: tilus.DataType) -> None:
    assert dtype.numpy_dtype.itemsize * 8 == dtype.nbits
    values = dtype.decode(dtype.encode([1, 0, 2, 64]))
    stored = values.astype(dtype.numpy_dtype)
    assert stored.view(dtype.code_dtype).tolist() == dtype.encode(values).tolist()


@pytest.mark.parametrize(
    ("numpy_type", "name"),
    [
        (np.float16, "f16"),
        (np.dtype("float32"), "f32"),
        (np.int8, "i8"),
        (np.bool_, "bool"),
        (ml_dtypes.bfloat16, "bf16"),
        (ml_dtypes.float8_e4m3fn, "f8e4m3"),
    ],
)
def test_by_numpy_type(numpy_type, name: str) -> None:
    assert tilus.dtype(numpy_type).name == name


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("u9", "no data type is named 'u9'\nhint: did you mean u"),
        (
            "mxfp4",
            "'mxfp4' names a format of scaled blocks, not a type of elements\nhint: tilus.quantize.weight, 'mxfp4'",
        ),
        ("nvfp4", "'nvfp4' names a format of scaled blocks"),
        ("mxfp8e5m2", "'mxfp8e5m2' names a format of scaled blocks"),
        ("u4:g128:f16:zu4", "'u4:g128:f16:zu4' names a format of scaled blocks"),
        ("zzzzzz", "known names: u1 u2"),
        ("f4e2m2", "f4e2m2 does not add up: .* are 5, not 4\nhint: f5e2m2"),
        ("f6e1m9", "f6e1m9 does not add up: .* are 11, not 6\nhint: small floats fXeXmY have 2 to 8 bits"),
        ("f9e4m4", "2 to 8 bits"),
        ("f3e0m2", "at least 1 exponent bit"),
        (np.complex64, "no data type has the bits of"),
        (ml_dtypes.int4, "no data type has the bits of"),
        (None, "no data type has the bits of None"),
        (3, "no data type has the bits of 3"),
    ],
)
def test_unknown(spec, message: str) -> None:
    with pytest.raises(DTypeError, match=message):
        tilus.dtype(spec)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Integer("u9", 9, signed=False), "not 9"),
        (lambda: Float("f4e1m1", 4, 1, 1), "its name says 4"),
        (lambda: Float("f3e0m2", 3, 0, 2), "at least 1 exponent bit"),
        (lambda: Float("f4e2m1", 4, 2, 1, Specials.NONE, saturates=False), "must saturate"),
    ],
)
def test_types_that_cannot_be(make, message: str) -> None:
    with pytest.raises(DTypeError, match=message):
        make()
