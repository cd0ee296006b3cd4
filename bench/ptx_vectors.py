"""Golden vectors: what instructions make of chosen inputs, on a device or on the PTX machine, kept in a file.

A file names the device and how it was made. Instructions on registers are kept as opcode, operands and results; others
as the PTX of a kernel, what it is called with, and what it leaves. `check` holds the PTX machine to a file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ptx_forms import BOUNDS, COUNT, Form, forms, inputs, source
from ptx_hopper import hopper_kernels
from ptx_kernels import Kernel, kernels

from tilus import simt
from tilus.runtime.launch_cuda import CudaKernel
from tilus.runtime.nvrtc import CudaBinary, compile_cuda
from tilus.simt import alu
from tilus.simt.formats import FORMATS, decode
from tilus.simt.opcode import word_type

Array = np.ndarray[Any, Any]
Record = dict[str, Any]
FORMAT = 1
_BATCH = 48  # kernels of one compilation


class Runner(Protocol):
    """Runs a compiled kernel on arrays, which it updates."""

    def __call__(self, binary: CudaBinary, name: str, blocks: int, threads: int, args: Sequence[Array]) -> None: ...


def on_simt(binary: CudaBinary, name: str, blocks: int, threads: int, args: Sequence[Array]) -> None:
    """Run on the PTX machine, which must find nothing."""
    simt.run(binary.ptx, name, list(args), blocks, threads).check()


def on_device(binary: CudaBinary, name: str, blocks: int, threads: int, args: Sequence[Array]) -> None:
    """Run on the first GPU."""
    import cupy

    there = [cupy.asarray(a.reshape(-1).view(np.uint8)) if a.nbytes else cupy.zeros(16, np.uint8) for a in args]
    CudaKernel(binary.cubin, name).launch((blocks,), (threads,), [x.data.ptr for x in there])
    cupy.cuda.runtime.deviceSynchronize()
    for array, copy in zip(args, there, strict=True):
        array.reshape(-1).view(np.uint8)[:] = copy.get()[: array.nbytes]


# --- making vectors ---------------------------------------------------------------------------------------------------


def runs_on(capability: int, arch: str, kernel: bool = False) -> bool:
    """Whether a form that needs a capability is one of an architecture; kernels for 9.0 use what only `sm_90a` has."""
    here = int(arch[3:].rstrip("af"))
    if kernel and capability == 90 and arch.rstrip("af") != arch:
        return here == 90
    return capability <= here and not (kernel and capability == 90 and here != 90)


def collect(run: Runner, arch: str, wanted: Callable[[str], bool] = lambda name: True) -> Record:
    """Return the vectors of all forms that an architecture has and whose names are wanted."""
    mine = [f for f in forms() if runs_on(f.capability, arch) and wanted(f.name)]
    others = [k for k in (*kernels(), *hopper_kernels()) if runs_on(k.capability, arch, True) and wanted(k.name)]
    record: Record = {"format": FORMAT, "arch": arch, "arrays": {}, "registers": [], "ptx": [], "kernels": []}
    for batch, binary in _compiled(mine, [source(f, f"f{i}") for i, f in enumerate(mine)], arch):
        for i, form in batch:
            record["registers"].append(_registers(record, run, binary, f"f{i}", form))
    for batch, binary in _compiled(others, [k.source(f"k{i}") for i, k in enumerate(others)], arch):
        record["ptx"].append(_pack(np.frombuffer(binary.ptx.encode(), np.uint8)))
        for i, kernel in batch:
            record["kernels"].append(_kernel(record, run, binary, f"k{i}", kernel))
    return record


def _compiled(
    items: Sequence[Any], texts: Sequence[str], arch: str
) -> Iterator[tuple[list[tuple[int, Any]], CudaBinary]]:
    for first in range(0, len(items), _BATCH):
        numbers = range(first, min(first + _BATCH, len(items)))
        yield [(i, items[i]) for i in numbers], compile_cuda("\n".join(texts[i] for i in numbers), arch)


def _registers(record: Record, run: Runner, binary: CudaBinary, name: str, form: Form) -> Record:
    given = inputs(form)
    found = [np.zeros(COUNT, word_type(kind)) for kind in form.results]
    run(binary, name, 1, COUNT, [*given, *found])
    return {"form": form.name, "opcode": form.opcode, "constant": form.constant,
            "inputs": [_keep(record, a) for a in given], "outputs": [_keep(record, a) for a in found]}  # fmt: skip


def _kernel(record: Record, run: Runner, binary: CudaBinary, name: str, kernel: Kernel) -> Record:
    out = np.zeros((kernel.blocks * kernel.threads, kernel.outputs), kernel.words.dtype)
    memory = kernel.memory.copy()
    run(binary, name, kernel.blocks, kernel.threads, [kernel.words.copy(), out, memory])
    return {"form": kernel.name, "ptx": len(record["ptx"]) - 1, "kernel": name, "blocks": kernel.blocks,
            "threads": kernel.threads, "words": _keep(record, kernel.words), "memory": _keep(record, kernel.memory),
            "outputs": [_keep(record, out), _keep(record, memory)]}  # fmt: skip


def _pack(array: Array) -> str:
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes())).decode()
    return f"{array.dtype.str} {'x'.join(map(str, array.shape))} {data}"


def _unpack(text: str) -> Array:
    dtype, shape, data = text.split(" ")
    flat = np.frombuffer(zlib.decompress(base64.b64decode(data)), dtype)
    return flat.reshape([int(n) for n in shape.split("x")]).copy()


def _keep(record: Record, array: Array) -> str:
    """Keep an array once, and return its name."""
    text = _pack(array)
    name = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    record["arrays"][name] = text
    return name


def save(record: Record, path: Path) -> None:
    """Write a record to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=0) + "\n")


