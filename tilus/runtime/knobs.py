"""The settings a user may turn: environment variables, read when asked for, and overrides that end with a block.

    with tilus.knobs.scope(target="vm"):
        kernel(x, y)            # runs on the reference machine

=========================  ====================  =========================================================
variable                   knob                  meaning
=========================  ====================  =========================================================
`TILUS_TARGET`             `target`              target of every call: `vm`, `cpu`, `sm_80`, `simt:sm_90a`, ...
`TILUS_CACHE_DIR`          `cache_dir`           folder of compiled kernels, `~/.cache/tilus` by default
`TILUS_CACHE_SIZE`         `cache_size`          MiB that the cache may fill, 2048 by default: the oldest kernels go
`TILUS_ALWAYS_COMPILE`     `always_compile`      compile even what the cache has
`TILUS_DUMP_DIR`           `dump_dir`            write every stage of every compilation into this folder
`TILUS_TUNE`               `tune`                time the best configurations of a product on the GPU, once
`TILUS_PRINT_AUTOTUNING`   `print_autotuning`    print what the tuner tries and picks
`TILUS_CPU_ACTIVATIONS`    `cpu_activations`     by weights of integers a CPU multiplies in f32: `exact`, or in 16-bit
                                                 integers: `fixed16`; `auto`, the default, is `exact` for f32 only
`TILUS_DEPENDENT_LAUNCH`   `dependent_launch`    start a kernel while the one before it ends, where `sm_90a` can;
                                                 on by default
=========================  ====================  =========================================================
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tilus.errors import TilusError
from tilus.ir.target import BY_NAME

T = TypeVar("T")

_OVERRIDES: ContextVar[Mapping[str, Any] | None] = ContextVar("tilus_knobs", default=None)
CPU_ACTIVATIONS = ("auto", "exact", "fixed16")
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Knob(Generic[T]):
    """One setting.

    Attributes
    ----------
    variable : str
        Environment variable; an empty one counts as unset.
    check : callable
        Turns text or a value given in Python into the setting's type, or raises `ValueError` with what is expected.
    default : callable
        Value where nothing is set.
    """

    variable: str
    check: Callable[[Any], T]
    default: Callable[[], T]


def _target(value: Any) -> str | None:
    if value is None or value in BY_NAME:
        return value  # type: ignore[no-any-return]
    raise ValueError(f"one of {', '.join(BY_NAME)}")


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _BOOLEANS:
        return _BOOLEANS[value.lower()]
    raise ValueError("1 or 0")


def _folder(value: Any) -> Path:
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError("the path of a folder")
    path = Path(value).expanduser()
    if path.exists() and not path.is_dir():
        raise ValueError("the path of a folder, not of a file")
    return path


def _optional_folder(value: Any) -> Path | None:
    return None if value is None else _folder(value)


def _size(value: Any) -> int:
    text = str(value)
    if isinstance(value, bool) or not text.isdecimal() or int(text) == 0:
        raise ValueError("a number of MiB from 1 on")
    return int(text)


def _activations(value: Any) -> str:
    if value in CPU_ACTIVATIONS:
        return str(value)
    raise ValueError(f"one of {', '.join(CPU_ACTIVATIONS)}")


def user_cache_folder() -> Path:
    """Return where this platform keeps what programs may lose and make again."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "tilus"


_TARGET: Knob[str | None] = Knob("TILUS_TARGET", _target, lambda: None)
_CACHE_DIR: Knob[Path] = Knob("TILUS_CACHE_DIR", _folder, user_cache_folder)
_CACHE_SIZE: Knob[int] = Knob("TILUS_CACHE_SIZE", _size, lambda: 2048)
_ALWAYS_COMPILE: Knob[bool] = Knob("TILUS_ALWAYS_COMPILE", _boolean, lambda: False)
_DUMP_DIR: Knob[Path | None] = Knob("TILUS_DUMP_DIR", _optional_folder, lambda: None)
_TUNE: Knob[bool] = Knob("TILUS_TUNE", _boolean, lambda: False)
_PRINT_AUTOTUNING: Knob[bool] = Knob("TILUS_PRINT_AUTOTUNING", _boolean, lambda: False)
_CPU_ACTIVATIONS: Knob[str] = Knob("TILUS_CPU_ACTIVATIONS", _activations, lambda: "auto")
_DEPENDENT_LAUNCH: Knob[bool] = Knob("TILUS_DEPENDENT_LAUNCH", _boolean, lambda: True)

