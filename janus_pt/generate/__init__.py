"""Decoding from one set of weights: left to right, by mask-predict, and by both together.

See docs/guides/decoding.md.
"""
