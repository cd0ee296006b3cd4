"""What every test may use: golden files, Hypothesis profiles, and the choice of GPU tests."""

from __future__ import annotations

import ctypes
import gc
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent

# Before anything loads them: threads of NumPy's and torch's own spin where they wait for one another, and the cores
# are taken by the processes of this run.
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

# A shared machine is slow at random: time is not what a law is about.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, print_blob=True)
# pytest --hypothesis-profile=long: for a night, or a change of the compiler's core.
settings.register_profile("long", parent=settings.get_profile("default"), max_examples=5000, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session", autouse=True)
def cache_of_kernels(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep compiled kernels out of the user's cache; a run that names a folder keeps them there from run to run.

    The processes of one run share a folder: what one has compiled the others need not.
    """
    run = tmp_path_factory.getbasetemp()
    run = run.parent if "PYTEST_XDIST_WORKER" in os.environ else run
    os.environ.setdefault("TILUS_CACHE_DIR", str(run / "kernels"))


@pytest.fixture(autouse=True)
def same_data_in_any_order() -> None:
    from tests.random_data import begin_anew

    begin_anew()


@pytest.fixture
def slim_facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Let configurations for GPUs be ranked by facts of no machine code, so that nothing is compiled."""
    from tests.kernels.test_model import SLIM
    from tilus.kernels import ranking

    monkeypatch.setenv("TILUS_CACHE_DIR", str(tmp_path))

    def facts(configuration, form, target):
        return replace(SLIM, flops=2 * 32 * SLIM.weights * configuration["BM"])  # no fewer than the products take

    monkeypatch.setattr(ranking, "code_facts", facts)
    ranking.ranked.cache_clear()
    yield
    ranking.ranked.cache_clear()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files instead of comparing")


def has_gpu() -> bool:
    """Whether the CUDA driver is there and sees a device; asked without importing any CUDA library."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none, and long tests unless `-m` names them."""
    out = {item for item in items if item.get_closest_marker("long")} if not asks_for(config, "long") else set()
    on_gpu = {item for item in items if item.get_closest_marker("gpu")}
    if on_gpu and not has_gpu():
        out |= on_gpu
    if out:
        config.hook.pytest_deselected(items=list(out))
        items[:] = [item for item in items if item not in out]


def asks_for(config: pytest.Config, marker: str) -> bool:
    """Whether the expression after `-m` names a marker."""
    return re.search(rf"\b{marker}\b", config.option.markexpr) is not None


def pytest_collection_finish() -> None:
    """Keep the collector off what stays until the end; tests make many small objects, nearly none in cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


@dataclass
class Golden:
    """The expected text of one test, kept in `tests/golden/<module>/<test>.txt`."""

    stem: Path
    update: bool
    used: set[Path] = field(default_factory=set)

    def check(self, text: str, part: str = "") -> None:
        """Compare `text` with the golden file; `part` names one of several texts of the same test."""
        path = self.stem.with_name(self.stem.name + (f".{part}" if part else "") + ".txt")
        assert path not in self.used, f"{path.name} was checked twice in one test: give each text its own part="
        self.used.add(path)
        if not text.endswith("\n"):
            text += "\n"
        if self.update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        assert path.exists(), f"no golden file {path}: run pytest --update-golden and review the new file"
        assert text == path.read_text(encoding="utf-8"), (
            f"text differs from {path}: if the change is meant, run pytest --update-golden and review the diff"
        )


def golden_stem(test_file: Path, test_name: str) -> Path:
    """Where the golden files of a test lie, without part and suffix."""
    module = test_file.relative_to(TESTS).with_suffix("")
    return TESTS / "golden" / module / re.sub(r"[^A-Za-z0-9_.=+-]+", "-", test_name).strip("-")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(golden_stem(request.path, request.node.name), request.config.getoption("--update-golden"))
