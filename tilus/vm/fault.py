"""What goes wrong inside an instruction; the machine knows the place and makes a `VMError` of it."""

from __future__ import annotations


class Fault(Exception):
    """A fault of the running program, not yet placed in it."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
