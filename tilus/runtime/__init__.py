"""Compile, cache, launch; quantized weights."""
