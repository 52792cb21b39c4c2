#!/usr/bin/env bash
# The gradient of torch's CTC loss by the log-probabilities that it is given is not the derivative of its value:
# each probability is added to it. A log_softmax over all classes right before takes that away again; anything
# else there, such as log-probabilities of some classes of a vocabulary, is trained on a wrong gradient.
. "$(dirname "$0")/common.sh"
finding torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import torch
import torch.nn.functional as F

SLOTS, CLASSES = 5, 7
torch.manual_seed(0)
logits = torch.randn(SLOTS, 1, CLASSES, dtype=torch.float64)
labels, lengths = torch.tensor([[3, 1]]), ((SLOTS,), (2,))


def value(log_probs):
    return F.ctc_loss(log_probs, labels, *lengths, reduction="sum")


def derivative(function, at, step=1e-6):
    """Central differences, number by number."""
    found = torch.zeros_like(at)
    for place in range(at.numel()):
        change = torch.zeros_like(at).view(-1)
        change[place] = step
        change = change.view_as(at)
        found.view(-1)[place] = (function(at + change) - function(at - change)) / (2 * step)
    return found


log_probs = logits.log_softmax(-1).requires_grad_()
(grad,) = torch.autograd.grad(value(log_probs), log_probs)
true = derivative(value, log_probs.detach())
print(f"torch's gradient less the derivative: at most {(grad - true).abs().max():.3f}")
print(f"... less the probabilities as well:   at most {(grad - true - log_probs.exp()).abs().max():.1e}")
print(f"sum of each slot's gradient: torch {grad.sum(-1)[0].item():.1e}, true {true.sum(-1)[0].item():.3f}")
assert (grad - true).abs().max() > 0.1
assert (grad - true - log_probs.exp()).abs().max() < 1e-8


def through_softmax(values):
    return value(values.log_softmax(-1))


leaf = logits.clone().requires_grad_()
(of_logits,) = torch.autograd.grad(through_softmax(leaf), leaf)
error = (of_logits - derivative(through_softmax, logits)).abs().max()
print(f"by the logits before a log_softmax over all classes: wrong by {error:.1e}")
assert error < 1e-8
PYTHON
