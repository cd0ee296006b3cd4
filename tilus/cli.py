"""The command `tilus`: what is here, what a layout or a kernel becomes, and a demonstration on a real model.

Every command that prints a table has `--json`. A `TilusError` ends the command with its message and exit status 1.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from rich.console import Console
from rich.table import Table

import tilus
from tilus.casts import best_unpacking, parts
from tilus.dtypes import ALL, DataType, dtype
from tilus.errors import LayoutError, TilusError
from tilus.ir.printer import to_text
from tilus.ir.target import CUDA_TARGETS, TARGETS
from tilus.layouts import BitLayout, RegisterLayout, index_table, offset_table, parse, parse_bits, parse_shared
from tilus.layouts.picture import draw
from tilus.runtime import cache
from tilus.runtime.knobs import knobs

MOST_ELEMENTS = 1 << 16  # of a layout, in a table
CAST_TARGETS = ("f16", "bf16", "f8e4m3", "i8")


class _Commands(click.Group):
    """A group whose commands end with a clean message where the library raises its own error."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except TilusError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(tilus.__version__, package_name="tilus-vm")
def main() -> None:
    """Kernels for low-precision numbers, written as programs over tiles."""


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def show(title: str, rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print rows, which share their keys, as a table or as JSON."""
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for name in rows[0] if rows else ():
        table.add_column(name, justify="right" if isinstance(rows[0][name], int | float) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{value:.6g}" if isinstance(value, float) else str(value) for value in row.values()))
    # A pipe or a file has no width: lines are not to be folded there.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)


# --- doctor ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `tilus doctor`: `state` is `ok` or says what does without it."""

    item: str
    found: str
    state: str = "ok"


@main.command()
@as_json
def doctor(as_json: bool) -> None:
    """Say what is installed and found: CPU, Python, libraries, CUDA tools, GPU, cache."""
    show("tilus doctor", [asdict(finding) for finding in _findings()], as_json)


def _findings() -> Iterator[Finding]:
    yield Finding("tilus", tilus.__version__)
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield _attempt("cpu", _cpu, "no CPU target: pip install llvmlite")
    yield _attempt("cpu threads", _threads, "no CPU target: pip install llvmlite")
    for name, what in _LIBRARIES.items():
        yield _library(name, what)
    yield _attempt("nvrtc", _nvrtc, "no CUDA targets: pip install 'tilus-vm[cuda]'")
    yield _attempt("cuda headers", _headers, "no CUDA targets: pip install 'tilus-vm[cuda]'")
    yield _attempt("nvdisasm", _nvdisasm, "no disassembly: pip install 'tilus-vm[cuda]'")
    yield _attempt("gpu", _gpu, "none: kernels for a GPU can be compiled and examined, not run")
    yield Finding("cache", f"{knobs.cache_dir}: {len(_entries())} kernels, {cache.size() / 1e6:.1f} MB")


_LIBRARIES = {
    "numpy": "",
    "ml_dtypes": "",
    "llvmlite": "no CPU target",
    "torch": "no torch tensors, QuantLinear or demo",
    "cupy": "no launch on a GPU",
    "safetensors": "no files of weights",
    "transformers": "no demo",
}


def _library(name: str, without: str) -> Finding:
    if importlib.util.find_spec(name) is None:
        return Finding(name, "-", without)
    distribution = "cupy-cuda13x" if name == "cupy" else name
    return Finding(name, importlib.metadata.version(distribution))


def _attempt(item: str, find: Any, without: str) -> Finding:
    """Return what `find` finds; a tool that is absent or broken is a finding, not an error."""
    try:
        return Finding(item, find())
    except (TilusError, ImportError, OSError, RuntimeError) as error:
        reason = getattr(error, "message", None) or str(error) or type(error).__name__
        return Finding(item, "-", f"{without} ({reason.splitlines()[0]})")


_ISA = (
    *("avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512vnni", "avx512bf16", "avx512fp16", "amx-tile", "amx-int8"),
    *("neon", "dotprod", "i8mm", "sve"),
)


def _cpu() -> str:
    from tilus.runtime.cpu_features import host_cpu  # loads LLVM

    cpu = host_cpu()
    return f"{cpu.name}, {cpu.simd_bits}-bit vectors: {' '.join(filter(cpu.has, _ISA))}"


def _threads() -> str:
    from tilus.runtime.cpu_pool import default_threads  # loads LLVM

    return str(default_threads())


def _nvrtc() -> str:
    from tilus.runtime.nvrtc import toolchain_version  # loads NVRTC

    return toolchain_version()


def _headers() -> str:
    from tilus.runtime.toolchain import include_folder

    return str(include_folder())


def _nvdisasm() -> str:
    from tilus.runtime.toolchain import nvdisasm

    return str(nvdisasm())


def _gpu() -> str:
    import cupy

    count = cupy.cuda.runtime.getDeviceCount()
    names = [cupy.cuda.runtime.getDeviceProperties(device)["name"].decode() for device in range(count)]
    return ", ".join(names)


# --- data types and layouts -----------------------------------------------------------------------------------------


@main.command()
@as_json
def dtypes(as_json: bool) -> None:
    """List all data types: bits, range, kind, and what unpacking them costs a GPU.

    Costs are instructions per element: those on the pipe of logical instructions, and all. `=` stands before a type
    whose every value the target holds exactly; `table` for codes that are looked up.
    """
    show("data types", [_dtype_row(each) for each in ALL], as_json)


def _dtype_row(kind: DataType) -> dict[str, Any]:
    return {
        "name": kind.name,
        "bits": float(kind.bits_per_element),
        "kind": _kind(kind),
        "least": kind.min_value,
        "greatest": kind.max_value,
        "codes": kind.num_codes,
        **{f"to {target}": _cast_text(kind, dtype(target)) for target in CAST_TARGETS},
        "bits for f16": _bits_text(kind),
    }


def _cast_text(kind: DataType, target: DataType) -> str:
    """Return what unpacking to a target costs, or how else it is done."""
    if kind.nbits > 8 or kind.is_boolean or kind == target:
        return ""
    exact = "=" if _is_exact(kind, target) else " "
    best = best_unpacking(kind, target)
    if best is not None:
        return f"{exact}{best.alu:.2f} {best.issue:.2f}"
    if parts(kind, target) is not None:
        return f"{exact}parts"
    return f"{exact}table" if kind.is_codebook and target.is_float else ""


def _is_exact(kind: DataType, target: DataType) -> bool:
    values = kind.decode(range(kind.num_codes))
    finite = values[values == values]
    return bool((target.decode(target.encode(finite)) == finite).all())


def _bits_text(kind: DataType) -> str:
    best = best_unpacking(kind, dtype("f16"))
    return "" if best is None else best.bits.pattern


def _kind(kind: DataType) -> str:
    if kind.is_integer:
        return "signed integer" if kind.is_signed else "unsigned integer"
    names = {"is_float": "float", "is_codebook": "codebook", "is_boolean": "boolean"}
    return next((name for attribute, name in names.items() if getattr(kind, attribute)), "packed codebook")


@main.command()
@click.argument("expression")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Draw it: a file .svg or .png.")
@as_json
def layout(expression: str, out: Path | None, as_json: bool) -> None:
    """Show who holds each element of a layout.

    Which thread and register for a register layout, which address for a shared one; for a bit layout, which bit of
    which element lies where in a thread's words. TYPE:TARGET stands for the bit layout that weights of a type are
    packed in, `u3:f16` for instance.

    Example: tilus layout "local(2, 1) * spatial(8, 4) * local(1, 2)"
    """
    found = _read_layout(expression)
    if out is not None:
        draw(found, out)
        click.echo(f"wrote {out}")
        return
    _check_size(expression, found)
    if not as_json:
        click.echo(found.show())
        return
    record: dict[str, Any] = {"layout": str(found)}
    if isinstance(found, BitLayout):
        # For every word and position: the element, and which bit of it.
        owner = [[found(word, place) for place in range(32)] for word in range(found.num_words)]
        click.echo(json.dumps(record | {"elements": found.num_elements, "owner": owner}))
        return
    record["shape"] = list(found.shape)
    if isinstance(found, RegisterLayout):
        # index[thread][local] is the element that this register of this thread holds
        record |= {"threads": found.num_threads, "locals": found.local_size, "index": index_table(found).tolist()}
    else:
        record |= {"storage": found.storage_size, "offset": offset_table(found).tolist()}
    click.echo(json.dumps(record))


def _check_size(expression: str, found: Any) -> None:
    """Refuse a table that nobody reads and that takes minutes to write."""
    count = found.num_words * 32 if isinstance(found, BitLayout) else prod(found.shape)
    if count > MOST_ELEMENTS:
        raise LayoutError(
            f"{expression} has {count} elements, a table shows at most {MOST_ELEMENTS}",
            hint="show one factor of it: a product repeats its right side for every element of its left side",
        )


def _read_layout(expression: str) -> Any:
    if expression.startswith("bits("):
        return parse_bits(expression)
    source, colon, target = expression.partition(":")
    if colon:
        best = best_unpacking(dtype(source), dtype(target))
        if best is None:
            raise LayoutError(f"{source} has no bit layout for {target}", hint="`tilus dtypes` lists what there is")
        return best.bits
    try:
        return parse(expression)
    except TilusError as as_register:
        try:
            return parse_shared(expression)
        except TilusError:
            raise as_register from None


# --- cache ----------------------------------------------------------------------------------------------------------


@main.group("cache", cls=_Commands)
def cache_commands() -> None:
    """Look at the compiled kernels kept on disk, or remove them."""


@cache_commands.command("ls")
@as_json
def cache_ls(as_json: bool) -> None:
    """List compiled kernels, the newest first."""
    rows = [_entry_row(folder) for folder in _entries()]
    if rows or as_json:
        show(str(knobs.cache_dir), rows, as_json)
    else:
        click.echo(f"{knobs.cache_dir} holds no compiled kernels")


@cache_commands.command("clear")
def cache_clear() -> None:
    """Remove all compiled kernels."""
    count, freed = len(_entries()), cache.size()
    cache.clear()
    click.echo(f"removed {count} kernels, {freed / 1e6:.1f} MB, from {knobs.cache_dir}")


def _entries() -> list[Path]:
    """Return the folders of the cache's entries, the newest first."""
    found = [path.parent for path in knobs.cache_dir.glob("??/*/meta.json")]
    return sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)


