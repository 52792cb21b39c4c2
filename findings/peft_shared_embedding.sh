#!/usr/bin/env bash
# peft trains nothing with modules_to_save=["shared"] on BART, whose encoder and decoder hold the table under
# other names: the copy that is marked as trained is never read, and gets no gradient.
. "$(dirname "$0")/common.sh"
finding peft==0.21.2 transformers==5.24.0 torch==2.13.0 <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import BartConfig, BartForConditionalGeneration

from tiny_transformers import SIZES

base = BartForConditionalGeneration(BartConfig(vocab_size=20, **SIZES))
lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["shared"])
model = get_peft_model(base, lora)
ids = torch.arange(4, 12)[None]
model(input_ids=ids, labels=ids).loss.backward()

trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
tables = {name: p for name, p in trained.items() if "shared" in name}
for name, p in tables.items():
    print("trained:", name, "gradient:", None if p.grad is None else p.grad.abs().max().item())
lora_gradients = [p.grad for name, p in trained.items() if "lora_B" in name]
print("layers of LoRA with a gradient:", sum(g is not None for g in lora_gradients))
assert tables
assert all(p.grad is None or not p.grad.any() for p in tables.values())
assert lora_gradients and all(g is not None for g in lora_gradients)
PYTHON
