"""What every benchmark shares: quiet timing, and a result file that says on what, with what and how it was made."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "llvmlite", "torch", "onnxruntime", "nvidia-cuda-nvrtc", "nvidia-cuda-nvdisasm", "cupy-cuda13x")
FOREIGN = 0.1  # of one core: a burst during which other processes took more is measured again
ATTEMPTS = 4
PAUSE = 2.0  # seconds before the next attempt, while patience lasts


@dataclass(frozen=True, slots=True)
class Timing:
    """Median time of a call, and how disturbed the measurement was.

    Attributes
    ----------
    seconds : float
    spread : float
        Greatest burst to least.
    noisy : int
        Bursts for which no quiet moment was found.
    """

    seconds: float
    spread: float
    noisy: int


class Stopwatch:
    """Bursts of calls of one function; several stopwatches take turns, so that all see the same machine."""

    patience = 240.0  # seconds that all stopwatches together may wait for others to finish

    def __init__(self, call: Callable[[], object], burst_seconds: float) -> None:
        self.call = call
        call()
        begin = time.perf_counter()
        call()
        self.calls = max(1, round(burst_seconds / (time.perf_counter() - begin)))
        self.bursts: list[float] = []
        self.noisy = 0

    def measure(self) -> None:
        """Run one burst, again where others used the CPU meanwhile."""
        best = (float("inf"), float("inf"))
        for _ in range(ATTEMPTS):
            time.sleep(0.02)  # threads of another library may still be spinning
            best = min(best, self._burst())
            if best[0] <= FOREIGN:
                break
            if Stopwatch.patience > 0:
                Stopwatch.patience -= PAUSE
                time.sleep(PAUSE)
        self.noisy += best[0] > FOREIGN
        self.bursts.append(best[1])

    def _burst(self) -> tuple[float, float]:
        busy, own, begin = _busy_seconds(), time.process_time(), time.perf_counter()
        for _ in range(self.calls):
            self.call()
        seconds = time.perf_counter() - begin
        foreign = _busy_seconds() - busy - (time.process_time() - own)
        return foreign / seconds, seconds / self.calls

    @property
    def timing(self) -> Timing:
        """What was measured."""
        return Timing(median(self.bursts), max(self.bursts) / min(self.bursts), self.noisy)


def take_turns(stopwatches: Sequence[Stopwatch], rounds: int) -> None:
    """Measure all stopwatches, one burst each per round."""
    for _ in range(rounds):
        for stopwatch in stopwatches:
            stopwatch.measure()


def _busy_seconds() -> float:
    """Return the time all CPUs together were busy since the start; 0 where the system does not say."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields[:8])
    ticks = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq + steal) / ticks


def cpu_name() -> str:
    """Return the CPU's name with what tells apart models of one name."""
    try:
        facts = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    except OSError:
        return platform.processor() or platform.machine()
    return f"{facts.get('model name', platform.machine())} family {facts.get('cpu family')} model {facts.get('model')}"


def last_level_cache() -> int:
    """Return the bytes of the last-level cache; 64 MiB where the system does not say."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return max((int(text[:-1]) * units[text[-1]] for text in sizes), default=64 << 20)


def write(name: str, settings: dict[str, object], rows: Sequence[dict[str, object]], *, dated: bool = True) -> Path:
    """Write a result file into `bench/results`; a dated one names the CPU and the day."""
    record = {"claim": name, **provenance(), "settings": settings, "rows": list(rows)}
    host = re.sub(r"[^A-Za-z0-9]+", "-", cpu_name()).strip("-")
    path = RESULTS / (f"{name}-{host}-{record['date']}.json" if dated else f"{name}.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def provenance() -> dict[str, object]:
    """Return when, where, with what and how a result is made."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {
            "cpu": cpu_name(),
            "threads": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": _commit(),
        "command": f"python {shlex.join([Path(sys.argv[0]).as_posix(), *sys.argv[1:]])}",
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "-"
    return found


def _commit() -> str:
    """Return the commit that is checked out, marked where the compiler's source differs from it."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "tilus"], capture_output=True, text=True, check=False)
    return (commit.stdout.strip() or "unknown") + (" with changes" if changed.stdout.strip() else "")
