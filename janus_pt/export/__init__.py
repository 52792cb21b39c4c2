"""Folders that other programs load: weights, configuration, tokenizer. No pickle."""
