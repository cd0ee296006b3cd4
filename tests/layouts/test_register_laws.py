"""Every law of the register algebra, against the slow definition in `brute`."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from itertools import permutations, product
from math import prod

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.layouts.brute import Map, Raw, all_maps, layout_pairs, layouts, map_of, raws
from tilus.errors import LayoutError
from tilus.layouts import (
    RegisterLayout,
    Replicated,
    auto_local_spatial,
    column_local,
    column_spatial,
    concat,
    flat_index_table,
    gather,
    index_table,
    local,
    locate_table,
    register_layout,
    replicated,
    scatter,
    spatial,
)

SMALL = {"max_modes": 3, "max_replicas": 1, "sizes": "223"}


def product_map(f: Map, g: Map, inner_shape: tuple[int, ...]) -> Map:
    """(f * g)(t, i) = f(t // T, i // L) * shape(g) + g(t % T, i % L)."""
    threads, locals_ = len(g), len(g[0])
    return tuple(
        tuple(
            tuple(
                outer * extent + inner
                for outer, extent, inner in zip(
                    f[t // threads][i // locals_], inner_shape, g[t % threads][i % locals_], strict=True
                )
            )
            for i in range(len(f[0]) * locals_)
        )
        for t in range(len(f) * threads)
    )


# --- the map and its canonical form ---------------------------------------------------------------------------------


@settings(max_examples=100)
@given(raws())
def test_layout_has_the_map_of_its_definition(raw: Raw) -> None:
    layout = raw.layout()
    assert layout.shape == raw.shape
    assert map_of(layout) == raw.map()


@settings(max_examples=120)
@given(layouts())
def test_tables_are_the_map(layout: RegisterLayout) -> None:
    expected = np.array(map_of(layout), dtype=np.int64).reshape(layout.num_threads, layout.local_size, layout.rank)
    table = index_table(layout)
    assert table.dtype == np.int64
    assert table.shape == expected.shape
    assert (table == expected).all()
    assert not table.flags.writeable
    strides = [prod(layout.shape[d + 1 :]) for d in range(layout.rank)]
    assert (flat_index_table(layout) == (expected * np.array(strides, dtype=np.int64)).sum(axis=2)).all()


@settings(max_examples=100)
@given(raws(max_rank=2, max_modes=4), st.data())
def test_rewritten_modes_are_the_same_object(raw: Raw, data: st.DataObject) -> None:
    """Split modes and replications, insert ones: the map stays, so equality and hash stay."""
    layout = raw.layout()
    split: dict[tuple[int, int], list[tuple[int, int]]] = {}
    modes: list[list[int]] = []
    for d, sizes in enumerate(raw.modes):
        modes.append([])
        for p, size in enumerate(sizes):
            first = data.draw(st.sampled_from([k for k in range(1, size + 1) if size % k == 0]))
            split[(d, p)] = [(d, len(modes[d])), (d, len(modes[d]) + 1)]
            modes[d] += [first, size // first]
    spatial_modes: list[tuple[int, int] | Replicated] = []
    for mode in raw.spatial:
        if isinstance(mode, Replicated):
            spatial_modes += [Replicated(mode.size), Replicated(1)]
        else:
            spatial_modes += split[mode]
    other = Raw(tuple(map(tuple, modes)), tuple(spatial_modes), tuple(m for n in raw.local for m in split[n])).layout()
    assert other == layout
    assert hash(other) == hash(layout)
    assert dataclasses.astuple(other) == dataclasses.astuple(layout)


@settings(max_examples=240)
@given(raws(max_rank=2, max_modes=3, sizes="2223"), st.data())
def test_equal_exactly_if_the_maps_are_equal(raw: Raw, data: st.DataObject) -> None:
    """The same modes in another order and split: sometimes the same map, sometimes not."""
    order = data.draw(st.permutations(raw.spatial))
    local_order = data.draw(st.permutations(raw.local))
    other = Raw(raw.modes, tuple(order), tuple(local_order))
    a, b = raw.layout(), other.layout()
    assert (a == b) == (raw.map() == other.map())
    if a == b:
        assert hash(a) == hash(b)


@pytest.mark.parametrize("shape", [(4,), (6,), (2, 2), (4, 2), (12,), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("replicas", [1, 2, 4, 6])
def test_as_many_objects_as_maps(shape: tuple[int, ...], replicas: int) -> None:
    """Exhaustive: over one shape, the number of different objects is the number of different maps."""
    numel = prod(shape)
    for locals_ in (k for k in range(1, numel + 1) if numel % k == 0):
        objects: dict[RegisterLayout, Map] = {}
        for raw in every_raw(shape, numel // locals_ * replicas, locals_):
            layout, table = raw.layout(), raw.map()
            assert objects.setdefault(layout, table) == table
        assert len(set(objects.values())) == len(objects)
        assert frozenset(objects.values()) == all_maps(shape, numel // locals_ * replicas, locals_)


def every_raw(shape: tuple[int, ...], threads: int, locals_: int) -> list[Raw]:
    """Every way to write a layout with *any* ordered factorization, prime or not."""
    extra = threads * locals_ // prod(shape)
    found = []
    for modes in product(*(factorizations(extent) for extent in shape)):
        names = [(d, p) for d, group in enumerate(modes) for p in range(len(group))]
        for replicas in factorizations(extra):
            for order in set(permutations([*names, *(Replicated(r) for r in replicas)])):
                for cut in range(len(order) + 1):
                    raw = Raw(modes, order[:cut], order[cut:])  # type: ignore[arg-type]
                    fits = prod(raw.size_of(m) for m in raw.spatial) == threads
                    if fits and not any(isinstance(m, Replicated) for m in raw.local):
                        found.append(raw)
    return found


def factorizations(n: int) -> list[tuple[int, ...]]:
    """All ordered factorizations into factors above 1."""
    if n == 1:
        return [()]
    return [(k, *rest) for k in range(2, n + 1) if n % k == 0 for rest in factorizations(n // k)]


@given(layouts())
def test_copies_and_pickles_are_equal(layout: RegisterLayout) -> None:
    for other in (copy.copy(layout), copy.deepcopy(layout), pickle.loads(pickle.dumps(layout))):
        assert other == layout
        assert hash(other) == hash(layout)
        assert map_of(other) == map_of(layout)
    again = register_layout(layout.shape, layout.mode_shape, layout.spatial_modes, layout.local_modes)
    assert again == layout


@settings(max_examples=120)
@given(layouts())
def test_locate_is_the_inverse(layout: RegisterLayout) -> None:
    holders: dict[tuple[int, ...], set[tuple[int, int]]] = {}
    for thread, row in enumerate(map_of(layout)):
        for position, index in enumerate(row):
            holders.setdefault(index, set()).add((thread, position))
    threads_table, locals_table = locate_table(layout)
    assert threads_table.shape == (*layout.shape, layout.replication)
    assert set(holders) == set(product(*map(range, layout.shape)))
    for index, held in holders.items():
        threads, position = layout.locate(*index)
        assert threads == tuple(sorted(threads))
        assert {(thread, position) for thread in threads} == held
        assert tuple(threads_table[index]) == threads
        assert locals_table[index] == position
        assert layout.locate(index) == (threads, position)


@given(layouts())
def test_scatter_undoes_gather(layout: RegisterLayout) -> None:
    values = np.arange(prod(layout.shape)).reshape(layout.shape)
    registers = gather(layout, values)
    assert registers.shape == (layout.num_threads, layout.local_size)
    assert (scatter(layout, registers) == values).all()


# --- product --------------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(layout_pairs(**SMALL))
def test_product_is_a_copy_of_the_inner_per_element_of_the_outer(pair: tuple[RegisterLayout, RegisterLayout]) -> None:
    a, b = pair
    assert map_of(a * b) == product_map(map_of(a), map_of(b), b.shape)
    assert (a * b).shape == tuple(m * n for m, n in zip(a.shape, b.shape, strict=True))


@settings(max_examples=120)
@given(layouts(), layouts(), layouts())
def test_product_is_associative(a: RegisterLayout, b: RegisterLayout, c: RegisterLayout) -> None:
    assert (a * b) * c == a * (b * c)


@given(layouts())
def test_unit(a: RegisterLayout) -> None:
    for unit in (local(*[1] * a.rank), spatial(*[1] * a.rank), local()):
        assert a * unit == a
        assert unit * a == a
        assert a / unit == a
        assert a.left_divide(unit) == a
    assert a / a == local(*[1] * a.rank) == a.left_divide(a)


@given(layouts(**SMALL), layouts(**SMALL))
def test_ranks_are_equalised_on_the_left(a: RegisterLayout, b: RegisterLayout) -> None:
    rank = max(a.rank, b.rank)
    assert a * b == a.unsqueeze(range(rank - a.rank)) * b.unsqueeze(range(rank - b.rank))


@pytest.mark.parametrize("name", ["spatial", "local", "column_spatial", "column_local"])
def test_chaining_is_the_product(name: str) -> None:
    primitive = {f.__name__: f for f in (spatial, local, column_spatial, column_local)}[name]
    assert getattr(spatial(8, 4), name)(3, 2) == spatial(8, 4) * primitive(3, 2)
    assert getattr(spatial(8, 4), name)(2) == spatial(8, 4) * primitive(1, 2)
    assert spatial(8, 4).replicated(2) == spatial(8, 4) * replicated(2, 2)


# --- quotients ------------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(layout_pairs())
def test_division_undoes_the_product(pair: tuple[RegisterLayout, RegisterLayout]) -> None:
    a, b = pair
    assert (a * b) / b == a
    assert (a * b).left_divide(a) == b


def forced_quotient(a: RegisterLayout, b: RegisterLayout, left: bool) -> Map | None:
    """The only map that the quotient could have; None if the numbers do not divide or the product is not `a`."""
    numbers = [*zip(a.shape, b.shape, strict=True), (a.num_threads, b.num_threads), (a.local_size, b.local_size)]
    if any(m % n for m, n in numbers):
        return None
    threads, locals_ = a.num_threads // b.num_threads, a.local_size // b.local_size
    shape = tuple(m // n for m, n in zip(a.shape, b.shape, strict=True))
    if left:
        table = tuple(tuple(a(t, i) for i in range(locals_)) for t in range(threads))
        whole = product_map(map_of(b), table, shape)
    else:
        steps = [(b.num_threads, b.local_size)]
        table = tuple(
            tuple(
                tuple(x // n for x, n in zip(a(t * steps[0][0], i * steps[0][1]), b.shape, strict=True))
                for i in range(locals_)
            )
            for t in range(threads)
        )
        whole = product_map(table, map_of(b), b.shape)
    possible = table in all_maps(shape, threads, locals_)
    return table if possible and whole == map_of(a) else None


@settings(max_examples=150)
@given(st.data())
def test_division_is_refused_exactly_if_there_is_no_quotient(data: st.DataObject) -> None:
    small = {"max_rank": 2, "max_modes": 3, "max_replicas": 1, "sizes": "22234"}
    inner = data.draw(layouts(max_rank=2, max_modes=2, max_replicas=1, sizes="223"))
    whole = data.draw(layouts(**small))
    if data.draw(st.booleans()):  # else most pairs fail for their numbers alone
        outer = data.draw(layouts(max_rank=2, max_modes=2, max_replicas=1, sizes="223"))
        whole = data.draw(st.sampled_from([outer * inner, inner * outer]))
    rank = max(whole.rank, inner.rank)
    whole, inner = whole.unsqueeze(range(rank - whole.rank)), inner.unsqueeze(range(rank - inner.rank))
    assume(whole.num_threads * whole.local_size <= 64)
    for left in (False, True):
        expected = forced_quotient(whole, inner, left)
        try:
            quotient = whole.left_divide(inner) if left else whole / inner
        except LayoutError:
            assert expected is None
            continue
        assert expected is not None
        assert map_of(quotient) == expected
        assert (inner * quotient if left else quotient * inner) == whole


# --- other shapes ---------------------------------------------------------------------------------------------------


@settings(max_examples=120)
@given(layouts(), st.data())
def test_reduce_forgets_coordinates(layout: RegisterLayout, data: st.DataObject) -> None:
    dims = data.draw(st.sets(st.integers(0, layout.rank - 1))) if layout.rank else set[int]()
    kept = [d for d in range(layout.rank) if d not in dims]
    reduced = layout.reduce(sorted(dims))
    assert reduced.shape == tuple(layout.shape[d] for d in kept)
    assert reduced.num_threads == layout.num_threads
    for thread in range(layout.num_threads):
        seen = dict.fromkeys(tuple(layout(thread, i)[d] for d in kept) for i in range(layout.local_size))
        # In the order in which the locals first reach them, each element once.
        assert [reduced(thread, i) for i in range(reduced.local_size)] == list(seen)
    ones = [1 if d in dims else layout.shape[d] for d in range(layout.rank)]
    assert layout.reduce(sorted(dims), keepdims=True) == reduced.reshape(ones)
    assert layout.reduce([d - layout.rank for d in dims]) == reduced
    assert layout.reduce_to(ones) == layout.reduce(sorted(dims), keepdims=True)


@given(layouts())
def test_reduce_to_drops_leading_dimensions(layout: RegisterLayout) -> None:
    for missing in range(layout.rank + 1):
        assert layout.reduce_to(layout.shape[missing:]) == layout.reduce(list(range(missing)))
    with pytest.raises(LayoutError, match="does not broadcast"):
        layout.reduce_to((*layout.shape, 7))


@settings(max_examples=120)
@given(layouts(), st.data())
def test_permute_permutes_coordinates(layout: RegisterLayout, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(layout.rank)))
    permuted = layout.permute(*order)
    assert map_of(permuted) == tuple(tuple(tuple(x[d] for d in order) for x in row) for row in map_of(layout))
    assert permuted.permute([order.index(d) for d in range(layout.rank)]) == layout


def shapes_of(numel: int, max_rank: int = 3) -> st.SearchStrategy[tuple[int, ...]]:
    @st.composite
    def build(draw: st.DrawFn) -> tuple[int, ...]:
        rest, shape = numel, []
        for _ in range(draw(st.integers(0, max_rank - 1))):
            shape.append(draw(st.sampled_from([k for k in range(1, rest + 1) if rest % k == 0])))
            rest //= shape[-1]
        return (*shape, rest)

    return build()


@settings(max_examples=100)
@given(layouts(max_modes=4, max_replicas=1, sizes="223"), st.data())
def test_reshape_keeps_row_major_order_or_is_impossible(layout: RegisterLayout, data: st.DataObject) -> None:
    numel = prod(layout.shape)
    assume(1 < numel * layout.replication <= 48)
    shape = data.draw(shapes_of(numel))
    expected = tuple(
        tuple(
            tuple(map(int, np.unravel_index(int(np.ravel_multi_index(x, layout.shape)) if x else 0, shape)))
            for x in row
        )
        for row in map_of(layout)
    )
    try:
        reshaped = layout.reshape(*shape)
    except LayoutError:
        assert expected not in all_maps(shape, layout.num_threads, layout.local_size)
        return
    assert reshaped.shape == shape
    assert map_of(reshaped) == expected
    assert reshaped.reshape(layout.shape) == layout


@settings(max_examples=100)
@given(layouts(max_rank=1, max_modes=4, max_replicas=1, sizes="2346"), st.data())
def test_a_detour_of_reshapes_changes_nothing(layout: RegisterLayout, data: st.DataObject) -> None:
    """Whatever shape a layout passes through, it can go on to every shape that it could reach directly."""
    numel = prod(layout.shape)
    middle, last = data.draw(shapes_of(numel)), data.draw(shapes_of(numel))
    try:
        detour = layout.reshape(middle)
    except LayoutError:
        assume(False)
    try:
        direct = layout.reshape(last)
    except LayoutError:
        with pytest.raises(LayoutError):
            detour.reshape(last)
    else:
        assert detour.reshape(last) == direct


def test_reshape_merges_across_dimensions_first() -> None:
    assert spatial(2, 3).reshape(3, 2) == spatial(3, 2)
    assert local(2, 3).spatial(4, 1).local(1, 2).reshape(8, 3, 2) == local(2, 3, 1).spatial(4, 1, 1).local(1, 1, 2)


@given(layouts(), st.data())
def test_squeeze_undoes_unsqueeze(layout: RegisterLayout, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 2))
    rank = layout.rank + count
    dims = sorted(data.draw(st.sets(st.integers(0, rank - 1), min_size=count, max_size=count))) if rank else []
    wide = layout.unsqueeze(dims)
    old = iter(layout.shape)
    assert wide.shape == tuple(1 if d in dims else next(old) for d in range(rank))
    assert wide.squeeze(dims) == layout
    assert all(extent > 1 for extent in layout.squeeze().shape)
    assert map_of(layout.squeeze()) == tuple(
        tuple(tuple(c for c, n in zip(x, layout.shape, strict=True) if n > 1) for x in row) for row in map_of(layout)
    )


@given(layouts(**SMALL), layouts(**SMALL))
def test_concat_appends_dimensions(a: RegisterLayout, b: RegisterLayout) -> None:
    both = concat(a, b)
    assert both.shape == a.shape + b.shape
    for thread in range(both.num_threads):
        for i in range(both.local_size):
            first = a(thread // b.num_threads, i // b.local_size)
            assert both(thread, i) == first + b(thread % b.num_threads, i % b.local_size)


def consecutive(values: list[tuple[int, ...]], dim: int) -> bool:
    first = values[0]
    steps = [tuple(x + k if d == dim else x for d, x in enumerate(first)) for k in range(len(values))]
    return values == steps and first[dim] % len(values) == 0


@settings(max_examples=120)
@given(layouts(), st.data())
def test_contiguous_run_is_the_widest_vector(layout: RegisterLayout, data: st.DataObject) -> None:
    assume(layout.rank > 0)
    dim = data.draw(st.integers(0, layout.rank - 1))
    rows = [list(row) for row in map_of(layout)]
    fitting = [
        v
        for v in range(1, layout.local_size + 1)
        if layout.local_size % v == 0
        and all(consecutive(row[i : i + v], dim) for row in rows for i in range(0, layout.local_size, v))
    ]
    vector = max(fitting)
    assert layout.contiguous_run(dim) == vector == layout.contiguous_run(dim - layout.rank)
    together = [
        n
        for n in range(1, layout.num_threads + 1)
        if layout.num_threads % n == 0
        and all(
            consecutive([x for row in rows[t : t + n] for x in row[i : i + vector]], dim)
            for t in range(0, layout.num_threads, n)
            for i in range(0, layout.local_size, vector)
        )
    ]
    assert layout.contiguous_run(dim, thread_local=False) == vector * max(together)


@given(st.integers(1, 64), st.lists(st.integers(1, 12), max_size=3))
def test_auto_local_spatial_uses_all_threads(threads: int, shape: list[int]) -> None:
    layout = auto_local_spatial(threads, shape)
    assert layout.num_threads == threads
    assert layout.shape == tuple(shape)
    assert layout.local_size * threads == prod(shape) * layout.replication
    assert {x for row in map_of(layout) for x in row} == set(product(*map(range, shape)))


def test_tables_of_a_large_layout_are_fast() -> None:
    """256 threads of 128 locals: vectorised, so far below what a loop over 32768 points takes."""
    layout = spatial(8, 1).local(1, 8).column_local(4, 2).spatial(8, 4).local(1, 2)
    assert (layout.num_threads, layout.local_size) == (256, 128)
    table = index_table(layout)
    assert len({tuple(x) for x in table.reshape(-1, 2).tolist()}) == prod(layout.shape) == 256 * 128


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: spatial(4, 8) / local(3), "cannot divide spatial(4,8) by local(1,3): extent 1: 8 % 3 != 0"),
        (lambda: spatial(2, 4) / local(1, 2), "cannot divide spatial(2,4) by local(1,2): locals: 1 % 2 != 0"),
        (lambda: local(2, 4) / spatial(1, 2), "cannot divide local(2,4) by spatial(1,2): threads: 1 % 2 != 0"),
        (
            lambda: spatial(2, 4).local(2, 1) / spatial(2, 4),
            "cannot divide spatial(2,4) * local(2,1) by spatial(2,4): its innermost part is a different layout",
        ),
        (
            lambda: spatial(2, 4).local(2, 1).left_divide(local(2, 1)),
            "cannot divide spatial(2,4) * local(2,1) from the left by local(2,1): "
            "its outermost part is a different layout",
        ),
        (lambda: spatial(2, 0), "extents are at least 1, got (2, 0)"),
        (lambda: replicated(0, 1), "replication needs at least one thread, got 0"),
        (lambda: local(4).reshape(3), "cannot reshape (4,) to (3,): 4 and 3 elements"),
        (
            lambda: column_spatial(2, 3).reshape(3, 2),
            "cannot reshape column_spatial(2,3) to (3, 2): the modes (2, 3) do not split at its borders",
        ),
        (
            lambda: spatial(2, 3).squeeze(0),
            "only dimensions of extent 1 can be squeezed, got dimensions (0,) of (2, 3)",
        ),
        (lambda: spatial(2, 3).permute(0, 0), "expected a permutation of 2 dimensions, got (0, 0)"),
        (lambda: spatial(2, 3).reduce(2), "dimension 2 does not exist among 2"),
        (lambda: spatial(2).unsqueeze((0, -3)), "dimensions to insert must differ, got (0, -3)"),
        (lambda: spatial(2, 3)(6), "spatial(2,3) has threads 0..5 and locals 0..0, got thread 6, local 0"),
        (lambda: spatial(2, 3).locate(2, 0), "index (2, 0) lies outside of shape (2, 3)"),
        (lambda: auto_local_spatial(0, (2,)), "expected at least one thread, got 0"),
        (
            lambda: register_layout((4,), (2, 3), (0, 1), ()),
            "modes (2, 3) do not factor shape (4,) at dimension 0",
        ),
        (lambda: register_layout((4,), (2, 2, 2), (0, 1, 2), ()), "modes (2, 2, 2) are more than shape (4,) has"),
        (
            lambda: register_layout((4,), (2, 2), (0,), (0,)),
            "each of the modes 0..1 must be either spatial or local, and once: got spatial (0,), local (0,)\n"
            "hint: say Replicated(r), not -r, where r threads hold the same element",
        ),
    ],
)
def test_error_messages(make: object, message: str) -> None:
    with pytest.raises(LayoutError) as caught:
        make()  # type: ignore[operator]
    assert str(caught.value) == message


def test_numbers_and_layouts_do_not_multiply() -> None:
    with pytest.raises(TypeError):
        spatial(2) * 2  # type: ignore[operator]
    with pytest.raises(TypeError):
        spatial(2) / 2  # type: ignore[operator]
