"""Calibration: vectors for every form that the PTX machine knows, files that hold it to them, models of sums.

There is no device here: the PTX machine itself makes the vectors, and plays devices that compute otherwise.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from tilus.simt import decode as decoders
from tilus.simt import opcode as opcodes
from tilus.simt.decode import DECODERS
from tilus.simt.opcode import FAMILIES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench():
    with mock.patch.object(sys, "path", [str(ROOT / "bench"), *sys.path]):
        names = ("calibrate", "ptx_forms", "ptx_hopper", "ptx_kernels", "ptx_vectors", "tensor_sums")
        yield {name: importlib.import_module(name) for name in names}


# --- which forms there are --------------------------------------------------------------------------------------------

# Modifiers for caches, scopes and orders: they change no result of what runs alone.
HINTS = {
    "ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "unified", "weak", "volatile", "relaxed", "acquire", "release", "acq_rel",
    "mmio", "cta", "cluster", "gpu", "sys", "aligned", "uni", "noComplete", "tile", "shared::cta", "shared::cluster", "global",
    "L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last", "L1::no_allocate", "L2::evict_first",
    "L2::evict_last", "L2::evict_normal", "L2::cache_hint", "L2::64B", "L2::128B", "L2::256B", "sync_restrict::shared::cta",
    "sync_restrict::shared::cluster",
}  # fmt: skip
# Asked for by what several instructions share, but no form of these.
SHARED = {
    "relu": "add div ex2 lg2 mad mul rcp rsqrt sin cos sqrt sub tanh", "noftz": "add sub mul ld ldu st",
    "sat": "addc subc div ex2 lg2 max min mad24 mul24 rcp rsqrt sin cos sqrt tanh", "shiftamt": "brev clz popc",
    "f16": "sin cos lg2", "f16x2": "sin cos lg2 set", "bf16": "sin cos lg2", "bf16x2": "sin cos lg2 set", "ftz": "tanh atom red",
    "v2": "ldu", "v4": "ldu", "v8": "ld ldu st atom red", "cas": "red", "exch": "red", "abs": "min max", "arrive": "bar",
}  # fmt: skip
REFUSED = {"xorsign": "min max", "oob": "fma mad", "cc": "mad mad24 mul mul24", "sp": "wgmma"}  # the machine raises
NEWER = {"kind::f8f6f4": "mma", "f32": "redux", "abs": "redux", "NaN": "redux"}  # of sm_100 and later
ELSEWHERE = {"u32": "cvta", "u64": "mapa getctarank", "const": "ld", "local": "ld"}  # addresses and spaces: tests/simt
EXCUSED = {
    (root, name)
    for table in (SHARED, REFUSED, NEWER, ELSEWHERE)
    for name, roots in table.items()
    for root in roots.split()
}

WITHOUT_VALUE = {
    "madc": "the machine raises", "trap": "ends the kernel", "brkpt": "ends the kernel", "brx": "a branch", "call": "a branch",
    "exit": "an end", "membar": "an order", "fence": "an order", "createpolicy": "a hint", "applypriority": "a hint",
    "discard": "a hint", "prefetch": "a hint", "prefetchu": "a hint", "cp.async.bulk.prefetch": "a hint", "nanosleep": "time",
    "pmevent": "a counter", "griddepcontrol": "an order between kernels", "setmaxnreg": "a number of registers",
    "bar.warp.sync": "an order", "cp.async.wait_all": "an order", "isspacep": "addresses: tests/simt",
    "cp.async.mbarrier.arrive": "an order: tests/simt", "cp.async.bulk.tensor": "needs a map that the driver makes",
    "cp.reduce.async.bulk.tensor": "needs a map that the driver makes", "mbarrier.complete_tx": "an order: tests/simt",
}  # fmt: skip


class Asked:
    """Notes which modifiers the machine's decoders look for, and which it finds."""

    def __init__(self) -> None:
        self.asked: dict[str, set[str]] = defaultdict(set)
        self.found: dict[str, set[str]] = defaultdict(set)
        self.prefixes: set[str] = set()

    def opcode(self) -> type[opcodes.Opcode]:
        notes = self

        class Noting(opcodes.Opcode):
            def take(self, name: str) -> bool:
                notes.asked[self.root].add(name)
                there = super().take(name)
                notes.found[self.root].update([name] * there)
                return there

            def type(self, *allowed: str) -> str:
                notes.asked[self.root].update(allowed)
                kind = super().type(*allowed)
                notes.found[self.root].add(kind)
                return kind

        return Noting

    def find(self, opcode):
        """Note the decoder of an opcode: the longest prefix."""
        parts = opcode.text.split(".")
        known = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        self.prefixes.update([next((p for p in known if p in DECODERS), parts[0]), parts[0]])
        return _find(opcode)


