"""The encoder-decoder Transformer. Knows no process group, no objective and no data."""
