"""Layouts: which thread, register or address holds which element, and their algebra."""

from tilus.layouts.banks import Access, BankReport, bank_conflicts, best_swizzle, ldmatrix_conflicts
from tilus.layouts.bits import BitLayout, bit_table, dense_bits, parse_bits
from tilus.layouts.conversion import (
    Conversion,
    RegisterMoves,
    Same,
    ShuffleRound,
    Shuffles,
    ThroughShared,
    classify_conversion,
    plan_conversion,
)
from tilus.layouts.dealing import dealt_vectors
from tilus.layouts.digits import Digit
from tilus.layouts.global_layout import GlobalLayout, GlobalMode, global_column_major, global_row_major, global_strided
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
from tilus.layouts.scratch import Scratch, plan_scratch
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
    "Access",
    "BankReport",
    "BitLayout",
    "Conversion",
    "Digit",
    "GlobalLayout",
    "GlobalMode",
    "RegisterLayout",
    "RegisterMoves",
    "Replicated",
    "Same",
    "Scratch",
    "SharedLayout",
    "ShuffleRound",
    "Shuffles",
    "Swizzle",
    "ThroughShared",
    "auto_local_spatial",
    "bank_conflicts",
    "best_swizzle",
    "bit_table",
    "classify_conversion",
    "column_local",
    "column_major",
    "column_spatial",
    "concat",
    "dealt_vectors",
    "dense_bits",
    "flat_index_table",
    "gather",
    "global_column_major",
    "global_row_major",
    "global_strided",
    "index_table",
    "ldmatrix_conflicts",
    "local",
    "locate_table",
    "offset_table",
    "parse",
    "parse_bits",
    "parse_shared",
    "plan_conversion",
    "plan_scratch",
    "register_layout",
    "replicated",
    "row_major",
    "row_major_swizzle",
    "scatter",
    "shared_layout",
    "spatial",
    "strided",
]
