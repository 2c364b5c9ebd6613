"""Coeff-Tuning itself: the mathematics, its kernels, how it gets into attention layers. Reads no files."""