def _entry_row(folder: Path) -> dict[str, Any]:
    try:
        name = json.loads((folder / "meta.json").read_text())["kernel"]
    except (OSError, ValueError, KeyError):
        name = "(damaged)"
    return {
        "kernel": name,
        "target": "cuda" if (folder / "kernel.cubin").exists() else "cpu",
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "made": time.strftime("%Y-%m-%d %H:%M", time.localtime(folder.stat().st_mtime)),
        "key": folder.name[:16],
    }


# --- compile --------------------------------------------------------------------------------------------------------


@main.command("compile")
@click.argument("where", metavar="MODULE:KERNEL")
@click.option("--target", default="sm_90a", type=click.Choice(list(TARGETS)), show_default=True)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A compile-time constant.")
@click.option("--multiple", "promises", multiple=True, metavar="NAME=N", help="A parameter is a multiple of N.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the files written.")
@as_json
def compile_command(
    where: str, target: str, settings: Sequence[str], promises: Sequence[str], out: Path | None, as_json: bool
) -> None:
    """Compile a kernel, print what it takes, and write every stage into a folder.

    Example: tilus compile kernels.py:scale_rows --target sm_90a --set BN=256
    """
    kernel = _find_kernel(where)
    constants = dict(_constant(kernel, text) for text in settings)
    multiples = {name: _integer(name, value) for name, value in map(_pair, promises)}
    compiled = kernel.compile(target=target, multiples=multiples, **constants)
    row = _resources_row(compiled)
    folder = out or Path(f"{compiled.program.name}-{target}")
    written = _write(compiled, folder)
    show(f"{compiled.program.name} for {target}", [row], as_json)
    if not as_json:
        click.echo(f"wrote {', '.join(written)} to {folder}")


