"""Code generators: lowered programs to CUDA C++ and to LLVM IR."""
