"""The library: programs, quantized weights, and the matmul that joins them."""
