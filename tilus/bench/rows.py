"""A line of the benchmark, measured or predicted, and the tables made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tilus.bench.published import Measured, best_published
from tilus.bench.shapes import Layer


@dataclass(frozen=True, slots=True)
class Row:
    """What one product takes.

    Attributes
    ----------
    layer : Layer
    m : int
    weight : str
        Type of the weights, `f16` where they are not quantized.
    system : str
        Whose kernel: `tilus`, `cuBLAS`, ...
    microseconds, floor : float
    terabytes : float
        That must move.
    predicted : bool
        By the model, not measured.
    facts : dict
        What else is known: configuration and bound of a prediction, the error of a result.
    """

    layer: Layer
    m: int
    weight: str
    system: str
    microseconds: float
    floor: float
    terabytes: float
    predicted: bool
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int, str, str]:
        """What measured and predicted rows of one product share."""
        return str(self.layer), self.m, self.weight, self.system

    @property
    def published(self) -> str:
        """The best published time of a quantized product of this shape on a device, or nothing."""
        found: Measured | None = best_published(self.facts.get("device", ""), self.weight, self.m, *self._shape)
        return "" if found is None else f"{found.microseconds:g} ({found.system})"

    @property
    def _shape(self) -> tuple[int, int]:
        return self.layer.n, self.layer.k

    def record(self) -> dict[str, Any]:
        """Return the row as JSON has it."""
        return {
            "model": self.layer.model, "layer": self.layer.name, "n": self.layer.n, "k": self.layer.k, "m": self.m,
            "weight": self.weight, "system": self.system, "microseconds": round(self.microseconds, 3),
            "floor": round(self.floor, 3), "terabytes": self.terabytes, "predicted": self.predicted, **self.facts,
        }  # fmt: skip


def read_row(record: dict[str, Any]) -> Row:
    """Return the row of a record."""
    known = {"model", "layer", "n", "k", "m", "weight", "system", "microseconds", "floor", "terabytes", "predicted"}
    layer = Layer(record["model"], record["layer"], record["n"], record["k"])
    facts = {name: value for name, value in record.items() if name not in known}
    return Row(
        layer, record["m"], record["weight"], record["system"], record["microseconds"], record["floor"],
        record["terabytes"],        record["predicted"], facts,
    )  # fmt: skip


def table(rows: Sequence[Row], measured: Sequence[Row] = ()) -> list[dict[str, Any]]:
    """Return rows to print; where a prediction was measured too, with its error."""
    known = {row.key: row for row in measured}
    found = []
    for row in rows:
        line: dict[str, Any] = {
            "layer": str(row.layer), "N": row.layer.n, "K": row.layer.k, "M": row.m, "weight": row.weight,
            "system": row.system, "predicted us" if row.predicted else "us": round(row.microseconds, 1),
            "floor us": round(row.floor, 1), "of floor": f"{row.floor / row.microseconds:.0%}",
            "bound": row.facts.get("bound", ""), "configuration": row.facts.get("configuration", ""),
        }  # fmt: skip
        if row.predicted:
            line["published us"] = row.published
        if known:
            match = known.get(row.key)
            line["measured us"] = "" if match is None else f"{match.microseconds:.1f}"
            line["error"] = "" if match is None else f"{row.microseconds / match.microseconds - 1:+.0%}"
        found.append(line)
    return found
