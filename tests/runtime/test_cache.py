"""The disk cache: whole entries or none, whoever else uses it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilus.runtime import cache
from tilus.runtime.knobs import knobs

FILES = {"kernel.cubin": bytes(range(256)) * 40, "kernel.ptx": b".version 9.0\n", "empty": b""}
KEY = cache.cache_key(ir="program", target="sm_80")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILUS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("TILUS_ALWAYS_COMPILE", raising=False)
    return tmp_path / "cache"


def entry(folder: Path, key: str = KEY) -> Path:
    return folder / key[:2] / key


def test_what_is_put_is_got(folder: Path) -> None:
    assert cache.get(KEY, list(FILES)) is None
    cache.put(KEY, FILES)
    assert cache.get(KEY, list(FILES)) == FILES
    assert cache.get(KEY, ["kernel.ptx"]) == {"kernel.ptx": FILES["kernel.ptx"]}
    assert cache.get(KEY, ["kernel.ptx", "kernel.ll"]) is None
    assert cache.get(cache.cache_key(ir="other"), ["kernel.ptx"]) is None
    assert [path.name for path in entry(folder).parent.iterdir()] == [KEY]  # nothing pending stays


def test_a_second_put_replaces_the_first() -> None:
    cache.put(KEY, FILES)
    cache.put(KEY, {"kernel.ll": b"new"})
    assert cache.get(KEY, ["kernel.ll"]) == {"kernel.ll": b"new"}
    assert cache.get(KEY, ["kernel.ptx"]) is None


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "append", "folder"])
def test_damage_is_seen_and_repaired(folder: Path, name: str, damage: str) -> None:
    cache.put(KEY, FILES)
    path = entry(folder) / name
    data = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if data else b"x")
    elif damage == "append":
        path.write_bytes(data + b"}")
    else:
        path.unlink()
        if damage == "folder":
            path.mkdir()
    if (name, damage) != ("empty", "truncate"):
        assert cache.get(KEY, list(FILES)) is None
    cache.put(KEY, FILES)
    assert cache.get(KEY, list(FILES)) == FILES


@pytest.mark.parametrize("manifest", ["[]", "null", "{}", '{"kernel.ptx": 3}', "\xff"])
def test_a_manifest_of_another_form(folder: Path, manifest: str) -> None:
    cache.put(KEY, FILES)
    (entry(folder) / "manifest.json").write_bytes(manifest.encode("latin-1"))
    assert cache.get(KEY, ["kernel.ptx"]) is None


def test_a_file_where_an_entry_should_be(folder: Path) -> None:
    entry(folder).parent.mkdir(parents=True)
    entry(folder).write_text("not a folder")
    assert cache.get(KEY, ["kernel.ptx"]) is None
    cache.put(KEY, FILES)
    assert cache.get(KEY, list(FILES)) == FILES


def test_always_compile_reads_nothing_but_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    with knobs.scope(always_compile=True):
        cache.put(KEY, FILES)
        assert cache.get(KEY, list(FILES)) is None
    assert cache.get(KEY, list(FILES)) == FILES
    monkeypatch.setenv("TILUS_ALWAYS_COMPILE", "1")
    assert cache.get(KEY, list(FILES)) is None


def test_size_and_clear(folder: Path) -> None:
    assert cache.size() == 0
    cache.clear()
    cache.put(KEY, FILES)
    manifest = (entry(folder) / "manifest.json").stat().st_size
    assert cache.size() == sum(map(len, FILES.values())) + manifest
    left, writing = (folder / KEY[:2] / f"pending-{name}" for name in ("left-by-a-crash", "being-written"))
    left.mkdir()
    writing.mkdir()
    os.utime(left, (0, 0))
    cache.clear()
    assert cache.size() == 0
    assert cache.get(KEY, list(FILES)) is None
    assert not any(path.is_file() for path in folder.rglob("*"))
    assert list(folder.rglob("pending-*")) == [writing]


def test_an_unwritable_folder_warns_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("TILUS_CACHE_DIR", str(blocked / "cache"))
    with pytest.warns(RuntimeWarning, match="compiled kernels are not kept: .*set TILUS_CACHE_DIR"):
        cache.put(KEY, FILES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put(KEY, FILES)
        assert cache.get(KEY, list(FILES)) is None
        assert cache.size() == 0
        cache.clear()


def test_a_full_disk_keeps_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        cache.put(KEY, FILES)
    assert not any(path.is_file() for path in folder.rglob("*"))


def test_entries_are_for_their_owner_only(folder: Path) -> None:
    cache.put(KEY, FILES)
    assert entry(folder).parent.stat().st_mode & 0o077 == 0
    assert entry(folder).stat().st_mode & 0o077 == 0


def test_key_depends_on_every_part_and_nothing_else() -> None:
    parts = {"ir": "p", "target": "sm_80", "versions": "nvrtc 13.0", "compiler": "abc"}
    key = cache.cache_key(**parts)
    assert len(key) == 64
    assert key == cache.cache_key(**dict(reversed(parts.items())))
    others = {cache.cache_key(**{**parts, name: text + "x"}) for name, text in parts.items()}
    assert len(others | {key}) == 5
    assert cache.cache_key(**parts, options="") != key


texts = st.dictionaries(st.sampled_from(["a", "b", "ab", "ba"]), st.text("ab", max_size=3))


@given(texts, texts)
def test_different_parts_have_different_keys(a: dict[str, str], b: dict[str, str]) -> None:
    assert (cache.cache_key(**a) == cache.cache_key(**b)) == (a == b)


def test_fingerprint_follows_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "tilus"
    (root / "codegen").mkdir(parents=True)
    emitter = root / "codegen" / "emit.py"
    emitter.write_text("a = 1\n")
    monkeypatch.setattr(cache, "PACKAGE", root)

    def key() -> str:
        cache._fingerprint.cache_clear()  # as a new process would begin
        return cache.cache_key(ir="program", compiler=cache.fingerprint())

    first = key()
    stamp = emitter.stat()
    emitter.write_text("a = 2\n")  # the same size and, below, the same time
    os.utime(emitter, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    second = key()
    (root / "more.py").write_text("")
    third = key()
    (root / "more.py").rename(root / "moor.py")
    fourth = key()
    assert len({first, second, third, fourth}) == 4
    emitter.write_text("a = 1\n")
    (root / "moor.py").unlink()
    (root / "notes.txt").write_text("no source")
    assert key() == first


def test_fingerprint_of_this_package_is_fast_and_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.fingerprint() == cache.fingerprint()
    copy = tmp_path / "copy"
    shutil.copytree(cache.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cache, "PACKAGE", copy)
    start = time.perf_counter()
    before = cache.fingerprint()
    assert time.perf_counter() - start < 1  # some ms on an idle machine
    with (copy / "errors.py").open("a") as file:
        file.write("# changed\n")
    cache._fingerprint.cache_clear()
    assert cache.fingerprint() != before


RACER = """
import sys
from tilus.runtime import cache
me, rounds = sys.argv[1].encode(), int(sys.argv[2])
seen = set()
for _ in range(rounds):
    cache.put("ab" * 32, {"a": me * 5000, "b": me * 3})
    found = cache.get("ab" * 32, ["a", "b"])
    if found is not None:
        assert found["a"] == found["b"][:1] * 5000 and len(found["b"]) == 3, "a mixed entry"
        seen.add(found["b"][:1].decode())
