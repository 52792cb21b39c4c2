"""Passes of a model by the library, in place of its modules."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from janus_pt.inference.native.build import load_library
from janus_pt.inference.native.structures import (
    ACTIVATIONS,
    NUMBER,
    POINTER,
    KeysValues,
    Layer,
    Mask,
    PackedWeights,
    Pass,
    Stack,
    array,
)
from janus_pt.model.blocks import DecoderLayer
from janus_pt.model.encoder_decoder import Stack as StackModule
from janus_pt.model.kv_cache import KeysValues as KeysValuesTensors
from janus_pt.model.kv_cache import LayerCache
from janus_pt.model.native import BestTokens
from janus_pt.model.positions import SinusoidalPositions
from janus_pt.model.transformer import JanusTransformer


class NativeLinear:
    """A linear layer by the library."""

    def __init__(self, packed: PackedWeights, weight: Tensor, bias: Tensor | None) -> None:
        """`weight [out, in]` and `bias` are float32 on the CPU."""
        # The memory that the structure points to.
        self._packed = packed
        self.linear = packed.linear(weight, bias)
        self._multiply = load_library().janus_multiply
        # Else numbers would be taken for 32 bits.
        self._multiply.argtypes = [POINTER, POINTER, NUMBER, POINTER, NUMBER]
        self._multiply.restype = None

    @property
    def address(self) -> int:
        """Of the structure."""
        return ctypes.addressof(self.linear)

    def __call__(self, x: Tensor) -> Tensor:
        """`x [..., in]` to `[..., out]`."""
        x = x.contiguous()
        product = torch.empty(*x.shape[:-1], self.linear.outputs)
        rows = x.numel() // self.linear.inputs
        threads = torch.get_num_threads()
        self._multiply(self.address, x.data_ptr(), rows, product.data_ptr(), threads)
        return product


class NativePasses:
    """The encoder's and the decoder's passes of one model."""

    def __init__(self, model: JanusTransformer, packed: PackedWeights) -> None:
        """The weights are copied; the model must be one that `layout.unsupported` has no objection to."""
        self._packed = packed
        tokens = model.embed_tokens.get_parameter("weight").detach()
        shared = model.config.source_vocab_size is None
        source_tokens = tokens if shared else model.embed_source.get_parameter("weight").detach()
        self._encoder = _stack(model, model.encoder, source_tokens, packed)
        self._decoder = _stack(model, model.decoder, tokens, packed)
        self._hidden = model.config.hidden_size
        self._heads = model.config.num_attention_heads
        self._output = NativeLinear(packed, tokens, model.output_bias)
        self._memory = _memory_projection(model, packed)
        library = load_library()
        self._choose = library.janus_best
        self._choose.argtypes = [POINTER, POINTER, NUMBER, POINTER, NUMBER, *(POINTER,) * 3, NUMBER]
        self._choose.restype = None
        self._run_library = library.janus_run
        self._run_library.restype = None

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """None: a copied model may get other weights, and uses its modules."""

    def encode(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Encoder output `[rows, source, hidden]`; `mask [rows, source]` is true where there is no padding."""
        self_mask = None if mask is None else mask[:, None, None]
        slots = tokens.shape[1]
        work = Pass(contents=slots, self_mask=Mask.of(self_mask))
        return self._run(self._encoder, work, tokens, positions)

    def keys_values(self, encoder_out: Tensor) -> list[KeysValuesTensors]:
        """Each decoder layer's cross-attention keys and values of the encoder's output."""
        rows, slots, hidden = encoder_out.shape
        # [rows, slots, layers · 2, heads, head_size]: all in one product.
        shape = (rows, slots, -1, self._heads, hidden // self._heads)
        parts = self._memory(encoder_out).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        return list(zip(parts[::2], parts[1::2], strict=True))

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the vocabulary."""
        return self._output(hidden)

    def decode_step(
        self,
        tokens: Tensor,
        positions: Tensor,
        num_content: int,
        self_mask: Tensor | None,
        cross_mask: Tensor | None,
        caches: Sequence[LayerCache],
    ) -> Tensor:
        """`JanusTransformer.decode_step`."""
        memory_keys = caches[0].memory[0]
        work = Pass(
            contents=num_content,
            first=num_content if num_content < tokens.shape[1] else 0,
            sources=memory_keys.shape[0],
            memory_length=memory_keys.shape[2],
            self_mask=Mask.of(self_mask),
            cross_mask=Mask.of(cross_mask),
            memories=array([KeysValues.of(*cache.memory) for cache in caches]),
        )
        places = None
        if caches[0].buffers is not None:
            buffers = [cast(KeysValuesTensors, cache.buffers) for cache in caches]
            work.caches = array([KeysValues.of(*buffer) for buffer in buffers])
            work.reach = cast(int, caches[0].reach)
            if isinstance(caches[0].write_positions, tuple):
                # A row's content slots stand side by side, from the first one's place on.
                places = caches[0].write_positions[1][:, 0].long().contiguous()
                work.places = places.data_ptr()
            else:
                work.start = caches[0].write_positions
        return self._run(self._decoder, work, tokens, positions)

    def best_tokens(self, hidden: Tensor, forbidden: Tensor, eos: int) -> BestTokens:
        """For each of `hidden [rows, hidden]`, `[rows]`; none that is true in `forbidden [vocab]`."""
        hidden = hidden.contiguous()
        rows = len(hidden)
        tokens = torch.empty(rows, dtype=torch.int64)
        scores, ends = torch.empty(2, rows).unbind(0)
        self._choose(
            self._output.address,
            hidden.data_ptr(),
            rows,
            forbidden.data_ptr(),
            eos,
            tokens.data_ptr(),
            scores.data_ptr(),
            ends.data_ptr(),
            torch.get_num_threads(),
        )
        return BestTokens(tokens, scores, ends)

    def _run(self, stack: Stack, work: Pass, tokens: Tensor, positions: Tensor) -> Tensor:
        tokens, positions = tokens.long().contiguous(), positions.long().contiguous()
        rows, slots = tokens.shape
        output = torch.empty(rows, slots - work.first, self._hidden)
        work.rows, work.slots = rows, slots
        work.tokens, work.positions = tokens.data_ptr(), positions.data_ptr()
        work.output = output.data_ptr()
        work.threads = torch.get_num_threads()
        if rows:
            self._run_library(ctypes.byref(stack), ctypes.byref(work))
        return output


def _memory_projection(model: JanusTransformer, packed: PackedWeights) -> NativeLinear:
    """Keys' and values' projections of every cross-attention, one after another."""
    parts = []
    for layer in model.decoder.layers:
        attention = cast(DecoderLayer, layer).encoder_attn
        parts += [attention.k_proj, attention.v_proj]
    weight = torch.cat([part.get_parameter("weight").detach() for part in parts])
    bias = torch.cat([part.get_parameter("bias").detach() for part in parts])
    return NativeLinear(packed, weight, bias)


def _stack(
    model: JanusTransformer, module: StackModule, tokens: Tensor, packed: PackedWeights
) -> Stack:
    """The library's form of an encoder or a decoder."""
    config = model.config
    layers = [_layer(cast(DecoderLayer, layer), packed) for layer in module.layers]
    table = cast(nn.Module, module.embed_positions)
    is_computed = isinstance(table, SinusoidalPositions)
    positions = table.get_buffer("table") if is_computed else table.get_parameter("weight")
    return Stack(
        layers=(Layer * len(layers))(*layers),
        num_layers=len(layers),
        hidden=config.hidden_size,
        ffn=config.ffn_hidden_size,
        heads=config.num_attention_heads,
        pre_norm=config.pre_layer_norm,
        activation=ACTIVATIONS[config.activation],
        has_cross=hasattr(module.layers[0], "encoder_attn"),
        embed_norm=packed.norm(module.layernorm_embedding),
        last_norm=packed.norm(module.layer_norm),
        tokens=packed.keep(tokens).data_ptr(),
        positions=packed.keep(positions.detach()).data_ptr(),
        token_scale=module.scale,
    )


def _layer(module: DecoderLayer, packed: PackedWeights) -> Layer:
    """The library's form of one layer; an encoder's has no cross-attention."""
    layer = Layer(
        qkv=packed.layer(cast(nn.Module, module.self_attn.qkv_proj)),
        self_out=packed.layer(module.self_attn.out_proj),
        fc1=packed.layer(module.get_submodule("fc1")),
        fc2=packed.layer(module.fc2),
        self_norm=packed.norm(module.self_attn_layer_norm),
        final_norm=packed.norm(module.final_layer_norm),
    )
    if hasattr(module, "encoder_attn"):
        layer.cross_query = packed.layer(module.encoder_attn.q_proj)
        layer.cross_out = packed.layer(module.encoder_attn.out_proj)
        layer.cross_norm = packed.norm(module.encoder_attn_layer_norm)
    return layer
