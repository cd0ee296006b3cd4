"""`python -m tilus.casts` searches for the best bit layouts and writes the table."""

from __future__ import annotations

from tilus.casts.search import search
from tilus.casts.table import HEADER, PATH, TARGETS, row, sources
from tilus.dtypes import dtype


def main() -> None:
    """Write the table: some minutes."""
    pairs = ((source, target) for source in sources() for target in map(dtype, TARGETS) if source != target)
    found = (search(source, target) for source, target in pairs)
    PATH.write_text(HEADER + "".join(f"{row(best)}\n" for best in found if best is not None))


if __name__ == "__main__":
    main()