def _find_kernel(where: str) -> Any:
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


def _pair(text: str) -> tuple[str, str]:
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
    name, value = _pair(text)
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


def _resources_row(compiled: Any) -> dict[str, Any]:
    target = compiled.target
    if target.kind != "cuda":
        bits = {"object bytes": len(compiled.object)} if target.kind == "cpu" else {}
        return {"target": target.name, "threads": compiled.ir.num_threads, **bits}
    taken = compiled.resources
    threads = compiled.ir.num_threads
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
    if compiled.target.name in CUDA_TARGETS:
        files["kernel.sass"] = compiled.sass.encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise TilusError(f"cannot write to {folder}: {error.strerror}", hint="choose a folder with --out") from error
    return list(files)


# --- demo -----------------------------------------------------------------------------------------------------------


@main.command()
@click.option("--types", default="u4,u3,f4e2m1", show_default=True, help="Weight types, separated by commas.")
@click.option("--group", default=32, show_default=True, help="Weights that share a scale; -1 for whole rows.")
@click.option("--sentences", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="One per line.")
@click.option("--layers", type=click.IntRange(1), help="Quantize the first N linear layers only.")
@click.option("--target-arch", default="sm_90a", type=click.Choice(CUDA_TARGETS), show_default=True)
@as_json
def demo(types: str, group: int, sentences: Path | None, layers: int | None, target_arch: str, as_json: bool) -> None:
    """Quantize the linear layers of a real model, run it on this CPU, check it, and look at its GPU kernels."""
    try:
        from tilus.demo import Options, run_demo  # loads torch
    except ImportError as error:
        raise TilusError(f"the demo needs torch: {error}", hint="pip install 'tilus-vm[dev]'") from error
    names = tuple(name.strip() for name in types.split(",") if name.strip())
    options = Options(tuple(map(tilus.dtype, names)), group, sentences, target_arch, layers)
    report = run_demo(options)
    if as_json:
        click.echo(json.dumps(report.record(), indent=2))
    else:
        report.print(Console() if sys.stdout.isatty() else Console(width=shutil.get_terminal_size((160, 24)).columns))
    if report.problems:
        raise TilusError("the demo's own checks failed:\n" + "\n".join(f"  {text}" for text in report.problems))