print("".join(sorted(seen)))
"""


def test_processes_race_and_never_see_a_mixture(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(cache.PACKAGE.parent), "PYTHONWARNINGS": "error"}
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, who, "150"], stdout=subprocess.PIPE, text=True, env=environment)
        for who in "xy"
    ]
    outputs = [racer.communicate(timeout=120)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert all(output.strip() for output in outputs)
    assert cache.get("ab" * 32, ["a", "b"]) is not None
    assert not list(folder.rglob("pending-*"))


def test_threads_race_with_clearing() -> None:
    def work(number: int) -> None:
        for _ in range(30):
            data = bytes([number]) * 1000
            cache.put(KEY, {"a": data, "b": data[:10]})
            found = cache.get(KEY, ["a", "b"])
            assert found is None or found["a"][:10] == found["b"]
            if number == 0:
                cache.clear()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(work, range(3)))


def test_manifest_is_plain_json(folder: Path) -> None:
    cache.put(KEY, FILES)
    assert json.loads((entry(folder) / "manifest.json").read_text()).keys() == FILES.keys()


def used(folder: Path, key: str, seconds_ago: float) -> None:
    moment = time.time() - seconds_ago
    os.utime(entry(folder, key) / "manifest.json", (moment, moment))


def test_what_was_used_least_recently_goes_first(folder: Path) -> None:
    keys = [cache.cache_key(number=str(i)) for i in range(6)]
    for age, key in enumerate(keys):
        cache.put(key, {"data": bytes(300_000)})
        used(folder, key, 1000 + age)
    with knobs.scope(cache_size=2):
        cache.trim()
        assert all(cache.get(key, ["data"]) for key in keys)  # 1.8 MB fit
    for age, key in enumerate(keys):
        used(folder, key, 1000 + age)
    assert cache.get(keys[4], ["data"])  # a read is a use
    with knobs.scope(cache_size=1):
        cache.trim()
    assert [i for i, key in enumerate(keys) if entry(folder, key).exists()] == [0, 4]
    assert cache.size() < 1 << 20


def test_writing_trims(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_TRIM_EVERY", 1)
    with knobs.scope(cache_size=1):
        for i in range(8):
            cache.put(cache.cache_key(number=str(i)), {"data": bytes(300_000)})
            assert cache.size() < 1 << 20
        assert cache.get(cache.cache_key(number="7"), ["data"]) is not None


def test_a_kernel_larger_than_the_cache_is_not_kept(folder: Path) -> None:
    with knobs.scope(cache_size=1):
        cache.put(KEY, {"data": bytes(2_000_000)})
        cache.trim()
        assert cache.get(KEY, ["data"]) is None
