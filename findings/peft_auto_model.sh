#!/usr/bin/env bash
# peft's AutoPeftModelForSeq2SeqLM hands autocast_adapter_dtype, an argument of PeftModel, to the base model's
# class, which refuses it: only PeftModel can load an adapter without changing its type.
. "$(dirname "$0")/common.sh"
finding peft==0.21.2 transformers==5.24.0 torch==2.13.0 <<'PYTHON'
from peft import AutoPeftModelForSeq2SeqLM, LoraConfig, PeftModel, get_peft_model
from transformers import BartConfig, BartForConditionalGeneration

from tiny_transformers import SIZES

BartForConditionalGeneration(BartConfig(vocab_size=20, **SIZES)).save_pretrained("base")
base = BartForConditionalGeneration.from_pretrained("base")
lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_2_SEQ_LM")
get_peft_model(base, lora).save_pretrained("lora")

message = ""
try:
    AutoPeftModelForSeq2SeqLM.from_pretrained("lora", autocast_adapter_dtype=False)
except TypeError as error:
    message = str(error)
print("AutoPeftModelForSeq2SeqLM:", message)

base = BartForConditionalGeneration.from_pretrained("base")
model = PeftModel.from_pretrained(base, "lora", autocast_adapter_dtype=False)
print("PeftModel, with the same argument:", type(model).__name__)
assert "autocast_adapter_dtype" in message
PYTHON
