"""Blocks of several tiles along N, for large batches: products are exact, and machine code is what dispatch counts on."""

from typing import Any

import numpy as np
import pytest

import tilus
from tests.agreement.machines import on_vm
from tests.agreement.test_library import integers
from tests.kernels.resources import check_resources
from tests.kernels.test_split import weight
from tests.simt.library import bits, on_simt
from tests.tolerance import numpy_type
from tilus.dtypes import dtype, f16
from tilus.kernels.candidates import TALL, Configuration, Problem, configurations, default_configuration, named_problem
from tilus.kernels.cost import PROMISES, MatmulCost
from tilus.layouts import index_table
from tilus.runtime.weights import native_pack

# (weight, zero points, group, activation, M, N, K, tiles along N, warps, target, and a batch tile that is not the usual
# one): N ends in a block's first and last tile, K in a trip and between two; parts of activations, codebooks, groups
# narrower and wider than a tile.
CASES = [
    ("u4", True, 128, "f16", 40, 200, 272, 4, 8, "sm_90a"),
    ("i3", False, -1, "bf16", 30, 66, 512, 2, 4, "sm_80"),
    ("f6e3m2", False, 32, "f16", 64, 130, 128, 2, 4, "sm_90a"),
    ("u7", True, 128, "f16", 20, 140, 300, 2, 8, "sm_90a"),
    ("nvfp4", False, 16, "f16", 130, 130, 272, 2, 4, "sm_90a", 128),
    *(
        pytest.param(case, marks=pytest.mark.long)
        for case in (
            ("nvfp4", False, 16, "bf16", 33, 270, 144, 4, 8, "sm_80"),
            ("u4", True, -1, "f16", 100, 130, 300, 2, 4, "sm_80", 128),
            ("nf4", False, 256, "f16", 17, 190, 300, 2, 4, "sm_90a"),
            ("i8", False, 64, "bf16", 20, 300, 200, 4, 8, "sm_90a"),
            ("u8", True, 128, "f16", 70, 260, 260, 4, 8, "sm_80"),
            ("u1", True, 256, "bf16", 20, 65, 600, 2, 4, "sm_90a"),
            ("u5", True, 128, "f16", 34, 200, 512, 2, 8, "sm_80"),
        )
    ),
]


def candidate(problem: Problem, target: str, shape: dict[str, int]) -> Configuration:
    """Return the candidate of a shape, by default of the batch's own tile, with the fewest stages."""
    wanted = {"BM": default_configuration(problem)["BM"], "SPLIT": 1} | shape
    return next(c for c in configurations(problem, target) if all(c.get(x, 1) == n for x, n in wanted.items()))


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
def test_products_are_exact(case: tuple[Any, ...]) -> None:
    """The PTX has no findings and the reference machine's bits, which are those of exact sums."""
    product, (tiles, warps, arch, *columns) = case[:7], case[7:]
    check_exact(*product, arch, {"TILES": tiles, "WARPS": warps} | ({"BM": columns[0]} if columns else {}))


@pytest.mark.parametrize(
    ("name", "zero_point", "k", "arch"), [("u2", True, 2048, "sm_90a"), ("i4", False, 1408, "sm_80")]
)
def test_more_warps_share_more_of_k(name: str, zero_point: bool, k: int, arch: str) -> None:
    check_exact(name, zero_point, 64, "f16", 5, 70, k, arch, {"SLICES": 8, "WARPS": 8})


def check_exact(
    name: str, zero_point: bool, group: int, activation: str, m: int, n: int, k: int, arch: str, shape: dict[str, int]
) -> None:
    t = dtype(activation)
    with tilus.knobs.scope(target=f"simt:{arch}"):
        w = weight(name, zero_point, group, activation, n, k)
    x, bias, y = integers(t, m, k, most=1), integers(t, n), np.full((m, n), np.nan, numpy_type(t))
    problem = Problem(w.format, t, dtype(activation) if w.format.scale is None else w.format.scale, True, m, n, k)
    configuration = candidate(problem, arch, shape)
    program = configuration.program.definition.specialize(dict(configuration.constants))
    zeros = w.words if w.zero_points is None else w.zero_points
    args = [x, w.words, w.scales, zeros, bias, y, m, n, k, w.format.groups(k), w.format.tensor_scale]
    found, report = on_simt(program, args, arch, metrics=True)
    assert report.ok, str(report)
    assert report.wavefronts[0] == report.wavefronts[1]
    np.testing.assert_array_equal(bits(found), bits(on_vm(program, args)))
    exact = x.astype(float) @ w.dequantize("f64").T + bias.astype(float)
    slack = {"rtol": 2**-9, "atol": 2**-3} if name == "nf4" else {"rtol": 0, "atol": 0}
    np.testing.assert_allclose(found[5].astype(float), exact.astype(y.dtype).astype(float), **slack)


