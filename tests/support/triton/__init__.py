"""Triton kernels without a GPU: their launches recorded, compiled for a GPU, or run by the interpreter."""
