"""What the demo found, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class TypeResult:
    """One weight type in the real model on the CPU. Errors are means over the layers, of Frobenius norms.

    Attributes
    ----------
    name : str
    bits : float
        Stored bits per weight: codes, scales and zero points.
    megabytes : float
        Of all quantized layers.
    weight_error, output_error, kernel_error : float
        Weight to original weight; result to the original layer's; result to the exact product of what was stored.
    of_bound : float
        The kernels' greatest error of an element as a part of what rounding allows.
    cosine, least_cosine : float
        Sentence embeddings to those of full precision: mean and least.
    floor : float or None
        The least mean cosine accepted.
    milliseconds : float
        Median time of a forward pass.
    """

    name: str
    bits: float
    megabytes: float
    weight_error: float
    output_error: float
    kernel_error: float
    of_bound: float
    cosine: float
    least_cosine: float
    floor: float | None
    milliseconds: float


@dataclass(frozen=True, slots=True)
class GpuResult:
    """The same program compiled for a GPU, whose code runs on the CPU for a small product.

    Attributes
    ----------
    name : str
    registers, spill_bytes, shared_bytes, blocks_per_sm : int
    instructions_per_weight : float
    bank_conflicts : int
        As the compiler counts them in the loop over K.
    findings : int
        Of the run: races, accesses out of bounds, missing waits, ...
    races, run_conflicts : int
        Of the run.
    """

    name: str
    registers: int
    spill_bytes: int
    instructions_per_weight: float
    bank_conflicts: int
    shared_bytes: int
    blocks_per_sm: int
    findings: int
    races: int
    run_conflicts: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the demo found; `problems` says which of its checks failed."""

    model: str
    layers: int
    weights: int
    sentences: int
    tokens: int
    group_size: int
    f32_megabytes: float
    f32_milliseconds: float
    threads: int
    target: str
    activation: str
    batch_tile: int
    types: tuple[TypeResult, ...]
    gpu: tuple[GpuResult, ...]
    problems: tuple[str, ...]
    seconds: float

    def record(self) -> dict[str, Any]:
        """Return everything as what JSON can hold."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name not in ("types", "gpu", "problems")}
        rows = {name: [_fields(row) for row in getattr(self, name)] for name in ("types", "gpu")}
        return {**fields, **rows, "problems": list(self.problems)}

    def print(self, console: Console) -> None:
        """Print both tables and what they mean."""
        console.print(
            f"{self.model}: {self.layers} linear layers, {self.weights / 1e6:.1f} million weights, groups of "
            f"{self.group_size if self.group_size > 0 else 'a whole row'}; {self.sentences} sentences, "
            f"{self.tokens} tokens; {self.threads} threads"
        )
        console.print(self._types_table())
        console.print(
            "errors are relative (Frobenius), means over the layers on the activations of the full-precision model; "
            "'kernel' compares with\nthe float64 product of the stored weights, '/ bound' is its worst element as a "
            "part of what f32 rounding allows"
        )
        console.print()
        console.print(self._gpu_table())
        console.print(f"done in {self.seconds:.0f} s" + ("" if self.problems else "; all checks passed"))

    def _types_table(self) -> Table:
        title = f"in the model, on the cpu target (f32 activations; torch f32: {self.f32_milliseconds:.1f} ms)"
        return _table(title, [[name, *(text(row, self) for row in self.types)] for name, text in _TYPE_COLUMNS])

    def _gpu_table(self) -> Table:
        title = (
            f"the same program compiled for {self.target} ({self.activation} activations, batch tile "
            f"{self.batch_tile}); certificate: its PTX run on this CPU, thread by thread"
        )
        return _table(title, [[name, *map(text, self.gpu)] for name, text in _GPU_COLUMNS])


_TYPE_COLUMNS: tuple[tuple[str, Callable[[TypeResult, Report], str]], ...] = (
    ("type", lambda row, _: row.name),
    ("bits", lambda row, _: f"{row.bits:.2f}"),
    ("MB", lambda row, _: f"{row.megabytes:.2f}"),
    ("of f32", lambda row, report: f"1/{report.f32_megabytes / row.megabytes:.1f}"),
    ("weight error", lambda row, _: f"{row.weight_error:.4f}"),
    ("output error", lambda row, _: f"{row.output_error:.4f}"),
    ("kernel error", lambda row, _: f"{row.kernel_error:.1e}"),
    ("/ bound", lambda row, _: f"{row.of_bound:.3f}"),
    ("cosine", lambda row, _: f"{row.cosine:.4f}"),
    ("least", lambda row, _: f"{row.least_cosine:.4f}"),
    ("floor", lambda row, _: "-" if row.floor is None else f"{row.floor:.4f}"),
    ("ms", lambda row, _: f"{row.milliseconds:.1f}"),
    ("x f32", lambda row, report: f"{row.milliseconds / report.f32_milliseconds:.2f}"),
)

_GPU_COLUMNS: tuple[tuple[str, Callable[[GpuResult], str]], ...] = (
    ("type", lambda row: row.name),
    ("registers", lambda row: str(row.registers)),
    ("spilled bytes", lambda row: str(row.spill_bytes)),
    ("instructions / weight", lambda row: f"{row.instructions_per_weight:.2f}"),
    ("bank conflicts", lambda row: str(row.bank_conflicts)),
    ("shared bytes", lambda row: str(row.shared_bytes)),
    ("blocks / SM", lambda row: str(row.blocks_per_sm)),
    ("certificate", lambda row: f"races {row.races}, conflicts {row.run_conflicts}"),
)


def _fields(row: TypeResult | GpuResult) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}


def _table(title: str, columns: Sequence[Sequence[str]]) -> Table:
    """Return a table of columns, each a heading and its cells; the first one holds names."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for heading, *_ in columns:
        table.add_column(heading, justify="right" if table.columns else "left")
    for cells in zip(*(cells for _, *cells in columns), strict=True):
        table.add_row(*cells)
    return table
