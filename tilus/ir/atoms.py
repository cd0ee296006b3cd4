"""Hardware instructions as data: what selection chooses from and emitters spell out.

Fragments are layouts (PTX ISA, "Matrix fragments for mma"): which lane and register holds which element. A tile divides
by an atom exactly when its layout divides by the atom's fragment, so instruction selection is division of layouts.

Names of memory atoms (`Selected.atom`): `ld.global st.global ld.shared st.shared` with `Selected.width` elements per
access; `ldmatrix.x1|x2|x4[.trans]`; `cp.async` (asynchronous, 4, 8 or 16 bytes), `cp.async.bulk` (one thread has the
whole tile copied), or `ld.st` where an asynchronous copy is not possible; `atom.add`. Matrix products: the name of a
`MmaAtom`, or `fma`. Casts and conversions name no atom, except `convert_layout`: `none registers shuffle shared`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilus.dtypes import DataType, bf16, f16, f32, i8, i32
from tilus.layouts import RegisterLayout, column_local, column_spatial, local, spatial


@dataclass(frozen=True, slots=True)
class MmaAtom:
    """A warp-wide matrix product `d[m, n] = a[m, k] @ b[k, n] + c[m, n]`.

    Attributes
    ----------
    name : str
        PTX mnemonic.
    dtype, acc : DataType
        Type of `a` and `b`; type of `c` and `d`.
    a, b, c : RegisterLayout
        Fragments over 32 lanes.
    capability : int
        Ten times the least compute capability.
    """

    name: str
    dtype: DataType
    acc: DataType
    a: RegisterLayout
    b: RegisterLayout
    c: RegisterLayout
    capability: int = 80

    @property
    def shape(self) -> tuple[int, int, int]:
        """Extents (m, n, k)."""
        return self.a.shape[0], self.b.shape[1], self.a.shape[1]

    def fragments(self, rank: int) -> tuple[RegisterLayout, RegisterLayout, RegisterLayout]:
        """Return the fragments of `a`, `b` and `c` as tiles of a rank: one matrix of a batch."""
        lead = range(rank - 2)
        return self.a.unsqueeze(lead), self.b.unsqueeze(lead), self.c.unsqueeze(lead)


def _mma(name: str, dtype: DataType, acc: DataType) -> MmaAtom:
    """m16n8 with 256 bits of k: a 32-bit register holds `v` elements that are neighbours in k."""
    v = 32 // dtype.nbits
    return MmaAtom(
        name,
        dtype,
        acc,
        a=column_local(2, 2) * spatial(8, 4) * local(1, v),
        b=local(2, 1) * column_spatial(4, 8) * local(v, 1),
        c=local(2, 1) * spatial(8, 4) * local(1, 2),
    )


MMA_ATOMS = (
    _mma("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", f16, f32),
    _mma("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16", f16, f16),
    _mma("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", bf16, f32),
    _mma("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", i8, i32),
)
MMA_BY_NAME = {atom.name: atom for atom in MMA_ATOMS}

# ldmatrix: lane l receives row l/4, 32 bits at column l%4 of an 8x8 matrix of 16-bit elements (PTX ISA, "ldmatrix").
# Several matrices are an outer local layout. The transposed form exists for 16-bit elements only.
LDMATRIX = {nbits: spatial(8, 4) * local(1, 32 // nbits) for nbits in (8, 16, 32)}
LDMATRIX_TRANS = column_spatial(4, 8) * local(2, 1)
