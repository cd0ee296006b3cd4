"""The CPU that code is compiled for: its name, its features, the width of its vectors, and the tag of its object code.

LLVM is imported by the first function that needs it, so that importing this module costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# Cores that lower their clock under 512-bit arithmetic; LLVM tunes them with `prefer-256-bit` (X86.td).
_SLOW_512 = frozenset({"skylake-avx512", "cascadelake", "cooperlake", "cannonlake"})
_AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})


@dataclass(frozen=True, slots=True)
class Cpu:
    """A CPU as LLVM names it.

    Attributes
    ----------
    name : str
        As for `-mcpu`: `znver3`, `skylake`, `x86-64`, ...
    features : str
        As for `-mattr`: `+avx2,-avx512f,...`.
    """

    name: str
    features: str = ""

    def has(self, feature: str) -> bool:
        """Whether the features name `feature` as present."""
        return f"+{feature}" in self.features.split(",")

    @property
    def present(self) -> tuple[str, ...]:
        """The features that the CPU has."""
        return tuple(f[1:] for f in self.features.split(",") if f.startswith("+"))

    @property
    def tuned(self) -> str:
        """The features, and how to use them: `vpdpwssd` is not to be split for its latency, which other sums hide."""
        whole = self.has("avx512vnni") or self.has("avxvnni")
        return f"{self.features},+fast-dpwssd" if whole else self.features

    @property
    def simd_bits(self) -> int:
        """Bits of the vectors that are best for arithmetic: 512, 256 or 128 (SSE, NEON)."""
        if all(map(self.has, _AVX512)) and self.name not in _SLOW_512:
            return 512
        # AVX without AVX2 has no 256-bit integers, and unpacking weights is integer work.
        return 256 if self.has("avx2") else 128


@lru_cache(maxsize=1)
def llvm() -> Any:
    """Return `llvmlite.binding`, with the compiler for this machine set up."""
    import llvmlite.binding as binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


@lru_cache(maxsize=1)
def host_cpu() -> Cpu:
    """Return the CPU that this process runs on."""
    binding = llvm()
    try:
        features = str(binding.get_host_cpu_features().flatten())
    except RuntimeError:  # LLVM cannot tell on some systems; the name implies a safe set there
        features = ""
    return Cpu(str(binding.get_host_cpu_name()), features)


@lru_cache(maxsize=1)
def cache_tag() -> str:
    """Return what object code for this machine depends on beside its source: CPU, features, versions, triple."""
    import llvmlite

    binding, cpu = llvm(), host_cpu()
    version = ".".join(map(str, binding.llvm_version_info))
    return f"{binding.get_process_triple()} {cpu.name} {cpu.features} llvmlite {llvmlite.__version__} llvm {version}"
