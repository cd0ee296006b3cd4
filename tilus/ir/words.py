"""The words of the text form, for printer and parser alike."""

from __future__ import annotations

import re

NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)

# Words that no variable may be called, because a statement or a literal begins with them.
RESERVED = re.compile(
    r"(true|false|None|if|else|for|while|break|continue|cluster|threads|shared|(inf|nan)(_\w*)?)", re.ASCII
)

# Names with dots, read as one word: types (`t1.6`) and hardware instructions (`ld.global`).
DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)
