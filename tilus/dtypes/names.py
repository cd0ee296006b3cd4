"""Every named type as an attribute: `tilus.u3` is `tilus.dtype("u3")`. Written out, so that tools can read it."""

from __future__ import annotations

from tilus.dtypes.registry import dtype

u1 = dtype("u1")
u2 = dtype("u2")
u3 = dtype("u3")
u4 = dtype("u4")
u5 = dtype("u5")
u6 = dtype("u6")
u7 = dtype("u7")
u8 = dtype("u8")
u16 = dtype("u16")
u32 = dtype("u32")
u64 = dtype("u64")
i1 = dtype("i1")
i2 = dtype("i2")
i3 = dtype("i3")
i4 = dtype("i4")
i5 = dtype("i5")
i6 = dtype("i6")
i7 = dtype("i7")
i8 = dtype("i8")
i16 = dtype("i16")
i32 = dtype("i32")
i64 = dtype("i64")
boolean = dtype("bool")
f2e1m0 = dtype("f2e1m0")
f3e1m1 = dtype("f3e1m1")
f3e2m0 = dtype("f3e2m0")
f4e1m2 = dtype("f4e1m2")
f4e2m1 = dtype("f4e2m1")
f4e3m0 = dtype("f4e3m0")
f5e1m3 = dtype("f5e1m3")
f5e2m2 = dtype("f5e2m2")
f5e3m1 = dtype("f5e3m1")
f5e4m0 = dtype("f5e4m0")
f6e1m4 = dtype("f6e1m4")
f6e2m3 = dtype("f6e2m3")
f6e3m2 = dtype("f6e3m2")
f6e4m1 = dtype("f6e4m1")
f6e5m0 = dtype("f6e5m0")
f7e1m5 = dtype("f7e1m5")
f7e2m4 = dtype("f7e2m4")
f7e3m3 = dtype("f7e3m3")
f7e4m2 = dtype("f7e4m2")
f7e5m1 = dtype("f7e5m1")
f7e6m0 = dtype("f7e6m0")
f8e1m6 = dtype("f8e1m6")
f8e2m5 = dtype("f8e2m5")
f8e3m4 = dtype("f8e3m4")
f8e4m3 = dtype("f8e4m3")
f8e5m2 = dtype("f8e5m2")
f8e6m1 = dtype("f8e6m1")
f8e7m0 = dtype("f8e7m0")
f16 = dtype("f16")
bf16 = dtype("bf16")
tf32 = dtype("tf32")
f32 = dtype("f32")
f64 = dtype("f64")
e8m0 = dtype("e8m0")
nf4 = dtype("nf4")
t2 = dtype("t2")
t1_6 = dtype("t1.6")

__all__ = [
    "bf16",
    "boolean",
    "e8m0",
    "f2e1m0",
    "f3e1m1",
    "f3e2m0",
    "f4e1m2",
    "f4e2m1",
    "f4e3m0",
    "f5e1m3",
    "f5e2m2",
    "f5e3m1",
    "f5e4m0",
    "f6e1m4",
    "f6e2m3",
    "f6e3m2",
    "f6e4m1",
    "f6e5m0",
    "f7e1m5",
    "f7e2m4",
    "f7e3m3",
    "f7e4m2",
    "f7e5m1",
    "f7e6m0",
    "f8e1m6",
    "f8e2m5",
    "f8e3m4",
    "f8e4m3",
    "f8e5m2",
    "f8e6m1",
    "f8e7m0",
    "f16",
    "f32",
    "f64",
    "i1",
    "i2",
    "i3",
    "i4",
    "i5",
    "i6",
    "i7",
    "i8",
    "i16",
    "i32",
    "i64",
    "nf4",
    "t1_6",
    "t2",
    "tf32",
    "u1",
    "u2",
    "u3",
    "u4",
    "u5",
    "u6",
    "u7",
    "u8",
    "u16",
    "u32",
    "u64",
]
