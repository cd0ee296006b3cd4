"""The model of the quantized matmul: its floors, its prediction of kernels that others measured, and its reasons."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tilus.bench.published import DO_BENCH, PUBLISHED
from tilus.dtypes import dtype, f16
from tilus.errors import TilusError
from tilus.kernels.candidates import Problem, bucket, configurations, default_configuration
from tilus.kernels.devices import DEVICES, find_device
from tilus.kernels.facts import CodeFacts, code_facts
from tilus.kernels.model import floor, predict
from tilus.runtime.weights import WeightFormat, native_pack

H100 = DEVICES["h100"]


def problem(name: str, m: int, n: int = 8192, k: int = 8192, group: int = 128) -> Problem:
    return Problem(WeightFormat(native_pack(dtype(name), "cuda"), group, "none"), f16, f16, False, m, n, k)


# N, K: the floors at M = 1 for 1 to 8 bits, groups of 128, counted by hand from bytes / 3.0 TB/s.
FLOORS = {
    (10240, 8192): (3.9, 7.4, 10.9, 14.4, 17.9, 21.4, 24.9, 28.4),
    (8192, 8192): (3.2, 6.0, 8.7, 11.5, 14.3, 17.1, 19.9, 22.7),
    (57344, 8192): (22.1, 41.6, 61.2, 80.8, 100, 120, 140, 159),
    (5120, 27648): (6.7, 12.6, 18.5, 24.4, 30.3, 36.1, 42.0, 47.9),
    (28672, 4096): (5.5, 10.4, 15.3, 20.2, 25.1, 30.0, 34.9, 39.8),
}


@pytest.mark.parametrize("shape", FLOORS)
def test_floors_of_memory(shape: tuple[int, int]) -> None:
    found = [floor(problem(f"i{bits}", 1, *shape), H100) for bits in range(1, 9)]
    assert found == pytest.approx(FLOORS[shape], rel=0.02)


@pytest.mark.parametrize(("m", "microseconds"), [(256, 42.9), (4096, 687)])
def test_floors_of_tensor_cores_do_not_depend_on_the_width(m: int, microseconds: float) -> None:
    assert [floor(problem(name, m), H100) for name in ("i1", "i4", "i8")] == pytest.approx([microseconds] * 3, rel=0.01)


# Instructions per weight of humming's loops (M <= 16), disassembled; stages of 128 x 128 weights, three in flight.
HUMMING = {"u1": 2.97, "u2": 2.91, "u4": 2.92, "u6": 3.32, "u8": 2.85}


def humming(weight: str, m: int, device: str) -> float:
    """Predict a kernel of somebody else, of which this much is known."""
    shape = problem(weight, m, group=-1)
    tile_n, tile_k = shape.form.pack.tile
    slices = max(128 * 128 // (tile_n * tile_k), 1)
    configuration = default_configuration(shape).replace(BM=16, TILES=1, WARPS=4, SLICES=slices, STAGES=4, SPLIT=1)
    weights = 256
    facts = CodeFacts(
        weights=weights, instructions=round(HUMMING[weight] * weights), alu=0, half=0, produced=0, wavefronts=0,
        flops=weights * 32 * 2 * 16, cycles=(0, 0), edge_cycles=0, block_threads=128, registers=128,
        spills=0, shared_bytes=0, blocks_per_sm=1,
    )  # fmt: skip
    return predict(shape, configuration, facts, DEVICES[device]).total + DO_BENCH


ROWS = [row for row in PUBLISHED if row.system == "humming" and row.m <= 16]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.device}-{row.weight}-{row.m}")
def test_what_humming_measured_is_predicted(row) -> None:
    error = humming(row.weight, row.m, row.device) / row.microseconds - 1
    print(f"{row.device} {row.weight} M={row.m}: {error:+.0%}")
    assert abs(error) < (0.15 if row.device == "h100" else 0.25)


def test_tensor_cores_bound_large_batches_as_measured() -> None:
    operations = 2 * 4096 * 8192 * 8192
    predicted = operations / H100.tensor_sync * 1e-6 + H100.launch + DO_BENCH
    measured = [row.microseconds for row in PUBLISHED if (row.device, row.weight, row.m) == ("h100", "u4", 4096)]
    assert predicted == pytest.approx(min(measured), rel=0.02)


SLIM = CodeFacts(
    weights=256, instructions=300, alu=100, half=0, produced=0, wavefronts=40, flops=131072, cycles=(900, 900), edge_cycles=1000, block_threads=128,
    registers=128, spills=0, shared_bytes=81920, blocks_per_sm=2,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "bound"),
    [
        ({}, "memory"),
        ({"instructions": 1600}, "issue"),
        ({"alu": 800}, "issue"),
        ({"cycles": (500, 2000)}, "latency"),
        ({"wavefronts": 400}, "shared"),
        ({"flops": 131072 * 8}, "tensor"),
    ],
)
def test_the_bound_is_what_the_kernel_has_too_much_of(changed: dict[str, int], bound: str) -> None:
    shape = problem("i4", 1)
    found = predict(shape, default_configuration(shape), replace(SLIM, **changed), H100)
    assert found.bound == bound
    assert found.total == pytest.approx(found.fixed + found.parts[bound])
    assert found.total > found.floor


def test_few_bytes_in_flight_make_latency_the_bound() -> None:
    shape = problem("i4", 1)
    first = default_configuration(shape).replace(TILES=1, SLICES=4, WARPS=4, SPLIT=1)
    found = {stages: predict(shape, first.replace(STAGES=stages), SLIM, H100) for stages in (2, 4)}
    assert found[2].flight == 16
    assert found[2].bound == "latency"
    # 128 blocks, each 258 KiB of weights and scales, 16 KiB in 800 ns
    assert found[2].parts["latency"] == pytest.approx(64 * 8192 * (1 / 2 + 2 / 128) / 16384 * 0.8, rel=0.01)
    assert found[4].flight == 48
    assert found[4].total < found[2].total


def test_small_products_are_bound_by_what_is_fixed() -> None:
    shape = problem("i4", 1, 1024, 1024)
    found = predict(shape, default_configuration(shape), SLIM, H100)
    assert found.bound == "latency"
    assert found.fixed > max(found.parts.values())


def test_a_block_too_many_takes_a_wave() -> None:
    one, two = (problem("i4", 1, 128 * blocks, 8192) for blocks in (264, 265))
    facts = replace(SLIM, cycles=(20_000, 20_000))  # latency alone
    first, second = (predict(shape, default_configuration(shape), facts, H100) for shape in (one, two))
    assert (first.waves, first.blocks) == (1, 264)
    assert second.waves > 1
    assert second.parts["latency"] == pytest.approx(2 * first.parts["latency"])


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda d: d.name)
def test_no_prediction_is_below_the_floor(device) -> None:
    for name in ("i1", "i4", "i8"):
        for m in (1, 64, 512):
            shape = problem(name, m, 4096, 4096)
            for facts in (SLIM, None):
                found = predict(shape, default_configuration(shape), facts, device)
                assert found.total > found.parts["memory"] + device.launch
                assert facts is None or found.parts["memory"] <= (found.total - found.fixed) * (1 + 1e-9)


def test_facts_are_read_from_machine_code_once(monkeypatch) -> None:
    shape = problem("u4", 1, group=128)
    configuration = default_configuration(shape)
    facts = code_facts(configuration, shape.form, "sm_90a")
    # Two tiles of 64 x 128 weights, 2 slices of them, 64 threads; 8 rows of the batch for each of its 16 x 16 fragments,
    # and for one more of constants beside 8.
    assert facts.weights == 128 * 128 * 2 // 64
    assert facts.flops == facts.weights * 32 * 2 * 8 * 9 // 8
    assert facts.spills == 0
    early, late = facts.cycles
    assert facts.instructions < early <= late < 16 * facts.instructions
    assert facts.trip_cycles(500) == early
    assert facts.trip_cycles(1000) == pytest.approx((early + late) / 2)
    # A trip writes 8 KiB of weights and 2 KiB of activations for each slice, and reads them once; and 32 bytes of scales
    # for each lane of a warp: four lanes read what the producer wrote once.
    assert facts.wavefronts == (2 * (8 + 2) * 1024 + (1 + 1 / 4) * 32 * 32) / 128
    code_facts.cache_clear()
    monkeypatch.setattr("tilus.kernels.facts._read", None)
    assert code_facts(configuration, shape.form, "sm_90a") == facts


def test_devices_are_found_by_the_drivers_name() -> None:
    names = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA A100-SXM4-80GB": "a100", "NVIDIA A10": "a10",
             "NVIDIA GeForce RTX 4090": "rtx4090", "NVIDIA H200": "h200", "L40S": "l40s"}  # fmt: skip
    assert {name: find_device(name).name for name in names} == names
    for other in ("NVIDIA H100 PCIe", "NVIDIA GH200 480GB", "NVIDIA A1000"):
        with pytest.raises(TilusError, match="known are h100"):
            find_device(other)


def test_batches_are_bucketed() -> None:
    form = problem("i4", 1).form
    assert [bucket(m, form, f16) for m in (1, 8, 9, 33, 65, 128, 129, 5000)] == [1, 8, 16, 64, 128, 128, 256, 4096]


def test_configurations_differ_and_fit() -> None:
    for target, most in (("sm_80", 163), ("sm_86", 99), ("sm_90a", 227)):
        found = configurations(problem("i4", 64), target)
        assert len(set(found)) == len(found) >= 8
        assert found[0] == default_configuration(problem("i4", 64))
        assert {c["BM"] for c in found} == {8, 16, 32, 64}
        assert max(c["STAGES"] * c["SLICES"] * (4096 + c["BM"] * 256) for c in found) <= most * 1024


@pytest.mark.parametrize(("name", "k", "group"), [("i4", 8192 + 32, 32), ("t1.6", 8192, 128)])
def test_tiles_without_whole_groups_are_shared_out_too(name: str, k: int, group: int) -> None:
    shape = problem(name, 1, k=k, group=group)
    assert {c["SLICES"] for c in configurations(shape, "sm_90a")} == {1, 2, 4, 8}
