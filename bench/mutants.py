"""Claim: the tests of the library's kernels notice 99 of 100 wrong PTX instructions.

Every mutant of every kernel in `tests/simt/subjects.py` (one instruction dropped, changed or moved) runs on the PTX
machine at all its shapes until it dies. What lives is excused if traces show that it makes no difference, or listed
with a reason. Takes an hour; a kernel whose instructions are the same on both architectures is run once. Writes
`mutants.json` after each kernel, whose rows replace those of an earlier run, and `mutants.md` in the end.
`tests/simt/test_mutants.py` runs a sample.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence

from record import RESULTS, ROOT, write
from rich.console import Console
from rich.progress import track

sys.path.insert(0, str(ROOT))
from tests.simt.mutants import Subject
from tests.simt.subjects import ARCHES, SUBJECTS, listed, subject
from tests.simt.sweep import Outcome, outcomes

Row = dict[str, object]
_BATCH = 200  # mutants that share a run of the kernel


def run(one: Subject, archs: Sequence[str], every: int) -> list[Row]:
    """Run every mutant of a kernel, or every so many; return a row for each."""
    mutants = one.mutants()[::every]
    batches = [mutants[i : i + _BATCH] for i in range(0, len(mutants), _BATCH)]
    console = Console(stderr=True)
    found: list[Outcome] = []
    for batch in track(batches, one.name, console=console, disable=not sys.stderr.isatty()):
        found += outcomes(one, batch)
    rows: list[Row] = [
        {"kernel": one.name, "archs": ", ".join(archs), "every": every, "kind": mutant.kind, "line": mutant.before.line,
         "mutant": mutant.text, "killer": killer, "equivalent": excuse, "count": 1}
        for mutant, (killer, excuse) in zip(mutants, found, strict=True)
    ]  # fmt: skip
    return condensed(rows)


def condensed(rows: Sequence[Row]) -> list[Row]:
    """Return rows of which those that are dead or excused in the same way are one, with their count."""
    found: dict[tuple[object, ...], Row] = {}
    for row in rows:
        settled = {"line": 0, "mutant": ""} if row["killer"] or row["equivalent"] else {}
        one = {**row, **settled, "count": 0}
        same = found.setdefault(tuple(one.values()), one)
        same["count"] = _count(same) + _count(row)
    return list(found.values())


def _count(row: Row) -> int:
    return int(str(row["count"]))


def run_again(one: Subject, rows: Sequence[Row]) -> list[Row]:
    """Run what lived in an earlier run, and correct its rows; return all."""
    alive = {(r["kind"], r["line"], r["mutant"]): r for r in rows if not r["killer"] and not r["equivalent"]}
    mutants = [m for m in one.mutants() if (m.kind, m.before.line, m.text) in alive]
    for mutant, (killer, excuse) in zip(mutants, outcomes(one, mutants), strict=True):
        alive[mutant.kind, mutant.before.line, mutant.text].update(killer=killer, equivalent=excuse)
    return condensed(rows)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", default=",".join(SUBJECTS), help="names, with commas between; none: only the page")
    parser.add_argument("--every", type=int, default=1, help="run one mutant of so many")
    parser.add_argument("--alive", action="store_true", help="run again only what lived in the run of the result file")
    parser.add_argument("--no-write", action="store_true", help="write no result files")
    options = parser.parse_args()
    file = RESULTS / "mutants.json"
    rows: list[Row] = json.loads(file.read_text())["rows"] if file.exists() and not options.no_write else []
    for name in filter(None, options.kernels.split(",")):
        before = [r for r in rows if r["kernel"] == name]
        rows = [r for r in rows if r["kernel"] != name]
        for one, archs in _distinct(name):
            mine = [r for r in before if r["archs"] == ", ".join(archs)]
            found = run_again(one, mine) if options.alive else run(one, archs, options.every)
            rows += found
            print(_line(name, str(found[0]["archs"]), found), flush=True)
            if not options.no_write:
                write("mutants", {}, rows, dated=False)
    if not options.no_write:
        (RESULTS / "mutants.md").write_text(report(rows))


def _distinct(name: str) -> list[tuple[Subject, list[str]]]:
    """Return a kernel for each architecture, or for several on which its instructions are the same."""
    found: list[tuple[Subject, list[str]]] = []
    for arch in ARCHES:
        one = subject(name, arch)
        same = next((archs for other, archs in found if other.code == one.code), None)
        if same is None:
            found.append((one, [arch]))
        else:
            same.append(arch)
    return found


# --- the page ---------------------------------------------------------------------------------------------------------


def _score(rows: Sequence[Row]) -> tuple[int, int, int, float]:
    """Return mutants, killed, equivalent, and the share of those not equivalent that were killed."""
    total, killed, same = (sum(_count(r) for r in rows if r.get(key, True)) for key in ("", "killer", "equivalent"))
    return total, killed, same, killed / max(total - same, 1)


def _reason(row: Row) -> str:
    return listed(str(row["kernel"]), str(row["kind"]), str(row["mutant"]))


def _line(name: str, archs: str, rows: Sequence[Row]) -> str:
    total, killed, same, score = _score(rows)
    named = sum(bool(_reason(r)) * _count(r) for r in rows if not r["killer"] and not r["equivalent"])
    shares = sorted({int(str(r["every"])) for r in rows})
    tried = ", ".join(f"one of {every}" if every > 1 else "all" for every in shares)
    cells = (name, archs, tried, total, killed, same, total - killed - same, named, f"{score:.2%}")
    return f"| {' | '.join(map(str, cells))} |"


_HEAD = """# Mutants of the library's kernels

