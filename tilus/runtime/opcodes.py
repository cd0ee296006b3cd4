"""SASS opcodes as data: what kind of work an instruction is, and which pipe of the multiprocessor does it.

Kinds are the columns of the tables of instruction mixes. Pipes are those that Nsight Compute's documentation names
("metrics decoder": ALU, FMA, FP64, XU, LSU, uniform, tensor); `cbu` does branches, `adu` barriers, `tma` bulk copies.
Where generations differ (HFMA2 and I2F moved between pipes) the table says what holds for sm_80 to sm_90.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpcodeClass:
    """One row of the table: a kind of work, its pipe, and the opcodes (without modifiers) that are it."""

    kind: str
    pipe: str
    opcodes: str


_ROWS = (
    OpcodeClass("mma", "tensor", "HMMA IMMA BMMA DMMA QMMA OMMA HGMMA IGMMA QGMMA BGMMA"),
    OpcodeClass("mma", "tensor", "UTCHMMA UTCQMMA UTCIMMA UTCOMMA"),
    OpcodeClass("lds", "lsu", "LDS LDSM LDTM"),
    OpcodeClass("sts", "lsu", "STS STSM STTM ATOMS ATOMSWS"),
    OpcodeClass("gmem", "lsu", "LDG STG LDGSTS LD ST ATOM ATOMG RED REDG LDGMC MULTIMEM CCTL CCTLL"),
    OpcodeClass("gmem", "tma", "UBLKCP UBLKRED UBLKPF UTMALDG UTMASTG UTMAREDG UTMAPF UTMACCTL UTMACMDFLUSH"),
    OpcodeClass("local", "lsu", "LDL STL"),
    OpcodeClass("const", "lsu", "LDC LDCU ULDC"),
    OpcodeClass("lop3", "alu", "LOP3 LOP LOP32I"),
    OpcodeClass("prmt", "alu", "PRMT"),
    OpcodeClass("shf", "alu", "SHF SHL SHR"),
    OpcodeClass("half2", "fma", "HFMA2 HADD2 HMUL2 HFMA2_32I HADD2_32I HMUL2_32I"),
    OpcodeClass("half2", "alu", "HMNMX2 HSET2 HSETP2 VHMNMX"),
    OpcodeClass("fp32", "fma", "FFMA FMUL FADD FFMA2 FMUL2 FADD2 FFMA32I FMUL32I FADD32I FSWZADD"),
    OpcodeClass("fp32", "alu", "FMNMX FMNMX3 FSEL FSET FSETP FCHK F2FP I2FP F2IP"),
    OpcodeClass("fp32", "xu", "MUFU F2F F2I I2F FRND I2I I2IP"),
    OpcodeClass("fp64", "fp64", "DFMA DADD DMUL DSETP DMNMX"),
    OpcodeClass("imad", "fma", "IMAD IMAD32I IMUL IMUL32I IDP IDP4A XMAD"),
    OpcodeClass("iadd", "alu", "IADD IADD3 IADD32I VIADD VIADDMNMX LEA ISETP ISET SEL IABS IMNMX VIMNMX VIMNMX3"),
    OpcodeClass("iadd", "alu", "BMSK SGXT PLOP3 P2R R2P PSETP ISCADD VABSDIFF VABSDIFF4 VSETP"),
    OpcodeClass("iadd", "xu", "POPC FLO BREV"),
    OpcodeClass("mov", "alu", "MOV MOV32I CS2R S2R S2UR R2UR UR2R B2R R2B MOVM GETLMEMBASE SETLMEMBASE LEPC"),
    OpcodeClass(
        "uniform", "uniform", "UMOV UIADD3 UVIADD UIMAD ULEA ULOP3 USHF UISETP USEL UPRMT UPLOP3 UIMNMX UVIMNMX"
    ),
    OpcodeClass("uniform", "uniform", "UFLO UPOPC UBMSK USGXT UBREV UIABS UP2UR UR2UP US2UR UCLEA UPSETP UVOTE UVOTEU"),
    OpcodeClass(
        "uniform", "uniform", "UFADD UFMUL UFFMA UFSEL UFSETP UFMNMX UFRND UF2FP UF2F UF2I UI2F UI2FP USETMAXREG"
    ),
    OpcodeClass("shuffle", "lsu", "SHFL"),
    OpcodeClass("shuffle", "alu", "VOTE VOTEU MATCH REDUX CREDUX"),
    OpcodeClass("sync", "adu", "BAR DEPBAR LDGDEPBAR LDTDEPBAR MEMBAR ERRBAR FENCE WARPSYNC WARPGROUP WARPGROUPSET"),
    OpcodeClass("sync", "lsu", "SYNCS SYNCSU ARRIVES ACQBULK CGAERRBAR UCGABAR_ARV UCGABAR_WAIT UTCBAR ELECT PREEXIT"),
    OpcodeClass("control", "cbu", "BRA BRX BRXU JMP JMX JMXU CALL RET EXIT KILL BREAK BSSY BSYNC BMOV BPT YIELD"),
    OpcodeClass("control", "cbu", "NANOSLEEP RPCMOV ENDCOLLECTIVE"),
    OpcodeClass("nop", "none", "NOP"),
)

OPCODES: dict[str, OpcodeClass] = {opcode: row for row in _ROWS for opcode in row.opcodes.split()}
HALF2_CONSTANT = OpcodeClass("mov", "fma", "HFMA2")
OTHER = OpcodeClass("other", "none", "")
KINDS: tuple[str, ...] = (*dict.fromkeys(row.kind for row in _ROWS), OTHER.kind)
