#!/usr/bin/env bash
# transformers' beam search counts the forced eos at the length limit with log-probability 0, though the
# length that the score is divided by has it; and a float64 model's scores are float32.
. "$(dirname "$0")/common.sh"
finding transformers==5.24.0 torch==2.13.0 <<'PYTHON'
import torch
from transformers import BartConfig, BartForConditionalGeneration

from tiny_transformers import SIZES

torch.manual_seed(0)
config = BartConfig(vocab_size=20, init_std=0.5, **SIZES)
model = BartForConditionalGeneration(config).double().eval()
source = torch.arange(4, 12)[None]
LIMIT = 4

found = model.generate(
    source,
    num_beams=4,
    max_new_tokens=LIMIT,
    min_new_tokens=LIMIT,
    forced_eos_token_id=2,
    forced_bos_token_id=None,
    output_scores=True,
    return_dict_in_generate=True,
)
output = found.sequences
with torch.no_grad():
    logits = model(input_ids=source, decoder_input_ids=output[:, :-1]).logits
logs = logits.log_softmax(-1).gather(-1, output[:, 1:, None]).flatten()
score = found.sequences_scores
print("log-probabilities of", output[0, 1:].tolist(), "are", [round(x, 3) for x in logs.tolist()])
print(f"sum of all {logs.sum():.3f}, without the forced eos {logs[:-1].sum():.3f}")
print(f"score x {LIMIT} tokens {score.item() * LIMIT:.3f}, {score.dtype}; logits {logits.dtype}")
assert logs[-1] < -0.1
assert abs(score.item() * LIMIT - logs[:-1].sum().item()) < 1e-5
assert score.dtype == torch.float32
assert logits.dtype == torch.float64
PYTHON