_find = decoders._find


@pytest.fixture(scope="module")
def asked(bench) -> Asked:
    """Decode every form on registers, and run kernels that have every modifier of the others, on `sm_90a`."""
    notes, opcode = Asked(), Asked.opcode
    registers = {form.name for form in bench["ptx_forms"].forms()}
    alike = re.compile(r"(ld|st|atom|red)\.shared\.(?!b32|v|add\.u32)|wgmma.*bf16 (none|64B|32B)\d\d$")

    def wanted(name: str) -> bool:
        return name not in registers and not alike.match(name)

    opcodes.operation.cache_clear()
    with mock.patch.object(opcodes, "Opcode", opcode(notes)), mock.patch.object(decoders, "Opcode", opcode(notes)), \
            mock.patch.object(decoders, "_find", notes.find):  # fmt: skip
        for form in bench["ptx_forms"].forms():
            opcodes.operation(form.opcode)
            notes.prefixes.add(form.root)
        vectors = bench["ptx_vectors"]
        record = vectors.collect(vectors.on_simt, "sm_90a", wanted)
    opcodes.operation.cache_clear()
    assert len(record["kernels"]) > 200
    assert not record["registers"]
    return notes


def test_every_instruction_has_vectors_or_none_to_have(asked) -> None:
    known = FAMILIES.keys() | DECODERS.keys()
    assert known - asked.prefixes - WITHOUT_VALUE.keys() == set(), "instructions without a generator of vectors"
    assert WITHOUT_VALUE.keys() - known == set()


def test_every_modifier_has_vectors_or_none_to_have(asked) -> None:
    missing = {(root, name) for root, names in asked.asked.items() for name in names - asked.found[root] - HINTS}
    missing -= {(root, name) for root, name in missing if root in WITHOUT_VALUE}
    assert missing - EXCUSED == set(), "modifiers without a generator of vectors"
    assert EXCUSED - missing == set(), "excuses that are not needed"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_some_forms_of_each_instruction(bench, arch: str) -> None:
    """As compiled by NVRTC and run as PTX: what `alu.evaluate`, which `check` uses, says."""
    forms, vectors = bench["ptx_forms"].forms(), bench["ptx_vectors"]
    of_arch = [f for f in forms if vectors.runs_on(f.capability, arch)]
    some = {f.root: f.name for f in of_arch} | {str(i): f.name for i, f in enumerate(of_arch[::16])}
    record = vectors.collect(vectors.on_simt, arch, lambda name: name in set(some.values()))
    assert len(record["registers"]) >= 100
    assert vectors.check(json.loads(json.dumps(record))) == []


@pytest.mark.long
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a"])
def test_all_forms(bench, arch: str) -> None:
    vectors = bench["ptx_vectors"]
    record = vectors.collect(vectors.on_simt, arch)
    assert len(record["registers"]) > 1100
    assert vectors.check(record) == []


# --- files ------------------------------------------------------------------------------------------------------------

SOME = (
    r"^(add\.rn\.f32|setp\.lt\.and\.s32|lop3\.b32 0xea|ex2\.approx\.f32|shfl\.sync\.bfly\.b32 0x1f|mma.*m16n8k8.*bf16)"
)


@pytest.fixture(scope="module")
def calibrated(bench, tmp_path_factory) -> Path:
    """A folder that `bench/calibrate.py` wrote on the PTX machine."""
    folder = tmp_path_factory.mktemp("ptx")
    argv = ["bench/calibrate.py", "--on", "simt", "--out", str(folder), "--forms", SOME]
    with mock.patch.object(sys, "argv", argv):
        bench["calibrate"].main()
    return folder


