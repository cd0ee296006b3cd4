"""Layouts: which thread, register or address holds which element, and their algebra."""

from tilus.layouts.digits import Digit
from tilus.layouts.maps import flat_index_table, gather, index_table, locate_table, scatter
from tilus.layouts.parser import parse, parse_shared
from tilus.layouts.register import (
    RegisterLayout,
    Replicated,
    auto_local_spatial,
    column_local,
    column_spatial,
    concat,
    local,
    register_layout,
    replicated,
    spatial,
)
from tilus.layouts.shared import (
    SharedLayout,
    Swizzle,
    column_major,
    offset_table,
    row_major,
    row_major_swizzle,
    shared_layout,
    strided,
)

__all__ = [
    "Digit",
    "RegisterLayout",
    "Replicated",
    "SharedLayout",
    "Swizzle",
    "auto_local_spatial",
    "column_local",
    "column_major",
    "column_spatial",
    "concat",
    "flat_index_table",
    "gather",
    "index_table",
    "local",
    "locate_table",
    "offset_table",
    "parse",
    "parse_shared",
    "register_layout",
    "replicated",
    "row_major",
    "row_major_swizzle",
    "scatter",
    "shared_layout",
    "spatial",
    "strided",
]
