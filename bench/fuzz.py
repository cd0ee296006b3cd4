"""Claim: the reference machine, generated PTX and compiled CPU code agree to the last bit on random programs.

Draws programs for some minutes and says how many a minute takes. A program about which machines disagree is shrunk and
written to a folder, from where `tests/agreement` runs it as a regression test once it is mended.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
import time
from collections import Counter
from itertools import count
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from record import ROOT, write
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(ROOT))
from tests.agreement.fuzz import ARGUMENTS, KEPT, Case, cases, check

ROUND = 100  # programs for which one state of the generator is used


class Tally:
    """What was run, by kind, and what failed, by the first line of the message."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.ran: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.failed: dict[str, Case] = {}

    def run(self, kind: str, number: int, most: int) -> None:
        """Run one round of a kind."""
        last: list[tuple[str, Case]] = []

        @seed(number)
        @settings(max_examples=most, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                  phases=(Phase.generate, Phase.shrink), report_multiple_bugs=False)  # fmt: skip
        @given(cases(kind))
        def law(case: Case) -> None:
            if time.monotonic() > self.until and not last:
                return
            self.ran[kind] += 1
            try:
                check(case)
            except Exception as error:
                last[:] = [(f"{type(error).__name__}: {_summary(error)}", case)]
                raise

        begin = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            law()
        self.seconds[kind] += time.monotonic() - begin
        self.failed.update(last)


def _summary(error: Exception) -> str:
    """Return the first line of a message that says anything, without numbers."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Arrays are not equal", "Mismatch"))]
    return re.sub(r"\d+", "#", said[0])[:120] if said else ""


def main() -> None:
    """Draw, run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--round", type=int, default=ROUND, help="programs of a round")
    parser.add_argument("--keep", type=Path, default=KEPT, help="where programs that fail go")
    parser.add_argument("--no-write", action="store_true", help="write no result file")
    options = parser.parse_args()
    tally = Tally(time.monotonic() + 60 * options.minutes)
    for number in count(options.seed):
        for kind in ARGUMENTS:
            tally.run(kind, number, options.round)
        if time.monotonic() > tally.until:
            break
    rows: list[dict[str, object]] = [
        {"kind": k, "programs": n, "programs_per_minute": round(60 * n / tally.seconds[k], 1)}
        for k, n in tally.ran.items()
    ]
    table = Table("kind", "programs", "per minute", title=f"{len(tally.failed)} disagreements", title_justify="left")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    for i, (why, case) in enumerate(tally.failed.items()):
        path = options.keep / f"found-{options.seed}-{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(case.text(why))
        print(f"{path}: {why}")
    if not options.no_write:
        write("fuzz", {"minutes": options.minutes, "seed": options.seed, "failed": list(tally.failed)}, rows)
    sys.exit(bool(tally.failed))


if __name__ == "__main__":
    main()
