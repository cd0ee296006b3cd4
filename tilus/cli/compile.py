"""`tilus compile`, and how a command names a kernel and its constants."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import click

import tilus
from tilus.cli.group import as_json, main, show
from tilus.errors import TilusError
from tilus.ir.printer import to_text
from tilus.ir.target import TARGETS

constants_option = click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A compile-time constant."
)
multiples_option = click.option(
    "--multiple", "promises", multiple=True, metavar="NAME=N", help="A parameter is a multiple of N."
)


@main.command("compile")
@click.argument("where", metavar="MODULE:KERNEL")
@click.option("--target", default="sm_90a", type=click.Choice(list(TARGETS)), show_default=True)
@constants_option
@multiples_option
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the files written.")
@as_json
def compile_command(
    where: str, target: str, settings: Sequence[str], promises: Sequence[str], out: Path | None, as_json: bool
) -> None:
    """Compile a kernel, print what it takes, and write every stage into a folder.

    Example: tilus compile kernels.py:scale_rows --target sm_90a --set BN=256
    """
    kernel = find_kernel(where)
    constants = constants_of(kernel, settings)
    multiples = multiples_of(promises)
    compiled = kernel.compile(target=target, multiples=multiples, **constants)
    row = _resources_row(compiled)
    folder = out or Path(f"{compiled.program.name}-{target}")
    written = _write(compiled, folder)
    show(f"{compiled.program.name} for {target}", [row], as_json)
    if not as_json:
        if compiled.program.producer and not compiled.ir.producer:
            click.echo(f"no producer: {_missing(compiled)}")
        click.echo(f"wrote {', '.join(written)} to {folder}")


def _missing(compiled: Any) -> str:
    """Return why a kernel that asks for a producer has none."""
    from tilus.ir.producer import examine

    found = examine(compiled.program, compiled.target.code)
    if isinstance(found, str):
        return found
    return "a copy is not known to be aligned to 4 bytes: say what is (--multiple)"


def find_kernel(where: str) -> Any:
    """Return the kernel that `module.py:name` or `package.module:name` names."""
    from tilus.runtime.autotune import TunedKernel  # loads the compiler
    from tilus.runtime.kernel import Kernel

    place, separator, name = where.rpartition(":")
    if not separator or not name:
        raise TilusError(f"expected MODULE:KERNEL, got {where!r}", hint="for instance kernels.py:scale_rows")
    module = _load_module(place)
    found = getattr(module, name, None)
    if not isinstance(found, Kernel | TunedKernel):
        kernels = [key for key, value in vars(module).items() if isinstance(value, Kernel | TunedKernel)]
        came = f"has no {name!r}" if found is None else f"defines {name!r} as {type(found).__name__}, not as a kernel"
        raise TilusError(f"{place} {came}", hint=f"its kernels are {', '.join(kernels) or '(none)'}")
    return found


def _load_module(place: str) -> ModuleType:
    path = Path(place)
    if path.suffix != ".py":
        try:
            return importlib.import_module(place)
        except ImportError as error:
            raise TilusError(f"cannot import {place!r}: {error}", hint="a file is named with its .py") from error
    if not path.is_file():
        raise TilusError(f"there is no file {place}", hint="name a Python file or an installed module")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses and annotations look their module up
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except TilusError:
        raise
    except Exception as error:  # whatever the user's file raises
        raise TilusError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def pair(text: str) -> tuple[str, str]:
    """Split `NAME=VALUE`."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise TilusError(f"expected NAME=VALUE, got {text!r}")
    return name, value


def _integer(name: str, text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise TilusError(f"{name} must be an integer, got {text!r}") from None


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise TilusError(f"{name} must be true or false, got {text!r}")
    return text.lower() in ("true", "1")


def _float(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise TilusError(f"{name} must be a number, got {text!r}") from None


def _pack(name: str, text: str) -> Any:
    from tilus.runtime.weights.packing import PackLayout

    return PackLayout.parse(text)


_READERS = {
    "int": _integer,
    "bool": _boolean,
    "float": _float,
    "str": lambda name, text: text,
    "DataType": lambda name, text: tilus.dtype(text),
    "PackLayout": _pack,
}


def _constant(kernel: Any, text: str) -> tuple[str, Any]:
    """Read `NAME=VALUE` by the annotation of the kernel's constant."""
    name, value = pair(text)
    definition = getattr(kernel, "kernel", kernel).definition
    annotations = {c.name: c.annotation for c in definition.constants}
    if name not in annotations:
        known = ", ".join(annotations) or "(none)"
        raise TilusError(f"kernel {definition.name!r} has no constant {name!r}", hint=f"its constants are {known}")
    kind = annotations[name]
    kind = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    if kind not in _READERS:
        raise TilusError(
            f"a constant of type {kind} cannot be given on the command line", hint="give it a default in the kernel"
        )
    return name, _READERS[kind](name, value)


def constants_of(kernel: Any, settings: Sequence[str]) -> dict[str, Any]:
    """Return the compile-time constants that `NAME=VALUE` texts give."""
    return dict(_constant(kernel, text) for text in settings)


def multiples_of(promises: Sequence[str]) -> dict[str, int]:
    """Return the promises that `NAME=N` texts make."""
    return {name: _integer(name, value) for name, value in map(pair, promises)}


def _resources_row(compiled: Any) -> dict[str, Any]:
    target = compiled.target
    if target.kind != "cuda":
        bits = {"object bytes": len(compiled.object)} if target.kind == "cpu" else {}
        return {"target": target.name, "threads": compiled.ir.num_threads, **bits}
    taken = compiled.resources
    threads = taken.max_threads
    return {
        "target": target.name,
        "threads": threads,
        "registers": taken.registers,
        "spill bytes": taken.spills,
        "stack bytes": taken.stack,
        "shared bytes": taken.shared_bytes,
        "barriers": taken.barriers,
        "blocks per SM": taken.occupancy(threads),
    }


def _write(compiled: Any, folder: Path) -> list[str]:
    """Write every stage of a compiled kernel; return the names of the files."""
    files = {"program.txt": to_text(compiled.program).encode(), "lowered.txt": to_text(compiled.ir).encode()}
    files |= {name: data for name, data in compiled.files.items() if name != "meta.json"}
    if compiled.target.kind == "cuda":
        files["kernel.sass"] = compiled.sass.encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise TilusError(f"cannot write to {folder}: {error.strerror}", hint="choose a folder with --out") from error
    return list(files)
