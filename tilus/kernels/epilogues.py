"""What results may go through before they are written, by name; `programs.pieces.activate` computes it."""

from __future__ import annotations

from tilus.errors import LaunchError

EPILOGUES = ("none", "relu", "gelu", "gelu_tanh", "silu")


def check_epilogue(name: str) -> None:
    """Raise `LaunchError` unless there is a function of that name."""
    if name not in EPILOGUES:
        raise LaunchError(
            f"activation must be one of {', '.join(EPILOGUES)}, got {name!r}",
            hint="apply other functions to the result",
        )
