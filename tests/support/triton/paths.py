"""CTC's kernel run by Triton's interpreter: `TRITON_INTERPRET=1 python -m tests.support.triton.paths`.

Prints a JSON object: for each type the largest difference of the losses, relative, and of the paths' shares from
torch's CTC loss in float64.
"""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F

from janus_pt.objectives.ctc_kernel import losses_and_shares

ROWS, LABELS = (9, 7, 1, 40), (4, 3, 1, 12)
"""Of each sample."""
CLASSES = 14


def differences(dtype: torch.dtype) -> dict[str, float]:
    """Samples of different lengths, with equal labels side by side and apart."""
    generator = torch.Generator().manual_seed(3)
    samples, most_rows = len(ROWS), max(ROWS)
    shape = (samples, most_rows, CLASSES)
    log_probs = torch.randn(*shape, dtype=torch.float64, generator=generator).log_softmax(-1)
    labels = torch.randint(1, CLASSES, (samples, max(LABELS)), generator=generator)
    labels[0, :4] = torch.tensor([5, 5, 6, 5])
    rows, counts = torch.tensor(ROWS), torch.tensor(LABELS)

    ours, shares = losses_and_shares(log_probs.to(dtype), labels, rows, counts)

    leaf = log_probs.transpose(0, 1).requires_grad_()
    exact = F.ctc_loss(leaf, labels, rows, counts, reduction="none")
    # By torch's rule, a probability minus a share; it says 0 behind a sample's rows.
    (grad,) = torch.autograd.grad(exact.sum(), leaf)
    expected = (log_probs.exp() - grad.transpose(0, 1)).detach()
    is_row = torch.arange(most_rows) < rows[:, None]
    return {
        "losses": float(((ours - exact) / exact).abs().max()),
        "shares": float((shares - expected)[is_row].abs().max()),
        "of a row": float((shares.sum(-1) - is_row.to(dtype)).abs().max()),
    }


if __name__ == "__main__":
    print(json.dumps({str(dtype): differences(dtype) for dtype in (torch.float64, torch.float32)}))
