"""The model as a row of E + D + 3 layers, numbered in the order in which they compute.

    0                  source embedding
    1 … E              encoder layers
    E + 1              slot embedding (and the encoder's last norm)
    E + 2 … E + D + 1  decoder layers
    E + D + 2          head (the decoder's last norm, output projection and losses, length head)

Pipeline stages, dropout's seeds and plans go by these numbers.
"""

from __future__ import annotations

from janus_pt.config.schema import ModelConfig

SOURCE_EMBEDDING = 0
FIRST_ENCODER_LAYER = 1


def slot_embedding(model: ModelConfig) -> int:
    """Number of the slot embedding, which follows the encoder."""
    return FIRST_ENCODER_LAYER + model.encoder_layers


def first_decoder_layer(model: ModelConfig) -> int:
    """Number of the first decoder layer."""
    return slot_embedding(model) + 1


def last_decoder_layer(model: ModelConfig) -> int:
    """Number of the last decoder layer, which computes only the slots that predict."""
    return head_layer(model) - 1


def head_layer(model: ModelConfig) -> int:
    """Number of the head, the last layer."""
    return first_decoder_layer(model) + model.decoder_layers


def table_layers(model: ModelConfig) -> tuple[int, ...]:
    """The layers that read the shared token table; a source with a table of its own does not."""
    if model.source_vocab_size is not None:
        return slot_embedding(model), head_layer(model)
    return SOURCE_EMBEDDING, slot_embedding(model), head_layer(model)
