"""Compiled kernels on disk: folders of files, named by everything that what they hold depends on.

An entry appears whole or not at all: it is written beside its place and renamed. Every file has a checksum, so that an
entry cut short by a full disk or a power loss counts as absent and is built again. Any number of processes and threads
may use one cache; at worst two of them build the same entry. Where the folder cannot be written, everything works
without a cache, and a warning says so once. What was used least recently goes when the knob `cache_size` is exceeded.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from tilus.runtime.knobs import knobs

PACKAGE = Path(__file__).parent.parent
CHOICES = "tuning"  # a folder beside the entries: which of several kernels is to run
_MANIFEST = "manifest.json"
_PENDING = "pending-"  # folders that are being written, or removed
_STALE_SECONDS = 3600  # a writer that has not finished by then never will
_ATTEMPTS = 3
_TRIM_EVERY = 64  # entries written by a process: it takes a look at all files
_KEPT = 0.75  # of the limit, so that not every look finds it exceeded
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EACCES)  # the last one is Windows'
_warned: set[Path] = set()
_written = itertools.count()


def cache_key(**parts: str) -> str:
    """Return the key of what depends on some named texts: 64 hexadecimal digits.

    Parts are the program's text, the target, options, versions, `fingerprint()`. No two different sets of named texts
    share a key: names and texts are framed by their lengths.
    """
    digest = hashlib.sha256()
    for name, text in sorted(parts.items()):
        _frame(digest, name.encode(), text.encode())
    return digest.hexdigest()


def fingerprint() -> str:
    """Return a digest of the compiler's own source: the name and contents of every Python file of the package.

    Read once per process, which runs the source it has loaded.
    """
    return _fingerprint(PACKAGE)


@lru_cache(maxsize=8)
def _fingerprint(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        _frame(digest, path.relative_to(root).as_posix().encode(), path.read_bytes())
    return digest.hexdigest()


def _frame(digest: hashlib._Hash, *texts: bytes) -> None:
    for text in texts:
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text)


def get(key: str, names: Sequence[str]) -> dict[str, bytes] | None:
    """Return the named files of an entry; None if there is no such entry, or if any of it is damaged or missing.

    What is damaged stays until `put` replaces it. With the knob `always_compile` there are no entries.
    """
    if knobs.always_compile:
        return None
    entry = _entry(key)
    try:
        sums: dict[str, str] = json.loads((entry / _MANIFEST).read_bytes())
        files = {name: (entry / name).read_bytes() for name in names}
        whole = all(_checksum(data) == sums.get(name) for name, data in files.items())
    except (OSError, ValueError, AttributeError):
        return None
    if not whole:
        return None
    with suppress(OSError):  # a cache that may only be read is never trimmed
        os.utime(entry / _MANIFEST)
    return files


def put(key: str, files: Mapping[str, bytes]) -> None:
    """Keep files as the entry `key`, in place of what was there."""
    entry = _entry(key)
    try:
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        pending = Path(tempfile.mkdtemp(prefix=_PENDING, dir=entry.parent))
    except OSError as error:
        _warn(error)
        return
    try:
        for name, data in files.items():
            (pending / name).write_bytes(data)
        sums = {name: _checksum(data) for name, data in files.items()}
        (pending / _MANIFEST).write_text(json.dumps(sums))
        _publish(pending, entry)
    except OSError as error:
        _warn(error)
    finally:
        shutil.rmtree(pending, ignore_errors=True)
    if next(_written) % _TRIM_EVERY == 0:
        trim()


def trim() -> None:
    """Remove the entries that were not used for longest, if all together exceed the knob `cache_size`."""
    limit = knobs.cache_size << 20
    found = sorted(((_modified(entry / _MANIFEST), entry) for entry in _entries()), reverse=True)
    total, full = 0, False
    sizes = [(entry, _entry_size(entry)) for _, entry in found]
    if sum(size for _, size in sizes) <= limit:
        return
    for entry, size in sizes:  # the newest first
        total += size
        full |= total > _KEPT * limit
        if full:
            _discard(entry)


def _publish(pending: Path, entry: Path) -> None:
    """Rename a finished folder to its place; whoever else does so at the same time has built the same."""
    for _ in range(_ATTEMPTS):
        try:
            os.replace(pending, entry)
            return
        except OSError as error:
            if error.errno not in _OCCUPIED:
                raise
            _discard(entry)


def clear() -> None:
    """Remove all entries, the choices made of them, and what crashed writers left behind."""
    shutil.rmtree(knobs.cache_dir / CHOICES, ignore_errors=True)
    for entry in _entries():
        _discard(entry)
    for pending in knobs.cache_dir.glob(f"??/{_PENDING}*"):
        if time.time() - _modified(pending) > _STALE_SECONDS:
            shutil.rmtree(pending, ignore_errors=True)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # finished meanwhile
        return time.time()


def size() -> int:
    """Return how many bytes the files of all entries have."""
    return sum(map(_entry_size, _entries()))


def _entry_size(entry: Path) -> int:
    try:
        return sum(map(_size, entry.iterdir()))
    except OSError:  # removed meanwhile
        return 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # removed meanwhile
        return 0


def _entry(key: str) -> Path:
    return knobs.cache_dir / key[:2] / key


def _entries() -> Iterator[Path]:
    return (path for path in knobs.cache_dir.glob("??/*") if not path.name.startswith(_PENDING) and path.is_dir())


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _discard(entry: Path) -> None:
    """Remove an entry so that nobody sees it in part: rename it, then delete it."""
    try:
        with tempfile.TemporaryDirectory(prefix=_PENDING, dir=entry.parent, ignore_cleanup_errors=True) as trash:
            os.replace(entry, Path(trash) / entry.name)
    except FileNotFoundError:  # somebody else was faster
        return
    except OSError as error:
        _warn(error)


def _warn(error: OSError) -> None:
    folder = knobs.cache_dir
    if folder not in _warned:
        _warned.add(folder)
        warnings.warn(
            f"compiled kernels are not kept: {folder} cannot be written ({error.strerror or error}); "
            "set TILUS_CACHE_DIR to a folder that can",
            RuntimeWarning,
            stacklevel=3,
        )
