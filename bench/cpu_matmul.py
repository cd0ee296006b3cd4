"""Claim: on a CPU, products with weights of few bits beat torch's with f32 and bf16 weights at small batch.

Peers take turns in one process; a burst during which other processes used the CPU is measured again. "cold" goes round
copies of the weight that exceed the last-level cache several times, as a model that streams its layers does; "hot" uses
one copy. Every peer's numbers are compared with the float64 product of its own weight before it is timed. Calls include
Python and, where a peer does it, the conversion of activations to 8 bits; peers that take bf16 get bf16 activations.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cpu_peers
import numpy as np
import torch
from cpu_peers import Peer
from record import Stopwatch, last_level_cache, take_turns, write
from rich.console import Console
from rich.table import Table

from tilus.runtime.cpu_pool import set_num_threads

REFERENCES = ("torch float32", "torch bfloat16", "torch int4", "onnxruntime int4, level 4")
MOST_COPIED = 512 << 20  # bytes of a peer's weights: a virtual machine names the whole cache of a server as its own


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table before it is timed."""

    peer: Peer
    error: float
    cold: Stopwatch
    calls: int
    hot: Stopwatch
    hot_calls: int


def main() -> None:
    """Measure, print, write."""
    options = _options()
    weight = np.random.default_rng(0).standard_normal((options.n, options.k), np.float32)
    rows: list[dict[str, object]] = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        set_num_threads(threads)
        peers = list(_peers(weight, options.types, threads))
        for m in options.m:
            found = _measure(peers, m, threads, options)
            rows += found
            _show(found, m, threads, options)
    settings = {name: value for name, value in vars(options).items() if name != "no_write"}
    if not options.no_write:
        path = write("cpu_matmul", settings | {"group": cpu_peers.GROUP}, rows)
        print(f"wrote {path.relative_to(path.parent.parent.parent)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=4096, help="outputs (default 4096)")
    parser.add_argument("--k", type=int, default=4096, help="inputs (default 4096)")
    parser.add_argument("--m", type=_integers, default=[1, 16], help="batches, for instance 1,4,16 (default 1,16)")
    parser.add_argument("--types", type=_words, default=["u4", "u3"], help="our weight types, or `all` for u1 to u8")
    parser.add_argument("--threads", type=_integers, default=[1, 2], help="(default 1,2)")
    parser.add_argument("--rounds", type=int, default=5, help="bursts of each line (default 5)")
    parser.add_argument("--burst", type=float, default=0.1, help="seconds of a burst (default 0.1)")
    parser.add_argument("--no-write", action="store_true", help="write no result file")
    return parser.parse_args()


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _words(text: str) -> list[str]:
    return [f"u{bits}" for bits in range(1, 9)] if text == "all" else text.split(",")


def _peers(weight: np.ndarray, types: Sequence[str], threads: int) -> Iterator[Peer]:
    yield cpu_peers.torch_linear(weight, torch.float32)
    yield cpu_peers.torch_linear(weight, torch.bfloat16)
    yield cpu_peers.torch_int4(weight)
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
        yield cpu_peers.onnxruntime_int4(weight, 0, threads)
        yield cpu_peers.onnxruntime_int4(weight, 4, threads)
    else:
        print("onnxruntime and onnx are not installed: pip install 'tilus-vm[bench]' adds this peer", file=sys.stderr)
    for name in types:
        for activations in ("exact", "fixed16"):
            yield cpu_peers.ours(weight, name, activations)


def _measure(peers: Sequence[Peer], m: int, threads: int, options: argparse.Namespace) -> list[dict[str, object]]:
    x = np.random.default_rng(1).standard_normal((m, options.k), np.float32)
    cases = [_case(peer, x, options.burst) for peer in peers]
    take_turns([case.cold for case in cases], options.rounds)
    take_turns([case.hot for case in cases], options.rounds)
    return [_row(case, m, threads) for case in cases]


def _case(peer: Peer, x: np.ndarray, burst: float) -> Case:
    copies = max(2, -(-min(4 * last_level_cache(), MOST_COPIED) // peer.nbytes))
    cold, calls, result = peer.make(x, copies)
    error = _error(result(), x, peer.weight)
    if not error <= peer.tolerance:
        raise SystemExit(f"{peer.name}: relative error {error:.3g}, expected at most {peer.tolerance:.3g}: not timed")
    hot, hot_calls, _ = peer.make(x, 1)
    return Case(peer, error, Stopwatch(cold, burst), calls, Stopwatch(hot, burst), hot_calls)


def _error(found: np.ndarray, x: np.ndarray, weight: np.ndarray) -> float:
    wanted = x.astype(np.float64) @ weight.T
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def _row(case: Case, m: int, threads: int) -> dict[str, object]:
    cold, hot = case.cold.timing, case.hot.timing
    return {
        "peer": case.peer.name,
        "m": m,
        "threads": threads,
        "cold_ms": 1e3 * cold.seconds / case.calls,
        "hot_ms": 1e3 * hot.seconds / case.hot_calls,
        "weight_megabytes": case.peer.nbytes / 1e6,
        "cold_gigabytes_per_second": case.peer.nbytes / 1e9 / (cold.seconds / case.calls),
        "relative_error": case.error,
        "spread": cold.spread,
        "noisy_bursts": cold.noisy + hot.noisy,
    }


def _show(rows: Sequence[dict[str, object]], m: int, threads: int, options: argparse.Namespace) -> None:
    plural = "s" if threads > 1 else ""
    table = Table(title=f"M={m} N={options.n} K={options.k}, {threads} thread{plural}", title_justify="left")
    times = {str(row["peer"]): row for row in rows}
    references = [name for name in REFERENCES if name in times]
    for name in ("peer", "cold ms", "hot ms", "MB", "GB/s", "error", *(f"vs {name}" for name in references), "noisy"):
        table.add_column(name, justify="left" if name == "peer" else "right")
    for row in rows:
        ratios = (f"{times[name]['cold_ms'] / row['cold_ms']:.2f}" for name in references)  # type: ignore[operator]
        table.add_row(
            str(row["peer"]),
            f"{row['cold_ms']:.3f}",
            f"{row['hot_ms']:.3f}",
            f"{row['weight_megabytes']:.1f}",
            f"{row['cold_gigabytes_per_second']:.1f}",
            f"{row['relative_error']:.1e}",
            *ratios,
            f"{row['noisy_bursts']}/{2 * options.rounds}",
        )
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
