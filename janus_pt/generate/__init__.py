"""Decoding: left to right (`autoregressive`) and by mask-predict (`mask_predict`), from one set of weights."""
