"""Passes of encoder and decoder in C++, compiled for this CPU at their first use; an option of decoding."""