# --- holding the machine to them --------------------------------------------------------------------------------------


def check(record: Record) -> list[str]:
    """Return what the PTX machine computes otherwise than a record says."""
    assert record["format"] == FORMAT
    arrays = {name: _unpack(text) for name, text in record["arrays"].items()}
    wrong = [text for entry in record["registers"] for text in _check_registers(entry, arrays)]
    texts = [_unpack(text).tobytes().decode() for text in record["ptx"]]
    return wrong + [text for entry in record["kernels"] for text in _check_kernel(entry, arrays, texts)]


def _check_registers(entry: Record, arrays: dict[str, Array]) -> Iterator[str]:
    given = [arrays[name] for name in entry["inputs"]]
    operands: list[Any] = given if entry["constant"] is None else [*given[:3], entry["constant"], *given[3:]]
    found = alu.evaluate(entry["opcode"], *operands)
    results = found if isinstance(found, tuple) else (found,)
    kinds = alu.operation(entry["opcode"]).results
    for wanted, got, kind in zip([arrays[name] for name in entry["outputs"]], results, kinds, strict=False):
        differs = np.flatnonzero(~_agrees(entry["opcode"], kind, given, wanted, got))
        if len(differs):
            i = int(differs[0])
            what = ", ".join(f"{int(a[i]):#x}" for a in given)
            yield f"{entry['form']}({what}): {_differ(wanted[i], got[i], len(differs))}"


def _check_kernel(entry: Record, arrays: dict[str, Array], texts: Sequence[str]) -> Iterator[str]:
    wanted = [arrays[name] for name in entry["outputs"]]
    out, memory = np.zeros_like(wanted[0]), arrays[entry["memory"]].copy()
    report = simt.run(texts[entry["ptx"]], entry["kernel"], [arrays[entry["words"]].copy(), out, memory],
                      entry["blocks"], entry["threads"])  # fmt: skip
    if not report.ok:
        yield f"{entry['form']}: {report}"
    for what, left, right in zip(("words", "memory"), wanted, (out, memory), strict=True):
        differs = np.argwhere(left != right)
        if len(differs):
            at = tuple(map(int, differs[0]))
            yield f"{entry['form']}: {what} {at}: {_differ(left[at], right[at], len(differs))}"


def _differ(wanted: np.generic, found: np.generic, count: int) -> str:
    return f"{int(wanted):#x} expected, {int(found):#x} found, {count} differ"


def _agrees(opcode: str, kind: str, given: Sequence[Array], wanted: Array, got: Array) -> Array:
    """Return where results agree: in every bit, or for approximations within what the manual allows."""
    same: Array = wanted == got
    bound = next((b for name, b in BOUNDS.items() if opcode.startswith(name + ".")), None)
    if bound is None:
        return same
    relative, absolute = bound
    element = kind.removesuffix("x2")
    form = FORMATS[element]
    relative = max(relative, 2.0**-19 if kind == "f64" else 2.0 ** (2 - form.mantissa))
    w, g = (decode(a.view(form.word), form).reshape(len(wanted), -1) for a in (wanted, got))
    with np.errstate(all="ignore"):
        near = (np.abs(w - g) <= relative * np.abs(w) + absolute) | (w == g) | (np.isnan(w) & np.isnan(g))
        if opcode.startswith("div.approx"):  # promised for these divisors only
            size = np.abs(given[1].view(np.float32)).astype(np.float64)
            near |= ~((size >= 2.0**-126) & (size <= 2.0**126))[:, None]
    return same | near.all(1)