KNOBS: dict[str, Knob[Any]] = {
    "target": _TARGET,
    "cache_dir": _CACHE_DIR,
    "cache_size": _CACHE_SIZE,
    "always_compile": _ALWAYS_COMPILE,
    "dump_dir": _DUMP_DIR,
    "tune": _TUNE,
    "print_autotuning": _PRINT_AUTOTUNING,
    "cpu_activations": _CPU_ACTIVATIONS,
    "dependent_launch": _DEPENDENT_LAUNCH,
}


def _read(name: str, knob: Knob[T]) -> T:
    overrides = _OVERRIDES.get() or {}
    if name in overrides:
        value: T = overrides[name]
        return value
    text = os.environ.get(knob.variable, "")
    return _checked(knob.variable, knob, text) if text else knob.default()


def _checked(name: str, knob: Knob[T], value: Any) -> T:
    try:
        return knob.check(value)
    except ValueError as error:
        raise TilusError(f"{name} must be {error}, got {value!r}") from None


class Knobs:
    """All settings. Attributes read the innermost scope, then the environment, then the default."""

    __slots__ = ()

    @property
    def target(self) -> str | None:
        """Target of every call, None where the arguments decide."""
        return _read("target", _TARGET)

    @property
    def cache_dir(self) -> Path:
        """Folder of compiled kernels."""
        return _read("cache_dir", _CACHE_DIR)

    @property
    def cache_size(self) -> int:
        """MiB that compiled kernels may take on disk."""
        return _read("cache_size", _CACHE_SIZE)

    @property
    def always_compile(self) -> bool:
        """Whether to compile even what the cache has."""
        return _read("always_compile", _ALWAYS_COMPILE)

    @property
    def dump_dir(self) -> Path | None:
        """Folder that gets every stage of every compilation."""
        return _read("dump_dir", _DUMP_DIR)

    @property
    def tune(self) -> bool:
        """Whether `tilus.matmul` times configurations on a GPU where none was timed yet."""
        return _read("tune", _TUNE)

    @property
    def print_autotuning(self) -> bool:
        """Whether the tuner says what it tries."""
        return _read("print_autotuning", _PRINT_AUTOTUNING)

    @property
    def cpu_activations(self) -> str:
        """How a CPU multiplies activations by weights of integers: `auto`, `exact` or `fixed16`."""
        return _read("cpu_activations", _CPU_ACTIVATIONS)

    @property
    def dependent_launch(self) -> bool:
        """Whether kernels that wait for earlier ones themselves are started before those have ended."""
        return _read("dependent_launch", _DEPENDENT_LAUNCH)

    @contextmanager
    def scope(self, **overrides: Any) -> Iterator[None]:
        """Override knobs within a `with` block, in this thread (or asynchronous task) only.

        Raises
        ------
        TilusError
            If there is no such knob, or if it does not take the value; then nothing is overridden.
        """
        unknown = sorted(overrides.keys() - KNOBS.keys())
        if unknown:
            raise TilusError(f"there is no knob {', '.join(unknown)}", hint=f"there are {', '.join(KNOBS)}")
        checked = {name: _checked(f"knob {name}", KNOBS[name], value) for name, value in overrides.items()}
        token = _OVERRIDES.set({**(_OVERRIDES.get() or {}), **checked})
        try:
            yield
        finally:
            _OVERRIDES.reset(token)

    def __setattr__(self, name: str, value: object) -> None:
        raise TilusError(
            f"knob {name} cannot be assigned",
            hint=f"use `with tilus.knobs.scope({name}=...)`, or set the environment variable",
        )

    def __repr__(self) -> str:
        return f"Knobs({', '.join(f'{name}={getattr(self, name)!r}' for name in KNOBS)})"


knobs = Knobs()
