"""Passes: from a program as it was written to the lowered program that the emitters take."""
