"""`tilus check`: the PTX of a kernel run on this CPU, and what that shows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
import numpy as np

import tilus
from tilus.cli.arguments import make_arguments, product_shape, summary
from tilus.cli.compile import constants_of, constants_option, find_kernel, multiples_of, multiples_option, pair
from tilus.cli.group import as_json, main, show
from tilus.errors import Loc, TilusError
from tilus.ir.target import CUDA_TARGETS

if TYPE_CHECKING:
    from tilus.runtime.certificate import Certificate
    from tilus.runtime.kernel import BoundKernel
    from tilus.simt import MemoryCount

    _Call = tuple[BoundKernel, Sequence[Any]]

_BOTH = ("sm_80", "sm_90a")
_SHOWN = 12  # kinds of instructions
_CODE_WIDTH = 60
_WITH_SPACE = ("ld", "st", "cp", "atom", "red")  # instructions told apart by the memory they access


@main.command("check")
@click.argument("where", metavar="[MODULE:KERNEL]", required=False)
@click.option("--arg", "given", multiple=True, metavar="NAME=VALUE", help="A number, f16[5,1000], i32[9]:0..4, x.npy.")
@constants_option
@multiples_option
@click.option("--matmul", "weight", metavar="TYPE", help="The library's product with weights of a type, instead.")
@click.option("--shape", default="16,64,256", show_default=True, metavar="M,N,K", help="Of that product.")
@click.option("--group", default=64, show_default=True, help="Weights that share a scale; -1 for whole rows.")
@click.option("--activation", default="f16", show_default=True, help="f16, bf16 or f32.")
@click.option("--target", "targets", multiple=True, type=click.Choice(CUDA_TARGETS), default=_BOTH, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the random numbers.")
@as_json
@click.pass_context
def check(
    context: click.Context, where: str | None, given: Sequence[str], settings: Sequence[str], promises: Sequence[str],
    weight: str | None, shape: str, group: int, activation: str, targets: Sequence[str], seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Run a kernel's PTX on this CPU, thread by thread, and print a certificate.

    It says what was found, each at its line: races, accesses out of bounds, reads of what nobody wrote, missing waits,
    deadlocks. And what the run cost: passes through the banks of shared memory, sectors of global memory, instructions,
    registers. The exit status is 1 if anything was found.

    Arrays are given by type and shape, which fills them with random numbers, or as files; what can be inferred need not
    be given. Examples:

        tilus check kernels.py:scale_rows --arg x=f16[5,1000]

        tilus check --matmul u4 --shape 16,64,512
    """
    if (where is None) == (weight is None):
        raise TilusError("expected MODULE:KERNEL or --matmul TYPE", hint="for instance kernels.py:scale_rows")
    if weight is not None and (given or settings):
        raise TilusError("--arg and --set are for kernels", hint="a product has --shape, --group and --activation")
    found = []
    for target in targets:
        calls: Sequence[_Call]
        if where is not None:
            calls = [_kernel(where, settings, dict(map(pair, given)), seed)]
        else:
            calls = _matmul(str(weight), shape, group, activation, seed)
        for kernel, args in calls:
            certificate = kernel.compile(args, target, multiples_of(promises)).check(*args)
            found.append(certificate)
            if not as_json:
                _print(certificate, summary([p.name for p in kernel.definition.params], args))
    clean = all(certificate.ok for certificate in found)
    if as_json:
        click.echo(json.dumps({"ok": clean, "certificates": [c.record() for c in found]}, indent=2))
    if not clean:
        context.exit(1)


def _kernel(where: str, settings: Sequence[str], given: dict[str, str], seed: int) -> _Call:
    """Return the kernel of a module and arguments."""
    kernel = find_kernel(where)
    constants = constants_of(kernel, settings)
    if hasattr(kernel, "candidates"):  # tuned: the first candidate, where nothing is said
        kernel, constants = kernel.kernel, {**kernel.candidates[0], **constants}
    bound: BoundKernel = kernel.bind(**constants)
    return bound, make_arguments(bound.definition.specialize(constants), given, seed)


def _matmul(weight: str, shape: str, group: int, activation: str, seed: int) -> Sequence[_Call]:
    """Return the kernels that `tilus.matmul` launches on a GPU, and arguments."""
    from tilus.kernels.dispatch import ACTIVATIONS  # loads the compiler
    from tilus.kernels.sample import sample_product

    if activation not in ACTIVATIONS:
        raise TilusError(f"activations are {', '.join(ACTIVATIONS)}, got {activation!r}")
    return sample_product(weight, tilus.dtype(activation), group, product_shape(shape), seed)


# --- text -----------------------------------------------------------------------------------------------------------


def _print(certificate: Certificate, arguments: str) -> None:
    click.echo(f"{certificate.kernel} for {certificate.target}: {arguments}")
    blocks = " x ".join(map(str, certificate.grid))
    landings = f", asynchronous copies landing {' and '.join(certificate.landings)}" if certificate.landings[1:] else ""
    plural = "" if max(certificate.grid) == 1 else "s"
    click.echo(f"{blocks} block{plural} of {certificate.threads} threads{landings}\n")
    click.echo("".join(certificate.printed), nl=False)
    for fault in certificate.faults:
        click.echo(f"{fault.error()}\n")
    click.echo(_verdict(certificate) + "\n")
    tables: dict[str, list[dict[str, Any]]] = {}
    for loc, cost in certificate.lines.items():
        tables.setdefault(loc.file if loc else "tables", []).append(_row(loc, cost))
    for file, rows in tables.items():
        show(file, rows, False)
        click.echo()
    taken, threads = certificate.resources, certificate.threads
    click.echo(
        f"instructions of a warp: {_mix(certificate)}\n"
        f"registers {taken.registers}, spilled bytes {taken.spills}, shared bytes {taken.shared_bytes}, "
        f"blocks per SM {taken.occupancy(threads)}, occupancy {taken.occupied(threads):.0%}\n"
    )


def _verdict(certificate: Certificate) -> str:
    if certificate.faults:
        return f"{len(certificate.faults)} finding{'s' if certificate.faults[1:] else ''}"
    if certificate.equal_writes:
        return "no findings; threads wrote equal values to one place at once: this run speaks for its own contents"
    if certificate.data_independent:
        return "no findings; no address or branch depends on loaded data: this run speaks for all contents"
    return "no findings; addresses or branches depend on loaded data: this run speaks for its own contents"


def _row(loc: Loc | None, cost: MemoryCount) -> dict[str, Any]:
    code = "" if loc is None else (loc.source_line() or "").strip()
    return {
        "line": 0 if loc is None else loc.line,
        "shared": cost.shared_requests,
        "wavefronts": cost.wavefronts,
        "ideal ": cost.ideal_wavefronts,
        "global": cost.global_requests,
        "sectors": cost.sectors,
        "ideal": cost.ideal_sectors,
        "code": code if len(code) <= _CODE_WIDTH else code[: _CODE_WIDTH - 3] + "...",
    }


def _mix(certificate: Certificate) -> str:
    """Return the commonest instructions, as many as a warp executes on average."""
    warps = -(-certificate.threads // 32) * int(np.prod(certificate.grid))
    counts: Counter[str] = Counter()
    for opcode, count in certificate.instructions.items():
        root, *rest = opcode.replace("::", ".").split(".")
        counts[".".join([root, *rest[:1]]) if root in _WITH_SPACE else root] += count
    common = counts.most_common()
    others = [("others", sum(count for _, count in common[_SHOWN:]))] if common[_SHOWN:] else []
    return ", ".join(f"{name} {count / warps:.4g}" for name, count in common[:_SHOWN] + others)
