"""What results may go through before they are written, by name; `programs.pieces.activate` computes it."""

from __future__ import annotations

from tilus.errors import LaunchError

PAIRED = "silu_mul"  # of a pair of results: programs leave it to `add_parts`, which has both
EPILOGUES = ("none", "relu", "gelu", "gelu_tanh", "silu", PAIRED)


def result_columns(name: str, n: int) -> int:
    """Return how many results there are for N rows of a weight.

    Raises
    ------
    LaunchError
        There is no function of that name, or N is odd for one of pairs.
    """
    if name not in EPILOGUES:
        raise LaunchError(
            f"activation must be one of {', '.join(EPILOGUES)}, got {name!r}",
            hint="apply other functions to the result",
        )
    if name != PAIRED:
        return n
    if n % 2:
        raise LaunchError(
            f"{PAIRED} takes a weight of [N / 2 gate rows, then N / 2 up rows], got N = {n}",
            hint="join the gate's and the up projection's weights, of equally many rows, before quantizing",
        )
    return n // 2