def test_files_say_how_they_were_made(calibrated) -> None:
    names = {path.name for path in calibrated.iterdir()}
    assert names == {"vectors-sm_90a.json", "subnormals-sm_90a.json", "rounding-sm_90a.json"}
    for path in calibrated.iterdir():
        content = json.loads(path.read_text())
        assert {"device", "arch", "date", "versions", "commit", "command"} <= content.keys()
    assert all(row["exact"] for row in json.loads((calibrated / "subnormals-sm_90a.json").read_text())["rows"])
    best = json.loads((calibrated / "rounding-sm_90a.json").read_text())["rows"][0]
    assert (best["model"], best["equal"]) == ("16 at a time, exact, rn", 1.0)


def test_the_machine_computes_what_vectors_say(bench, calibrated) -> None:
    """Those that a device made, of which there are as many as were committed, and those just made."""
    files = [*(ROOT / "tests" / "golden" / "ptx").glob("vectors-*.json"), calibrated / "vectors-sm_90a.json"]
    for path in files:
        assert bench["ptx_vectors"].check(json.loads(path.read_text())) == [], path.name


@pytest.mark.parametrize(
    "form", ["add.rn.f32", "setp.lt.and.s32", "lop3.b32 0xea", "ex2.approx.f32", "shfl.sync.bfly.b32 0x1f",
             "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32"],
)  # fmt: skip
def test_a_wrong_vector_is_noticed(bench, calibrated, form: str) -> None:
    vectors = bench["ptx_vectors"]
    record = json.loads((calibrated / "vectors-sm_90a.json").read_text())
    entry = next(e for e in [*record["registers"], *record["kernels"]] if e["form"] == form)
    array = vectors._unpack(record["arrays"][entry["outputs"][0]])
    flat = array.reshape(-1)
    at = (
        int(np.flatnonzero((flat & 0x7F800000 > 0) & (flat & 0x7F800000 < 0x7F800000))[0])
        if form.startswith("ex2")
        else 5
    )
    flat[at] ^= 1 << 12 if form.startswith("ex2") else 1  # an approximation may be off by little
    entry["outputs"][0] = vectors._keep(record, array)
    (text,) = vectors.check(record)
    assert text.startswith(form)
    assert "1 differ" in text


def test_an_approximation_may_be_off_by_what_the_manual_allows(bench, calibrated) -> None:
    vectors = bench["ptx_vectors"]
    record = json.loads((calibrated / "vectors-sm_90a.json").read_text())
    entry = next(e for e in record["registers"] if e["form"] == "ex2.approx.f32")
    array = vectors._unpack(record["arrays"][entry["outputs"][0]])
    normal = (array & 0x7F800000 > 0) & (array & 0x7F800000 < 0x7F800000)
    array[normal] += 1
    assert normal.any()
    entry["outputs"][0] = vectors._keep(record, array)
    assert vectors.check(record) == []


# --- sums -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("product", ["mma f16", "wgmma e4m3"])
def test_the_model_that_made_sums_is_ranked_first(bench, product: str) -> None:
    sums = bench["tensor_sums"]
    form = next(
        k
        for k in (*bench["ptx_kernels"].kernels(), *bench["ptx_hopper"].hopper_kernels())
        if k.name == sums.RANKED[product]
    )
    made = sums.measure(bench["ptx_vectors"].on_simt, "sm_90a", form, 4)
    for model in (sums.Model(8, 1, "rz"), sums.Model(16, 2, "rz"), sums.Model(4, -10, "rn")):
        ranked = replace(made, found=model.sums(made.terms, made.start)).rank()
        best = [m for score, m in ranked if score == 1.0]
        assert model in best
        assert {(m.block, m.extra) for m in best} == {
            (model.block, model.extra)
        }  # cut so far, rounding changes nothing


def test_a_device_that_flushes_subnormals_is_noticed(bench) -> None:
    vectors, sums = bench["ptx_vectors"], bench["tensor_sums"]

    def flushing(binary, name, blocks, threads, args) -> None:
        words = args[0]
        halves = words[:, :2].copy().view(np.uint16)
        exponent = 0x7C00 if b".f16" in binary.ptx.encode() else 0x7F80
        halves[halves & exponent == 0] = 0
        flushed = np.concatenate([halves.view(np.uint32), words[:, 2:]], axis=1)
        vectors.on_simt(binary, name, blocks, threads, [flushed, *args[1:]])

    rows = sums.subnormals(flushing, "sm_80", 2)
    assert {row["operands"] for row in rows if row["exact"]} == {"normal"}
    assert len(rows) == 14
