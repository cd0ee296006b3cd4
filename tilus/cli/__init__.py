"""The command `tilus`: what is here, what a layout or a kernel becomes, and a demonstration on a real model.

Every command that prints a table has `--json`. A `TilusError` ends the command with its message and exit status 1.
"""

from tilus.cli import bench, cache, check, compile, demo, doctor, explain, layouts
from tilus.cli.group import main

__all__ = ["bench", "cache", "check", "compile", "demo", "doctor", "explain", "layouts", "main"]
