"""A "cuda" device that exists, computes nothing and has no memory, on torch's CPU build.

With it a training step runs on fake tensors as on a GPU: an operator that mixes devices raises, and so
does whatever would make the host wait for a value (`item`, `tolist`, `bool`, shapes made of data).
"""
