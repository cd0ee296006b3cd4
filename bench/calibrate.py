"""Calibrate the PTX machine on the first GPU at hand: what instructions compute, subnormals, rounding of sums.

Three files go into `--out`, each with device, driver, versions, commit and command:

* `vectors-ARCH.json`: inputs and results of every form of instruction that the machine models. In `tests/golden/ptx` a
  test holds the machine to it.
* `subnormals-ARCH.json`: whether subnormal operands of `mma`, `wgmma` and `HFMA2` are exact, and at what rate.
* `rounding-ARCH.json`: models of tensor-core sums, by how many random sums they predict to the last bit.

`--on simt` makes the same files on the PTX machine itself, which tries everything but the device.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import ptx_vectors
import record
import tensor_sums
from rich.console import Console
from rich.table import Table

from tilus.runtime.launch_cuda import device_target

_TURNS = {"device": 4096, "simt": 16}
_LAUNCHES = {"device": 64, "simt": 2}


def device_facts() -> dict[str, object]:
    """Return the name of the first GPU, its driver, and its clock."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(0)
    return {
        "device": properties["name"].decode(),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "clock_kilohertz": properties["clockRate"],
    }


def calibrate(on: str, arch: str, pattern: str = "") -> dict[str, dict[str, Any]]:
    """Run everything; return what goes into each file."""
    run = ptx_vectors.on_device if on == "device" else ptx_vectors.on_simt
    wanted = re.compile(pattern)
    facts = {"device": "PTX machine"} if on == "simt" else device_facts()
    head = {**facts, "arch": arch, **record.provenance()}
    vectors = ptx_vectors.collect(run, arch, lambda name: wanted.search(name) is not None)
    subnormal = tensor_sums.subnormals(run, arch, _TURNS[on])
    ranking = tensor_sums.rank(run, arch, _LAUNCHES[on])
    return {
        "vectors": {**head, **vectors},
        "subnormals": {**head, "rows": subnormal},
        "rounding": {**head, "rows": ranking},
    }


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", choices=("device", "simt"), default="device")
    parser.add_argument(
        "--arch", help="for --on simt: sm_80, sm_90a, sm_100a, ...; a device says its own", default="sm_90a"
    )
    parser.add_argument(
        "--out", type=Path, default=record.ROOT / "tests" / "golden" / "ptx", help="folder for the files"
    )
    parser.add_argument("--forms", default="", help="a regular expression: only vectors of forms whose names have it")
    options = parser.parse_args()
    arch = device_target("cuda:0").name if options.on == "device" else options.arch
    files = calibrate(options.on, arch, options.forms)
    for name, content in files.items():
        ptx_vectors.save(content, options.out / f"{name}-{arch}.json")
    _print(files, options.out)


def _print(files: dict[str, dict[str, Any]], folder: Path) -> None:
    vectors = files["vectors"]
    differ = ptx_vectors.check(json.loads(json.dumps(vectors)))
    console = Console(width=140)
    table = Table(
        "instruction", "operands", "exact", "cycles", "rate, normal = 1", title="Subnormals", title_justify="left"
    )
    for row in files["subnormals"]["rows"]:
        rate = row["relative_rate"]
        cycles, shown = f"{row['cycles_per_turn']:.1f}", "-" if rate is None else f"{rate:.2f}"
        table.add_row(row["instruction"], row["operands"], "yes" if row["exact"] else "NO", cycles, shown)
    console.print(table)
    table = Table("product", "best model of its sums", "predicted", title="Rounding", title_justify="left")
    seen: set[str] = set()
    for row in files["rounding"]["rows"]:
        if row["product"] not in seen:
            seen.add(row["product"])
            table.add_row(row["product"], row["model"], f"{row['equal']:.2%}")
    console.print(table)
    for text in differ[:20]:
        console.print(text, markup=False, highlight=False)
    count = len(vectors["registers"]) + len(vectors["kernels"])
    console.print(
        f"{count} forms on {vectors['device']}, {vectors['arch']}: the PTX machine differs in {len(differ)}; {folder}"
    )


if __name__ == "__main__":
    main()
