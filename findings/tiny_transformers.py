"""Sizes of a BART or Marian of one layer a side, for the scripts beside this file."""

SIZES = {
    "d_model": 16,
    "max_position_embeddings": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
