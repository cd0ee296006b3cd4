"""The definition of register layouts, spelled out slowly: what the laws are judged by.

Nothing here uses the digits of `tilus.layouts`: a layout is its raw modes, a map is a table of index tuples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from math import prod

from hypothesis import strategies as st

from tilus.layouts import RegisterLayout, Replicated, register_layout

Index = tuple[int, ...]
Map = tuple[tuple[Index, ...], ...]  # map[thread][local]


@dataclass(frozen=True)
class Raw:
    """A layout as written down: `modes[d]` are the sizes of dimension d; spatial and local name (dim, position)."""

    modes: tuple[tuple[int, ...], ...]
    spatial: tuple[tuple[int, int] | Replicated, ...]
    local: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> Index:
        return tuple(prod(sizes) for sizes in self.modes)

    def layout(self) -> RegisterLayout:
        names = [(d, p) for d, sizes in enumerate(self.modes) for p in range(len(sizes))]
        return register_layout(
            self.shape,
            [size for sizes in self.modes for size in sizes],
            [m if isinstance(m, Replicated) else names.index(m) for m in self.spatial],
            [names.index(m) for m in self.local],
        )

    def size_of(self, mode: tuple[int, int] | Replicated) -> int:
        return mode.size if isinstance(mode, Replicated) else self.modes[mode[0]][mode[1]]

    def map(self) -> Map:
        """Enumerate the digits of thread and local number in counting order and put every index together."""
        rows = []
        for thread in product(*(range(self.size_of(mode)) for mode in self.spatial)):
            row = []
            for local in product(*(range(self.size_of(mode)) for mode in self.local)):
                value = dict(zip((*self.spatial, *self.local), (*thread, *local), strict=True))
                row.append(tuple(self._coordinate(d, value) for d in range(len(self.modes))))
            rows.append(tuple(row))
        return tuple(rows)

    def _coordinate(self, dim: int, value: dict[object, int]) -> int:
        coordinate = 0
        for position, size in enumerate(self.modes[dim]):
            coordinate = coordinate * size + value[(dim, position)]
        return coordinate


def map_of(layout: RegisterLayout) -> Map:
    """Call the layout point by point."""
    return tuple(
        tuple(layout(thread, local) for local in range(layout.local_size)) for thread in range(layout.num_threads)
    )


def primes(n: int) -> tuple[int, ...]:
    for p in range(2, n + 1):
        if n % p == 0:
            return (p, *primes(n // p))
    return ()


@cache
def all_maps(shape: Index, threads: int, locals_: int) -> frozenset[Map]:
    """Every map over `shape` that some register layout has: all orders of all prime modes and replications."""
    numel = prod(shape)
    if threads * locals_ % numel:
        return frozenset()
    extra = primes(threads * locals_ // numel)
    found: set[Map] = set()
    for sizes in product(*(sorted(set(permutations(primes(extent)))) for extent in shape)):
        names: list[object] = [(d, p) for d, modes in enumerate(sizes) for p in range(len(modes))]
        for order in permutations([*names, *(("extra", k) for k in range(len(extra)))]):
            entries = [Replicated(extra[m[1]]) if m[0] == "extra" else m for m in order]
            for cut in range(len(entries) + 1):
                raw = Raw(tuple(sizes), tuple(entries[:cut]), tuple(entries[cut:]))
                if any(isinstance(m, Replicated) for m in raw.local):
                    continue
                if prod(raw.size_of(m) for m in raw.spatial) == threads:
                    found.add(raw.map())
    return frozenset(found)


@st.composite
def raws(draw: st.DrawFn, max_rank: int = 3, max_modes: int = 5, max_replicas: int = 2, sizes: str = "22223341") -> Raw:
    """A random layout: modes of small sizes (1 among them), replications, in any order."""
    rank = draw(st.integers(0, max_rank))
    modes: list[list[int]] = [[] for _ in range(rank)]
    size = st.sampled_from([int(c) for c in sizes])
    if rank:
        for _ in range(draw(st.integers(0, max_modes))):
            modes[draw(st.integers(0, rank - 1))].append(draw(size))
    replicas = draw(st.lists(st.sampled_from([1, 2, 2, 3]), max_size=max_replicas))
    names: list[tuple[int, int] | Replicated] = [(d, p) for d, group in enumerate(modes) for p in range(len(group))]
    order = draw(st.permutations([*names, *(Replicated(r) for r in replicas)]))
    local = draw(st.sets(st.sampled_from(names))) if names else set()
    return Raw(
        tuple(map(tuple, modes)),
        tuple(m for m in order if m not in local),
        tuple(m for m in order if m in local and not isinstance(m, Replicated)),
    )


def layouts(**options: int | str) -> st.SearchStrategy[RegisterLayout]:
    return raws(**options).map(Raw.layout)  # type: ignore[arg-type]


@st.composite
def layout_pairs(draw: st.DrawFn, **options: int | str) -> tuple[RegisterLayout, RegisterLayout]:
    """Two layouts of one rank."""
    a, b = draw(layouts(**options)), draw(layouts(**options))
    rank = max(a.rank, b.rank)
    return a.unsqueeze(range(rank - a.rank)), b.unsqueeze(range(rank - b.rank))
