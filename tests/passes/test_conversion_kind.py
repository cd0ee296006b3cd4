"""The cheap answer is the answer of the full plan."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tilus.layouts import RegisterLayout, classify_conversion, column_spatial, local, replicated, spatial
from tilus.passes.conversion_kind import conversion_kind

PRIMITIVES = [local(2, 1), local(1, 2), spatial(2, 1), spatial(1, 2), spatial(2, 2), column_spatial(2, 2), local(3, 1)]


@st.composite
def layouts(draw: st.DrawFn, shape: tuple[int, int], threads: int) -> RegisterLayout:
    """A random layout of a shape: primes of extents and threads dealt in random order."""
    rows, columns = shape
    layout = local(1, 1)
    while True:
        choices = []
        for extent, dim in ((rows, 0), (columns, 1)):
            for p in (2, 3):
                factor = (p, 1) if dim == 0 else (1, p)
                if extent % p == 0:
                    choices.append((local(*factor), dim, p, 1))
                    if threads % p == 0:
                        choices.append((spatial(*factor), dim, p, p))
        choices += [(replicated(p, 2), None, 1, p) for p in (2, 3) if threads % p == 0]
        if not choices:
            return layout
        factor_layout, dim, size, used = draw(st.sampled_from(choices))
        layout = layout * factor_layout
        rows, columns = (rows // size if dim == 0 else rows), (columns // size if dim == 1 else columns)
        threads //= used


@given(st.data(), st.sampled_from([(4, 8), (6, 4), (1, 16), (12, 2)]), st.sampled_from([8, 16, 12]))
def test_agrees_with_the_plan(data: st.DataObject, shape: tuple[int, int], threads: int) -> None:
    src, dst = data.draw(layouts(shape, threads)), data.draw(layouts(shape, threads))
    lanes = data.draw(st.sampled_from([4, 8]))
    assert conversion_kind(src, dst, lanes) == classify_conversion(src, dst, lanes)


def test_each_kind_occurs() -> None:
    rows, columns = spatial(8, 1) * local(1, 8), spatial(1, 8) * local(8, 1)
    assert conversion_kind(rows, rows, 4) == "same"
    assert conversion_kind(rows, spatial(8, 1) * local(1, 2) * local(1, 4), 4) == "same"
    assert conversion_kind(local(2, 1) * spatial(4, 1), spatial(4, 1) * local(2, 1), 4) == "shuffle"
    assert (
        conversion_kind(local(2, 4) * spatial(4, 1), local(2, 4).permute(1, 0).permute(1, 0) * spatial(4, 1), 4)
        == "same"
    )
    assert conversion_kind(spatial(4, 1) * local(2, 2), spatial(4, 1) * local(1, 2) * local(2, 1), 4) == "registers"
    assert conversion_kind(rows, columns, 4) == "shared"
    assert conversion_kind(rows, columns, 8) == "shuffle"
