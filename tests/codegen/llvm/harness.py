"""Run lowered programs, written as text, on the CPU: emitter and LLVM alone, without passes or runtime."""

import ctypes

import llvmlite.binding as llvm
import numpy as np

from tilus.codegen.llvm import emit
from tilus.ir.parser import parse
from tilus.ir.target import target

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()


def run(text, arguments, grid=(1, 1, 1), features=()):
    """Compile and run; returns the fault record (8 integers)."""
    source = emit(parse(text), target("cpu"), features)
    module = llvm.parse_assembly(source.text)
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True, reloc="pic"
    )
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    jit = llvm.create_lljit_compiler(machine)
    name = source.kernel_name
    library = llvm.JITLibraryBuilder().add_ir(str(module)).add_current_process().export_symbol(name).link(jit, name)
    signature = ctypes.CFUNCTYPE(
        None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
    )
    slots = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
    packed = (ctypes.c_int64 * (len(slots) + 3))(*slots, *grid)
    scratch, fault = np.zeros(source.scratch_bytes + 64, np.uint8), np.zeros(8, np.int64)
    signature(library[name])(ctypes.addressof(packed), 0, int(np.prod(grid)), scratch.ctypes.data, fault.ctypes.data)
    return fault


def lowered(body, params, grid="1", shared=0, lanes=8):
    """Return the text of a lowered program, by default of 8 lanes."""
    return f"""program p({params}) {{
  grid ({grid})
  warps 1
  threads {lanes}
  shared {shared}
{body}
}}"""
