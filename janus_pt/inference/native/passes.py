"""Passes of a model by the library, in place of its modules."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from janus_pt.inference.native.build import load_library
from janus_pt.inference.native.linear import NativeEmbedding, NativeLinear
from janus_pt.inference.native.structures import (
    ACTIVATIONS,
    NORM_KINDS,
    NUMBER,
    POINTER,
    KeysValues,
    Layer,
    Linear,
    Mask,
    Norm,
    Pass,
    Stack,
    array,
)
from janus_pt.model.blocks import DecoderLayer
from janus_pt.model.encoder_decoder import Stack as StackModule
from janus_pt.model.kv_cache import KeysValues as KeysValuesTensors
from janus_pt.model.kv_cache import LayerCache
from janus_pt.model.native import BestTokens
from janus_pt.model.norms import NORM_EPS
from janus_pt.model.positions import SinusoidalPositions
from janus_pt.model.transformer import JanusTransformer


class NativePasses:
    """The encoder's and the decoder's passes of one model."""

    def __init__(self, model: JanusTransformer) -> None:
        """The linear layers of encoder and decoder and the output projection must be `NativeLinear`."""
        # Norms and tables, which the structures point to.
        self._kept: list[Tensor] = []
        self._output = cast(NativeLinear, model.output_projection)
        self._hidden = model.config.hidden_size
        shared = model.config.source_vocab_size is None
        source_tokens = model.embed_tokens if shared else model.embed_source
        self._encoder = self._stack(model, model.encoder, source_tokens)
        self._decoder = self._stack(model, model.decoder, model.embed_tokens)
        library = load_library()
        self._choose = library.janus_best
        self._choose.argtypes = [POINTER, POINTER, NUMBER, POINTER, NUMBER, *(POINTER,) * 3, NUMBER]
        self._choose.restype = None
        self._run_library = library.janus_run
        self._run_library.restype = None

    def __deepcopy__(self, memo: dict[int, Any]) -> NativePasses:
        """Itself: nothing that it reads changes."""
        return self

    def encode(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Encoder output `[rows, source, hidden]`; `mask [rows, source]` is true where there is no padding."""
        self_mask = None if mask is None else mask[:, None, None]
        slots = tokens.shape[1]
        work = Pass(contents=slots, self_mask=Mask.of(self_mask))
        return self._run(self._encoder, work, tokens, positions)

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

    def _stack(self, model: JanusTransformer, module: StackModule, tokens: nn.Module) -> Stack:
        """The library's form of an encoder or a decoder, which embeds by `tokens`."""
        config = model.config
        layers = [self._layer(cast(DecoderLayer, layer)) for layer in module.layers]
        table = cast(nn.Module, module.embed_positions)
        is_computed = isinstance(table, SinusoidalPositions)
        positions = table.get_buffer("table") if is_computed else table.get_parameter("weight")
        is_packed = isinstance(tokens, NativeEmbedding)
        rows = self._output.packed if is_packed else tokens.get_parameter("weight")
        return Stack(
            layers=(Layer * len(layers))(*layers),
            num_layers=len(layers),
            hidden=config.hidden_size,
            ffn=config.ffn_hidden_size,
            heads=config.num_attention_heads,
            pre_norm=config.pre_layer_norm,
            activation=ACTIVATIONS[config.activation],
            has_cross=hasattr(module.layers[0], "encoder_attn"),
            embed_norm=self._norm(module.layernorm_embedding),
            last_norm=self._norm(module.layer_norm),
            tokens=self._keep(rows),
            has_packed_tokens=is_packed,
            positions=self._keep(positions),
            token_scale=module.scale,
        )

    def _layer(self, module: DecoderLayer) -> Layer:
        """The library's form of one layer; an encoder's has no cross-attention."""
        layer = Layer(
            qkv=_structure(module.self_attn.qkv_proj),
            self_out=_structure(module.self_attn.out_proj),
            fc1=_structure(module.get_submodule("fc1")),
            fc2=_structure(module.fc2),
            self_norm=self._norm(module.self_attn_layer_norm),
            final_norm=self._norm(module.final_layer_norm),
        )
        if hasattr(module, "encoder_attn"):
            layer.cross_query = _structure(module.encoder_attn.q_proj)
            layer.cross_out = _structure(module.encoder_attn.out_proj)
            layer.cross_norm = self._norm(module.encoder_attn_layer_norm)
        return layer

    def _norm(self, module: nn.Module) -> Norm:
        kind = NORM_KINDS[type(module)]
        if not kind:
            return Norm()
        weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)
        return Norm(self._keep(weight), None if bias is None else self._keep(bias), kind, NORM_EPS)

    def _keep(self, tensor: Tensor) -> int:
        """The address of the tensor's numbers, row by row in memory, which stay as long as this does."""
        self._kept.append(tensor.detach().contiguous())
        return self._kept[-1].data_ptr()


def _structure(layer: nn.Module | None) -> Linear:
    return cast(NativeLinear, layer).structure