Written by `python bench/mutants.py`. One PTX instruction is dropped, changed or moved; the kernel runs on the PTX
machine at all shapes of `tests/simt/subjects.py`. *killed*: by a finding, an error, or a bit of the results.
*equivalent*: traces of both show no difference that reaches memory, or no launch comes there. *survivors*: the rest,
*listed* if the reason is known. *score*: killed, of all that are not equivalent. *tried*: which mutants were run.

| kernel | architectures | tried | mutants | killed | equivalent | survivors | listed | score |
|---|---|---|---|---|---|---|---|---|
"""
_KINDS = """
## By kind of change

| kind | mutants | killed | equivalent | survivors | killed by |
|---|---|---|---|---|---|
"""


def report(rows: Sequence[Row]) -> str:
    """Return the page."""
    lines = []
    for name, archs in dict.fromkeys((str(r["kernel"]), str(r["archs"])) for r in rows):
        lines.append(_line(name, archs, [r for r in rows if (r["kernel"], r["archs"]) == (name, archs)]))
    text = _HEAD + "\n".join([*lines, _line("**all**", "", rows)]) + "\n" + _KINDS
    text += "\n".join(_of_kind(kind, rows) for kind in sorted({str(r["kind"]) for r in rows}))
    alive = [r for r in rows if not r["killer"] and not r["equivalent"]]
    listing = [f"* {r['kernel']}: `{r['mutant']}`: {_reason(r) or 'no reason is known'}" for r in alive]
    text += "\n\n## Survivors\n\n" + "\n".join(listing or ["None."])
    text += "\n\n## Equivalent mutants, by reason\n\n| reason | mutants |\n|---|---|\n"
    return text + "\n".join(f"| {reason} | {count} |" for reason, count in _counts("equivalent", rows)) + "\n"


def _counts(key: str, rows: Sequence[Row]) -> list[tuple[str, int]]:
    """Return how many mutants have what, most first."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update({str(row[key]): _count(row)} if row[key] else {})
    return counts.most_common()


def _of_kind(kind: str, rows: Sequence[Row]) -> str:
    some = [r for r in rows if r["kind"] == kind]
    total, killed, same, _ = _score(some)
    killers = ", ".join(f"{name} {count}" for name, count in _counts("killer", some))
    return f"| {kind} | {total} | {killed} | {same} | {total - killed - same} | {killers} |"


if __name__ == "__main__":
    main()
