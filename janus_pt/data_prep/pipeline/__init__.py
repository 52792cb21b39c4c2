"""Corpora at web scale: sources, cleaning, deduplication and shards as steps of datatrove (extra `corpora`)."""
