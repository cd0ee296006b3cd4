"""The least cosine to full precision that the demo accepts for a weight type.

`MEASURED` holds the mean cosine of the sentence embeddings of `SENTENCES`, for groups of 32, of 128 and for whole rows,
computed by torch in f32 with the weights rounded to nearest as `tilus.quantize` does (scales in f32) and multiplied as
ordinary matrices: no kernel of ours took part. `python -m tilus.demo.measure` computes it again. Plain rounding to
nearest gave another program, for ten other sentences and groups of 32 and 128, about the same: 6 bits .9986 and .9976,
5 bits .994 and .989, 4 bits .976 and .964, 3 bits .907 and .850. (At 1 to 3 bits `quantize` also searches the scale of
least squared error.)

A run may be a quarter further from full precision than this. A type that keeps little of the meaning, as 1 bit does,
has no floor.
"""

from __future__ import annotations

from tilus.dtypes import DataType

MARGIN = 1.25
_LEAST_USEFUL = 0.3

MEASURED = {
    "f2e1m0": (0.5444, 0.5123, 0.4995),
    "f3e1m1": (0.8654, 0.8334, 0.8256),
    "f3e2m0": (0.8869, 0.8557, 0.8558),
    "f4e1m2": (0.9595, 0.9404, 0.9186),
    "f4e2m1": (0.9729, 0.9641, 0.9577),
    "f4e3m0": (0.9279, 0.9165, 0.9182),
    "f5e1m3": (0.9907, 0.9865, 0.9798),
    "f5e2m2": (0.9937, 0.9917, 0.9894),
    "f5e3m1": (0.98, 0.9772, 0.9779),
    "f5e4m0": (0.9279, 0.9166, 0.9191),
    "f6e1m4": (0.9978, 0.9965, 0.9943),
    "f6e2m3": (0.9985, 0.998, 0.9971),
    "f6e3m2": (0.995, 0.9944, 0.9942),
    "f6e4m1": (0.9801, 0.9771, 0.978),
    "f6e5m0": (0.9279, 0.9166, 0.9191),
    "f7e1m5": (0.9995, 0.9991, 0.9983),
    "f7e2m4": (0.9996, 0.9995, 0.9993),
    "f7e3m3": (0.9988, 0.9986, 0.9985),
    "f7e4m2": (0.995, 0.9944, 0.9942),
    "f7e5m1": (0.9801, 0.9771, 0.978),
    "f7e6m0": (0.9279, 0.9166, 0.9191),
    "f8e1m6": (0.9999, 0.9998, 0.9996),
    "f8e2m5": (0.9999, 0.9999, 0.9998),
    "f8e3m4": (0.9997, 0.9996, 0.9996),
    "f8e4m3": (0.9988, 0.9985, 0.9985),
    "f8e5m2": (0.995, 0.9944, 0.9942),
    "f8e6m1": (0.9801, 0.9771, 0.978),
    "f8e7m0": (0.9279, 0.9166, 0.9191),
    "i1": (-0.0041, 0.0205, 0.025),
    "i2": (0.5774, 0.5379, 0.4932),
    "i3": (0.8848, 0.8597, 0.8489),
    "i4": (0.9618, 0.9458, 0.9258),
    "i5": (0.9903, 0.9864, 0.9813),
    "i6": (0.9977, 0.9968, 0.9939),
    "i7": (0.9994, 0.9991, 0.9983),
    "i8": (0.9999, 0.9998, 0.9996),
    "nf4": (0.9769, 0.9673, 0.9586),
    "t2": (0.5444, 0.5123, 0.4995),
    "u1": (0.0685, 0.0219, 0.0189),
    "u2": (0.6434, 0.5613, 0.2276),
    "u3": (0.9004, 0.8553, 0.8187),
    "u4": (0.9768, 0.9593, 0.9406),
    "u5": (0.9931, 0.9887, 0.9827),
    "u6": (0.9985, 0.9974, 0.9954),
    "u7": (0.9996, 0.9994, 0.9989),
    "u8": (0.9999, 0.9998, 0.9997),
}
_WIDTHS = (32, 128)


def floor(kind: DataType, group_size: int) -> float | None:
    """Return the least acceptable mean cosine of a type with a group size; None where there is none."""
    if kind.name not in MEASURED:
        return None
    column = next((i for i, width in enumerate(_WIDTHS) if 0 < group_size <= width), len(_WIDTHS))
    least = 1 - MARGIN * (1 - MEASURED[kind.name][column])
    return least if least >= _LEAST_USEFUL else None