# Sums fill the registers, which must do: dispatch takes no kernel that spills.
KERNELS = [
    ("u4", 64, 4, 8, "sm_90a"),
    ("u4", 64, 2, 4, "sm_80"),
    ("i4", 64, 4, 8, "sm_80"),
    ("f4e2m1", 64, 4, 8, "sm_90a"),
    ("u4", 32, 4, 8, "sm_90a"),
    ("u3", 32, 2, 4, "sm_90a"),
    ("u7", 32, 2, 8, "sm_90a"),
    ("nvfp4", 64, 4, 8, "sm_80"),
    ("nvfp4", 128, 4, 8, "sm_80"),
    ("nvfp4", 128, 2, 4, "sm_90a"),
]


@pytest.mark.parametrize(("name", "bm", "tiles", "warps", "target"), KERNELS)
def test_machine_code(name: str, bm: int, tiles: int, warps: int, target: str) -> None:
    problem = named_problem(name, f16, 128, (bm, 4096, 4096), bias=True)
    configuration = candidate(problem, target, {"BM": bm, "TILES": tiles, "WARPS": warps})
    compiled = configuration.kernel.compile((), target, PROMISES)
    check_resources(compiled)
    cost = MatmulCost(compiled, problem.form, dict(configuration.constants))
    assert cost.threads == 32 * warps
    assert cost.bank_conflicts == 0
    assert cost.weights_per_trip * bm <= cost.loop.mix["mma"] * 64, (
        "a warp multiplies 16 x 16 weights by 8 columns at once"
    )


@pytest.mark.parametrize(
    ("slices", "tiles", "warps"), [(1, 2, 4), (1, 4, 8), (1, 4, 4), (2, 2, 4), (4, 1, 4), (1, 1, 4)]
)
@pytest.mark.parametrize("name", ["u4", "u3", "nf4"])
def test_layouts_have_every_code_where_the_pack_put_it(name: str, slices: int, tiles: int, warps: int) -> None:
    pack = native_pack(dtype(name), "cuda")
    rows, columns = pack.tile
    words, fragment, places = pack.sliced(slices, tiles, warps)
    codes = (
        np.random.default_rng(0).integers(0, pack.dtype.num_codes, (tiles * rows, slices * columns)).astype(np.uint8)
    )
    packed = pack.pack(codes).reshape(words.shape)  # one tile of N after another, as copies bring them
    index = index_table(words)
    stream = packed[tuple(index[..., d] for d in range(words.rank))]
    if places is None:
        held = pack.dtype.unpack(stream.view(np.uint8).ravel(), fragment.num_threads * fragment.local_size)
        held = held.reshape(fragment.num_threads, fragment.local_size)
    else:
        held = places.unpack(stream)
    index = index_table(fragment)
    # Rows of a tile are multiplied in another order than they have in memory, [row // 8, row % 8] transposed.
    order = np.arange(rows).reshape(-1, pack.interleave).T.reshape(rows) if pack.interleave > 1 else np.arange(rows)
    at = np.arange(tiles)[:, None] * rows + order
    batch, row, column = (index[..., d] for d in range(3))
    np.testing.assert_array_equal(held, codes[at.reshape(-1)[row], batch * columns + column])


@pytest.mark.parametrize(
    ("name", "group", "activation", "m", "widest"),
    [
        ("u4", -1, "f16", 65, 128),
        ("u4", -1, "f16", 64, 64),
        ("u4", 128, "f16", 256, 64),  # sums of a group besides
        ("nvfp4", 16, "f16", 256, 128),
        ("mxfp4", 32, "f16", 256, 64),
        ("mxfp4", 32, "bf16", 256, 128),
        ("u7", -1, "f16", 256, 32),
        ("u4", -1, "f32", 256, 16),
    ],
)
def test_batches_are_as_wide_as_registers_hold_sums(
    name: str, group: int, activation: str, m: int, widest: int
) -> None:
    problem = named_problem(name, dtype(activation), group, (m, 4096, 4096))
    assert max(c["BM"] for c in configurations(problem, "sm_90a")) == widest


def test_warps_hold_two_tiles_where_registers_do() -> None:
    def held(m: int, weight: str = "u4") -> set[int]:
        found = configurations(named_problem(weight, f16, 128, (m, 4096, 4096)), "sm_90a")
        return {64 * c["TILES"] * c["SLICES"] // c["WARPS"] for c in found if c["BM"] == m}

    assert held(8) == {128, 64, 32}
    assert held(16) == {128, 64, 32}
    assert held(16, "u6") == held(8, "u3") == {64, 32, 16}
    assert 64 not in held(32)


def test_candidates_take_tall_blocks_where_batches_are_large() -> None:
    def shapes(m: int, weight: str = "u4") -> set[tuple[int, int, int]]:
        found = configurations(named_problem(weight, f16, 128, (m, 4096, 4096)), "sm_90a")
        return {(c["BM"], c["TILES"], c["WARPS"]) for c in found if c["TILES"] > 1 and c["SLICES"] == 1}

    assert shapes(16) == set()
    assert shapes(64) == {(bm, *tall) for bm in (32, 64) for tall in TALL}
