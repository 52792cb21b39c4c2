"""A small HTTP server: dynamic batches, metrics, and a page that shows both ways of decoding.

Needs the extra `janus_pt[serve]`.
"""
