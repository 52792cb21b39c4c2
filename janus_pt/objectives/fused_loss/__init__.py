"""Smoothed cross-entropies and symmetric KL divergences, fused with the output projection (METHOD
§3).

Hidden states and the (vocabulary-sharded) embedding go in; the weighted total and every term's sum
come out. Target tokens are walked in chunks, and gradients are made in the same walk: no
[slots × vocabulary] tensor outlives a chunk. On CUDA a chunk's passes over the vocabulary are two
Triton kernels (`cuda.py`, `kernels.py`), elsewhere operations of PyTorch (`eager.py`).

For one target token let z_a be the logits of stream a, p_a the softmax of them, d = z_a - z_b for a
pair (a, b), and J_ab = ½[KL(p_a‖p_b) + KL(p_b‖p_a)]. The log-normalisers cancel:

    J_ab           =  ½ (E_{p_a}[d] - E_{p_b}[d])
    ∂J_ab / ∂z_a   =  ½ [p_a ∘ (d - E_{p_a}[d]) + p_a - p_b]        and for z_b with a and b exchanged

With smoothing s, weight w_a and target t the cross-entropy's part of the gradient is

    ∂(w_a CE_a) / ∂z_a  =  w_a (p_a - (1 - s) e_t - s / size)

Sums over the vocabulary are all that tensor-parallel ranks exchange.
"""

from janus_pt.objectives.fused_loss.chunks import chunk_rows
from janus_pt.objectives.fused_loss.function import fused_losses, require_triton
from janus_pt.objectives.fused_loss.terms import Terms, VocabShard

__all__ = ["Terms", "VocabShard", "chunk_rows", "fused_losses", "require_triton"]
