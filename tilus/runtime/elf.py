"""The facts that a cubin states about its kernels, read from the ELF file itself: no tool, no driver.

The sections `.nv.info` and `.nv.info.<kernel>` hold attributes: a format byte, an attribute byte, and a 16-bit value or
size. The names of the attributes are those that `readelf`-like tools of CUDA print (`EIATTR_...`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tilus.errors import FormatError

EIATTR_MAX_THREADS = 0x05
EIATTR_FRAME_SIZE = 0x11
EIATTR_REGCOUNT = 0x2F
EIATTR_NUM_BARRIERS = 0x4C
EIATTR_ANNOTATIONS = 0x55

_EM_CUDA = 190
_SHT_SYMTAB = 2
_FORMAT_SIZED = 0x04  # formats 1 to 3 keep their value in the header itself


@dataclass(frozen=True, slots=True)
class Section:
    """One section: its name, its type, its size in memory and its bytes in the file (none for NOBITS)."""

    name: str
    kind: int
    size: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of an `.nv.info` section; the value of a short one is two bytes."""

    number: int
    value: bytes

    def words(self) -> tuple[int, ...]:
        """Return the value as 32-bit words."""
        return struct.unpack(f"<{len(self.value) // 4}I", self.value)


@dataclass(frozen=True, slots=True)
class Cubin:
    """A cubin's sections and symbols.

    Attributes
    ----------
    arch : int
        Ten times the compute capability.
    sections : dict
        By name.
    symbols : tuple of str
        Names by index in the symbol table, as attributes refer to them.
    """

    arch: int
    sections: dict[str, Section]
    symbols: tuple[str, ...]

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the functions that have code."""
        return tuple(name.removeprefix(".text.") for name in self.sections if name.startswith(".text."))

    def attributes(self, kernel: str | None = None) -> list[Attribute]:
        """Return the attributes of one kernel, or those of the whole file."""
        section = self.sections.get(f".nv.info.{kernel}" if kernel else ".nv.info")
        return list(_attributes(section.data)) if section else []

    def of_symbol(self, number: int, kernel: str) -> int:
        """Return a number that the whole file's attributes state per function (symbol index, value)."""
        for attribute in self.attributes():
            if attribute.number == number:
                symbol, value = attribute.words()
                if self.symbols[symbol] == kernel:
                    return value
        return 0


def read_cubin(data: bytes) -> Cubin:
    """Read a cubin.

    Raises
    ------
    FormatError
        If the bytes are no cubin, or are cut short.
    """
    if data[:4] != b"\x7fELF" or len(data) < 64 or struct.unpack_from("<H", data, 18)[0] != _EM_CUDA:
        raise FormatError(
            "expected a cubin (an ELF file for CUDA), got something else", hint="compile the kernel again"
        )
    try:
        sections = _sections(data)
        return Cubin(_arch(data), {section.name: section for section in sections}, _symbols(sections))
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise FormatError(f"the cubin is truncated or altered: {error}", hint="compile the kernel again") from error


def _arch(data: bytes) -> int:
    # Bits 8 to 15 of e_flags hold it in the ABI of CUDA 13 (ABI version 8); before, bits 0 to 7 did.
    (flags,) = struct.unpack_from("<I", data, 48)
    return int(flags >> 8 & 0xFF if data[8] >= 8 else flags & 0xFF)


def _text(table: bytes, start: int) -> str:
    return table[start : table.index(b"\0", start)].decode()


def _sections(data: bytes) -> list[Section]:
    (e_shoff,) = struct.unpack_from("<Q", data, 40)
    e_shentsize, e_shnum, e_shstrndx = struct.unpack_from("<3H", data, 58)
    headers = [struct.unpack_from("<IIQQQQ", data, e_shoff + i * e_shentsize) for i in range(e_shnum)]
    bodies = [_body(data, kind, offset, size) for _, kind, _, _, offset, size in headers]
    names = bodies[e_shstrndx]
    return [
        Section(_text(names, name), kind, size, body)
        for (name, kind, _, _, _, size), body in zip(headers, bodies, strict=True)
    ]


def _body(data: bytes, kind: int, offset: int, size: int) -> bytes:
    if kind in (0, 8):  # SHT_NULL, SHT_NOBITS
        return b""
    if offset + size > len(data):
        raise ValueError(f"a section ends at byte {offset + size}, the file at {len(data)}")
    return data[offset : offset + size]


def _symbols(sections: list[Section]) -> tuple[str, ...]:
    strings = next((s.data for s in sections if s.name == ".strtab"), b"")
    for section in sections:
        if section.kind == _SHT_SYMTAB:
            entries = struct.iter_unpack("<IBBHQQ", section.data)
            return tuple(_text(strings, entry[0]) for entry in entries)
    return ()


def _attributes(data: bytes) -> Iterator[Attribute]:
    at = 0
    while at < len(data):
        form, number, size = struct.unpack_from("<BBH", data, at)
        if form == _FORMAT_SIZED:
            yield Attribute(number, data[at + 4 : at + 4 + size])
            at += 4 + size
        else:
            yield Attribute(number, data[at + 2 : at + 4])
            at += 4
